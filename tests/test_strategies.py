"""Every strategy in the table meets the same exam; what is particular to one has its own test."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import evosax.algorithms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.column import PLAIN
from evometa.errors import ConfigError, NotFound, UsageError
from evometa.space import Space, categorical, integer, real, weights
from evometa.strategies import CATALOGUE, STRATEGIES, describe, parts
from evometa.strategies.catalogue import markdown
from evometa.strategies.evosax_samples import RECOVER
from evometa.strategies.evosax_table import LEFT_OUT, METHODS
from evometa.testing import exam
from evometa.testing_bench import Bench, scores_of, space_for, world

BLIND = ("random_search", "sobol")
PLANE = Space({"x": real(0, 1), "y": real(0, 1)})


def factory(name):
    module, attribute = STRATEGIES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def scored(fitness):
    """Scores of one generation with that fitness [P] or [P, M]."""
    fitness = jnp.asarray(fitness, jnp.float32)
    loss = fitness[:, None] if fitness.ndim == 1 else fitness
    problem = world(PLANE, len(loss))._replace(failed=~jnp.isfinite(loss).all(axis=1))
    return scores_of(problem, loss, jnp.int32(0))


# --- the table ---------------------------------------------------------------------------------------


def test_static_proposes_its_start_and_nothing_else():
    """A control and no method: it would fail the exam, which asks for a search."""
    made = factory("static")(PLANE, population=3)
    start = jnp.asarray(PLANE.center) * 0.5
    state = made.init(jax.random.key(0), start)
    for generation in range(2):
        genomes, parents, state = made.ask(jax.random.key(generation), state)
        np.testing.assert_array_equal(genomes, np.repeat(np.asarray(start)[None], 3, axis=0))
        assert (np.asarray(parents) == -1).all()
    np.testing.assert_array_equal(made.recommend(state), start)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "static"])
def test_exam(name):
    # The loop on one device beside the one on two costs another compilation: for one of each family.
    thorough = name in ("cma_es", "genetic", "differential_evolution", "random_search")
    report = exam(factory(name), beats_random=name not in BLIND, thorough=thorough)
    assert report.strategy == name


def test_the_table_speaks_of_every_evosax_algorithm_once():
    spoken = [method.algorithm for method in METHODS.values()] + list(LEFT_OUT)
    assert sorted(spoken) == sorted(evosax.algorithms.algorithms)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_table_says_what_the_strategy_is(name):
    entry = CATALOGUE[name]
    strategy = factory(name)(space_for(entry.searches), population=16)
    claimed = (name, entry.searches, entry.traceable, entry.objectives)
    assert (strategy.name, strategy.searches, strategy.traceable, strategy.objectives) == claimed
    with pytest.raises(ConfigError, match=f"population of at least {entry.minimum}, got"):
        factory(name)(space_for(entry.searches), population=entry.minimum - 1)
    factory(name)(space_for(entry.searches), population=entry.minimum, **entry.defaults)


def test_the_table_imports_no_library():
    code = "import sys, evometa.strategies as s; s.describe('cma_es'); print({'jax', 'optuna'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_describe_is_plain_data():
    assert all(json.loads(json.dumps(describe(name)))["name"] == name for name in STRATEGIES)
    with pytest.raises(NotFound, match='Did you mean "cma_es"'):
        describe("cmaes")


def test_the_documentation_holds_the_table():
    """To renew it: python -c 'from evometa.strategies.catalogue import markdown; print(markdown())'."""
    text = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text()
    assert markdown() in text
    assert all(f"`{name}`" in text and reason.split(" (")[0] in text for name, reason in LEFT_OUT.items())


# --- refusals ----------------------------------------------------------------------------------------


def test_a_strategy_that_cannot_search_a_space_names_those_that_can():
    space = Space({"x": real(0, 1), "layer": categorical(("conv", "dense"))})
    with pytest.raises(
        ConfigError,
        match=r"cma_es: .* got categorical \(layer\)\. Use genetic, linear_gp, nsga2, open_ended, poet, random_search",
    ):
        factory("cma_es")(space)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("cma_es", {"sgima": 1.0}, UsageError, 'Did you mean "sigma"'),
        ("cma_es", {"sigma": -1.0}, ConfigError, "sigma in"),
        ("cma_es", {"sigma": float("nan")}, ConfigError, "sigma in"),
        ("cma_es", {"std_min": "small"}, ConfigError, "a number for std_min"),
        ("cma_es", {"population": True}, ConfigError, "whole number"),
        ("cma_es", {"population": 8.5}, ConfigError, "whole number"),
        ("open_es", {"population": 15}, ConfigError, "Try population=16"),
        ("gesmr_ga", {"population": 16, "num_groups": 4}, ConfigError, "evosax refused"),
        ("genetic", {"crossover": 1.5}, ConfigError, "crossover in 0 .. 1"),
        ("nsga2", {"objectives": 0}, ConfigError, "objectives as a whole number"),
        ("sobol", {"scramble": False}, UsageError, "expected one of: none"),
    ],
)
def test_nonsense_is_refused_with_words(name, arguments, error, words):
    with pytest.raises(error, match=words):
        factory(name)(PLANE, **arguments)


def test_a_prior_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"shape \(2,\), got \(3,\)"):
        factory("cma_es")(PLANE).init(jax.random.key(0), np.zeros(3))


# --- shared parts ------------------------------------------------------------------------------------


def test_settle_hands_failed_rows_the_worst_finite_value():
    fitness, ok, any_ok = parts.settle(scored([3.0, np.inf, 1.0, np.inf]))
    assert fitness.tolist() == [3.0, 3.0, 1.0, 3.0] and ok.tolist() == [True, False, True, False] and any_ok
    fitness, ok, any_ok = parts.settle(scored([np.inf, np.inf]))
    assert np.isfinite(np.asarray(fitness)).all() and not ok.any() and not any_ok


def test_ranks_are_a_permutation_and_break_ties_both_ways():
    fitness = jnp.asarray([2.0, 1.0, 2.0, 2.0])
    seen = {tuple(parts.ranks(jax.random.key(seed), fitness).tolist()) for seed in range(40)}
    assert all(sorted(ranks) == [0, 1, 2, 3] and ranks[1] == 0 for ranks in seen) and len(seen) == 6


def test_likely_best_is_not_the_luckiest():
    """Under noise, the chosen row's true loss is lower than that of the row with the lowest score."""
    truth, luck = [], []
    for seed in range(50):
        draw = np.random.default_rng(seed)
        rows = draw.random((64, 2))
        true = np.sum((rows - 0.3) ** 2, axis=1)
        score = jnp.asarray(true + 0.2 * draw.normal(size=64), jnp.float32)
        chosen = parts.likely_best(jnp.asarray(rows, jnp.float32), score, jnp.ones(64, bool))
        truth.append(np.sum((np.asarray(chosen) - 0.3) ** 2))
        luck.append(true[np.argmin(score)])
    assert np.mean(truth) < 0.7 * np.mean(luck)


# --- evosax ------------------------------------------------------------------------------------------


def test_cma_es_converges_on_a_rotated_ellipsoid():
    """Condition number 100, 8 numbers: 1e-6 within 2400 evaluations (float32 ends near 1e-12)."""
    smooth = Space({"x": weights(8)})
    b = Bench(factory("cma_es")(smooth, population=16), smooth)
    problem = b.world()
    state, _ = b.advance(b.start(), problem, 150)
    gap = problem.matrix[0] @ (b.strategy.recommend(state) - problem.target[0])
    assert float(gap @ gap) < 1e-6


def test_a_distribution_names_its_elites_best_first():
    b = Bench(factory("snes")(PLANE, population=16), PLANE)
    _, log = b.advance(b.start(), b.world(), 3)
    best = np.argsort(log.fitness[1, :, 0], kind="stable")[: parts.ELITES]
    assert log.parents[2, 5].tolist() == [[1, index] for index in best]
    assert b.strategy.operators[1] == "distribution"


@pytest.mark.parametrize("name", ["differential_evolution", "gesmr_ga", "pso", "lga"])
def test_a_pool_names_exactly_the_members_it_holds(name):
    b = Bench(factory(name)(PLANE, population=16), PLANE)
    state, log = b.advance(b.start(), b.world(), 6)
    sigma = METHODS[name].sigma
    held = PLANE.center + sigma * np.asarray(state.held[0])
    for (generation, index), member in zip(np.asarray(state.ids), held, strict=True):
        assert np.allclose(log.genomes[generation, index], member, atol=1e-6)
    named = [tuple(pair) for pair in log.parents[-1, 0].tolist() if pair[0] >= 0]
    assert len(named) == len(set(named)) > 0


@pytest.mark.parametrize(
    ("name", "fields"), [("ma_es", ["z"]), ("xnes", ["z"]), ("cr_fm_nes", ["z", "y"]), ("guided_es", ["z"])]
)
def test_samples_are_recovered_from_what_was_told(name, fields):
    """Where nothing left the bounds, the recovered samples are those that ask kept."""
    space = Space({"w": weights(6)})
    b = Bench(factory(name)(space, population=16), space)
    state, _ = b.advance(b.start(), b.world(), 5)
    genomes, _, asked = b.strategy.ask(jax.random.key(5), state)
    with jax.numpy_rank_promotion("allow"):
        found = RECOVER[METHODS[name].algorithm](asked.library, genomes / METHODS[name].sigma)
    for field in fields:
        np.testing.assert_allclose(getattr(found, field), getattr(asked.library, field), atol=2e-4)


def test_a_library_that_breaks_down_stands_still():
    """An update that makes a finite number of the state non-finite is dropped."""
    old = {"mean": jnp.asarray([1.0, 2.0]), "best": jnp.asarray(jnp.inf), "count": jnp.int32(3)}
    assert parts.still_finite({**old, "best": jnp.asarray(1.0)}, old)
    assert not parts.still_finite({**old, "mean": jnp.asarray([1.0, jnp.nan])}, old)


# --- the others --------------------------------------------------------------------------------------


def test_sobol_generations_are_one_balanced_sequence():
    strategy = factory("sobol")(PLANE, population=16)
    state, rows = strategy.init(jax.random.key(3), None), []
    for generation in range(4):
        genomes, _, state = strategy.ask(jax.random.key(generation), state)
        state = strategy.tell(jax.random.key(9), state, genomes, scored(np.arange(16.0)))
        rows.append(np.asarray(genomes))
    points = np.concatenate(rows)
    assert points[0].tolist() == [0.5, 0.5]  # the start
    # 64 points of a (0, 2)-sequence: every one of 8 x 8 cells holds one; the start took the place of one.
    cells = {tuple(cell) for cell in np.floor(points[1:] * 8).astype(int)}
    assert len(cells) == 63


def test_random_search_recommends_the_largest_gain_on_its_own_generation():
    strategy = factory("random_search")(PLANE, population=4)
    state = strategy.init(jax.random.key(0), None)
    chosen = None
    for generation, fitness in enumerate(([5.0, 6.0, 7.0, 8.0], [100.0, 104.0, 105.0, 106.0], [0.0, 0.1, 0.2, 0.3])):
        genomes, _, state = strategy.ask(jax.random.key(generation), state)
        state = strategy.tell(jax.random.key(9), state, genomes, scored(fitness))
        chosen = genomes[0] if generation == 1 else chosen
    assert np.array_equal(strategy.recommend(state), chosen)


def test_tpe_and_nsga2_see_columns_as_they_are():
    space = Space({"n": integer(3, 7), "c": categorical(("a", "b", "c")), "x": real(-1, 1)})
    for name in ("tpe", "nsga2"):
        strategy = factory(name)(space, population=8)
        state = strategy.init(jax.random.key(0), None)
        genomes, _, state = strategy.ask(jax.random.key(1), state)
        bins = np.asarray(genomes)[1:, :2] * np.array([5, 3])
        np.testing.assert_allclose(bins - np.floor(bins), 0.5, atol=1e-5)


def test_nsga2_keeps_and_recommends_what_nothing_beats():
    strategy = factory("nsga2")(PLANE, population=8)
    state = strategy.init(jax.random.key(0), None)
    genomes, _, state = strategy.ask(jax.random.key(1), state)
    fitness = np.array([[0, 4], [1, 1], [4, 0], [5, 5], [6, 6], [7, 7], [8, 8], [9, 9]], np.float32)
    state = strategy.tell(jax.random.key(2), state, genomes, scored(fitness))
    assert np.array_equal(strategy.recommend(state), np.asarray(genomes)[1])
    genomes, parents, state = strategy.ask(jax.random.key(3), state)
    better = np.array([[2.0, 0.5]] + [[10, 10]] * 7, np.float32)
    state = strategy.tell(jax.random.key(4), state, genomes, scored(better))
    assert [1, 0] in state.ids.tolist() and [0, 7] not in state.ids.tolist()
    assert set(map(tuple, np.asarray(parents)[0].tolist())) == {(0, i) for i in range(8)} | {(-1, -1)}
    with pytest.raises(ConfigError, match=r"expected 2 objectives, got 3. Use nsga2\(space, objectives=3\)"):
        strategy.tell(jax.random.key(4), state, genomes, scored(np.ones((8, 3))))


def test_all_kinds_are_searched_by_someone():
    assert {name for name, entry in CATALOGUE.items() if entry.searches == frozenset(PLAIN)} >= {
        "genetic",
        "tpe",
        "nsga2",
    }

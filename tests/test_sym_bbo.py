"""Update rules of optimizers: runs recounted by hand, random search worth 1, families that are sealed stay sealed."""

import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli

import evometa
from evometa.errors import ConfigError
from evometa.evaluate.cell import train_and_judge
from evometa.programs.code import assemble
from evometa.programs.interpret import prepare
from evometa.programs.listing import parse
from evometa.programs.vocabularies import POPULATION
from evometa.study_plan import plan
from evometa.tasks import sym_bbo as module
from evometa.tasks.functions import FAMILIES, functions, value
from evometa.tasks.parts import references, swarm
from evometa.tasks.sym_bbo import sym_bbo

pytest_plugins = ["shared"]

ROOT = Path(__file__).parent.parent
SMALL = {"dimension": 2, "population": 6, "iterations": 12, "instances": 3}
NOWHERE = "next = copy(x)"
ANYWHERE = "y = mul(uniform, 10.0)\nnext = sub(y, 5.0)"


def small(**options):
    return sym_bbo(**{**SMALL, **options})


def query(task, name="rastrigin"):
    return task.domain(name).queries[module.QUERY]()


def coded(rule):
    """A rule by its name or its lines."""
    return assemble(parse(POPULATION, rule))


@cache
def judge(**options):
    """`candidate, key -> metrics` on a function, compiled once."""
    task = small(population=8, iterations=40, **options)
    space = task.space

    @jax.jit
    def one(key, genome, data):
        return train_and_judge(task, space.decode(genome), key, {}, {module.QUERY: data})[module.QUERY]

    def on(candidate, name="rastrigin", key=3):
        genome = candidate if isinstance(candidate, np.ndarray) else space.encode(candidate or task.baseline)
        genome = jnp.asarray(genome)
        return {k: float(v) for k, v in one(jax.random.key(key), genome, query(task, name)).items()}

    return on


@cache
def _optimize(count, population, iterations):
    def run(key, code, greedy, landscapes):
        rule = swarm.Rule(prepare(POPULATION, code), greedy)
        progress = jnp.arange(iterations) / iterations
        return swarm.optimize(key, POPULATION, rule, landscapes, jnp.arange(population), progress)

    return jax.jit(run)


def optimize(rule, select="always", function="rastrigin", key=0, iterations=12, count=3, population=6, size=2):
    """log10 regret `[count]` of a rule by its lines."""
    landscapes = swarm.instances(jax.random.key(7), module.shape_of(function, size), count)
    run = _optimize(count, population, iterations)
    return np.asarray(run(jax.random.key(key), coded(rule), select == "greedy", landscapes))


def test_the_vocabulary_is_what_a_run_gives():
    assert {register.name for register in POPULATION.inputs} == set(swarm.GIVEN)
    assert {register.name for register in POPULATION.outputs} == set(swarm.READ)


# --- a run -------------------------------------------------------------------------------------------


def recounted(rule, select, key, landscapes, population, iterations):
    """The same run in NumPy loops, one individual after the other, for `rule(place, own, best, luck, memory)`."""
    count, size = landscapes["optimum"].shape
    shape = (count, population, size)
    start_key, key = jax.random.split(jax.random.key(key))
    x = np.array(jax.random.uniform(start_key, shape, minval=-5.0, maxval=5.0))

    one = jax.jit(value)

    def height(k, place):
        here = {**landscapes, "optimum": landscapes["optimum"][k], "rotation": landscapes["rotation"][k]}
        return float(one(jnp.asarray(place), here))

    f = np.array([[height(k, place) for place in x[k]] for k in range(count)])
    own, held, memory = x.copy(), f.copy(), np.zeros(shape)
    for number in range(1, iterations):
        uniform_key, _, other_key = jax.random.split(jax.random.fold_in(key, number), 3)
        luck = np.asarray(jax.random.uniform(uniform_key, shape[1:]))
        others = np.asarray(swarm.three_others(other_key, jnp.arange(population)))
        before = x.copy()
        champions = [own[k, held[k].argmin()].copy() for k in range(count)]
        for k in range(count):
            for i in range(population):
                friends = [before[k, others[j, i]] for j in range(3)]
                place, memory[k, i] = rule(before[k, i], own[k, i], champions[k], friends, luck[i], memory[k, i])
                place = np.asarray(swarm.into_box(jnp.float32(place), before[k, i]))
                new = height(k, place)
                if select == "always" or new < f[k, i]:
                    x[k, i], f[k, i] = place, new
                if new < held[k, i]:
                    own[k, i], held[k, i] = place, new
    return np.log10(held.min(axis=1) + 1e-8)


def de(x, own, best, friends, luck, memory):
    return np.where(luck < 0.9, friends[0] + 0.5 * (friends[1] - friends[2]), x), memory


def drift(x, own, best, friends, luck, memory):
    velocity = 0.7 * memory + luck * (own - x) + luck * (best - x)
    return x + velocity, velocity


DE = "y = sub(other2, other3)\ny = mul(y, 0.5)\ny = add(other1, y)\nz = sub(0.9, uniform)\nnext = where(z, y, x)"
DRIFT = """velocity = mul(velocity, 0.7)
y = sub(own_best, x)
y = mul(y, uniform)
velocity = add(velocity, y)
y = sub(best, x)
y = mul(y, uniform)
velocity = add(velocity, y)
next = add(x, velocity)"""


@pytest.mark.parametrize(("lines", "rule", "select"), [(DE, de, "greedy"), (DRIFT, drift, "always")])
def test_a_run_recounted(lines, rule, select):
    """Selection, memory, own and common best places, folding and evaluations are as they are said to be."""
    landscapes = swarm.instances(jax.random.key(7), module.shape_of("rastrigin", 2), 3)
    ours = optimize(lines, select)
    np.testing.assert_allclose(ours, recounted(rule, select, 0, landscapes, 6, 12), atol=2e-3)


def test_what_moves_nothing_stays_at_its_first_places():
    start = optimize(NOWHERE, iterations=2)
    np.testing.assert_array_equal(start, optimize(NOWHERE, iterations=12))
    assert (optimize(DE, "greedy", iterations=12) <= start).all()


def test_the_best_place_seen_counts_even_where_it_is_left():
    """Always moved to uniform places, a run is a random search: longer is better on average."""
    few, many = (np.mean([optimize(ANYWHERE, iterations=n, key=k) for k in range(20)]) for n in (2, 12))
    assert many < few - 0.3


def test_random_places_are_worth_one():
    """The zero point of the score: uniform places at the same number of evaluations."""
    for name in ("sphere", "rastrigin", "bent_cigar"):
        candidate = {"rule": coded(ANYWHERE), "select": "always"}
        found = judge(instances=32)(candidate, name)
        assert found["loss"] == pytest.approx(1.0, abs=0.03), name
        assert found["decades"] == pytest.approx(0.0, abs=0.25)
        assert found["loss"] == pytest.approx(1.0 + found["decades"] / (found["log_regret"] - found["decades"] + 8.0))


def test_more_random_search_finds_more():
    # The best of n places in D dimensions has f ~ n^(-2/D).
    few, many = (module.random_search("sphere", 3, n) for n in (30, 3000))
    assert few - many == pytest.approx(4 / 3, abs=0.2)


def test_others_are_three_different_ones():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(swarm.three_others, (0, None), 1))(keys, jnp.arange(5)))
    everyone = np.concatenate([drawn, np.broadcast_to(np.arange(5), (1, 4000, 5))])
    assert (np.sort(everyone, axis=0)[1:] != np.sort(everyone, axis=0)[:-1]).all()
    for i in range(5):
        trios, counts = np.unique(drawn[:, :, i], axis=1, return_counts=True)
        assert trios.shape[1] == 24 and (abs(counts - 4000 / 24) < 5 * math.sqrt(4000 / 24)).all()


def test_places_are_folded_into_the_box():
    x = jnp.float32([4.0, 6.0, -7.5, 16.0, 5e30, np.nan, np.inf])
    folded = np.asarray(swarm.into_box(x, jnp.full(7, 1.5)))
    np.testing.assert_allclose(folded[:4], [4.0, 4.0, -2.5, -4.0])
    assert abs(folded[4]) <= 5.0 and (folded[5:] == 1.5).all()
    inside = np.random.default_rng(0).uniform(-5, 5, 1000).astype(np.float32)
    np.testing.assert_array_equal(inside, swarm.into_box(jnp.asarray(inside), 0.0))


def test_a_rule_that_explodes_only_loses():
    """Overflow in the rule's memory is no failure: whoever cannot be placed stays."""
    wild = "velocity = add(velocity, 30.0)\nvelocity = mul(velocity, velocity)\nnext = add(x, velocity)"
    assert np.isfinite(optimize(wild, iterations=12)).all()


def test_a_refused_program_fails():
    space = small().space
    refused = space.encode({"rule": coded(DE), "select": "greedy"})
    refused[0] = 99.0  # no such operation; a space encodes no such thing
    assert np.isnan(judge(instances=32)(refused)["loss"])
    assert judge(instances=32)(None)["loss"] < 1.0


# --- landscapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["rastrigin", "rastrigin:separable"])
def test_instances_differ_and_have_their_optimum_inside(function):
    landscapes = jax.tree.map(np.asarray, swarm.instances(jax.random.key(1), module.shape_of(function, 4), 50))
    assert np.abs(landscapes["optimum"]).max() <= 4.0 and np.abs(landscapes["optimum"]).max() > 3.5
    assert len(np.unique(landscapes["optimum"][:, 0])) == 50
    rotation = landscapes["rotation"]
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, 1, 2), np.tile(np.eye(4), (50, 1, 1)), atol=1e-5)
    assert (np.abs(rotation - np.eye(4)).max() > 0.5) == (function == "rastrigin")
    f = swarm.heights(jnp.asarray(landscapes["optimum"])[:, None], landscapes)
    np.testing.assert_array_equal(f, 0.0)


def test_changed_families():
    """A change is one of rotation or steepness, and nothing else."""
    for role in (module.TRAIN, module.VALIDATION, module.TEST):
        for name in role:
            family, _, change = name.partition(":")
            plain, changed = module.shape_of(family, 5), module.shape_of(name, 5)
            assert changed["form"] == plain["form"]
            assert np.array_equal(changed["scale"], plain["scale"]) == (change != "steep"), name
            assert changed["rotated"] != plain["rotated"] or change in ("", "steep"), name
    assert module.shape_of("schaffer:steep", 5)["scale"][-1] == pytest.approx(1000.0)


# --- the task ----------------------------------------------------------------------------------------


def test_sealed_families_are_those_of_the_functions_task():
    """No family of a sealed domain, here or there, is ever searched on."""
    task, other = sym_bbo(), functions()
    families = {role: {task.domain(n).tags["family"] for n in getattr(task.split, role)} for role in ("train", "validation", "test")}  # fmt: skip
    assert not families["train"] & families["validation"] and not families["test"] & (
        families["train"] | families["validation"]
    )
    assert families["test"] == {other.domain(name).tags["family"] for name in other.split.test}
    assert set.union(*families.values()) == set(FAMILIES)
    assert (len(task.split.train), len(task.split.validation), len(task.split.test)) == (8, 4, 35)


def test_shifts_are_as_tagged(monkeypatch):
    monkeypatch.setattr(module, "random_search", lambda *a: 0.0)
    task = sym_bbo()
    sizes = {}
    for name in task.split.test:
        tags = task.domain(name).tags
        sizes.setdefault(tags["shift"], set()).add((tags["dimension"], tags["population"], tags["iterations"]))
    assert sizes == {
        "functions": {("5", "30", "50")},
        "dimension": {("10", "30", "50"), ("20", "30", "50")},
        "population": {("5", "100", "50")},
        "horizon": {("5", "30", "250")},
    }
    long = query(task, "griewank-long")
    assert long["progress"].shape == (250,) and long["individuals"].shape == (30,)
    assert query(task, "griewank-large")["individuals"].shape == (100,)
    assert query(task, "griewank-d4")["scale"].shape == (20,)


def test_train_shapes_are_equal(monkeypatch):
    """One compiled program for the whole search."""
    monkeypatch.setattr(module, "random_search", lambda *a: 0.0)
    task = small()
    names = (*task.split.train, *task.split.validation)
    shapes = {str(jax.tree.map(lambda x: (x.shape, x.dtype), query(task, name))) for name in names}
    assert len(shapes) == 1


def test_construction_draws_nothing(monkeypatch):
    """A sealed function exists when it is opened and not before."""
    monkeypatch.setattr(module, "landscape", lambda *a: pytest.fail("made at construction"))
    monkeypatch.setattr(module, "random_search", lambda *a: pytest.fail("searched at construction"))
    assert len(sym_bbo().domains) == 47
    assert "scale" not in sym_bbo().domain("sphere").support()


@pytest.mark.parametrize("name", list(module.KNOWN))
def test_a_known_rule_is_its_program(name):
    """The tuned arm and the searched one mean the same by `de`, and the constants are what is tuned."""
    made = []
    for task, rule in ((small(baseline=name), "program"), (small(rule=name), name)):
        candidate = task.space.decode(jnp.asarray(task.space.encode(task.baseline)))
        made.append(module.fit(None, candidate, {}, rule=rule))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *made)
    space = small(rule=name).space
    assert {column.name for column in space.columns} <= {f"c{i}" for i in range(POPULATION.constants)}
    high = module.fit(None, space.decode(jnp.ones(space.dimension)), {}, rule=name)
    used = np.asarray(made[1].ready.constants) > 0
    np.testing.assert_allclose(high.ready.constants, np.where(used, 5.0, 1.0) * made[1].ready.constants, rtol=1e-3)


def test_cma_es_searches():
    """It gets far below random search and what the baseline gets with as many evaluations."""
    ours, theirs = judge(rule="cma_es", instances=32)(None, "sphere"), judge(instances=32)(None, "sphere")
    assert ours["loss"] < 0.5 and ours["decades"] < theirs["decades"] - 1.0
    assert {name.replace("_", "-") for name in references.METHODS} <= set(small().controls)


def test_the_budget_of_a_strategy_is_kept(monkeypatch):
    counted = []
    heights = references.heights
    monkeypatch.setattr(references, "heights", lambda x, own: counted.append(x.shape) or heights(x, own))
    lengths = []
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda f, i, xs: lengths.append(xs.shape[0]) or scan(f, i, xs))
    landscapes = swarm.instances(jax.random.key(0), module.shape_of("sphere", 5), 1)
    for name, population in (("sep_cma_es", 8), ("learned_es", 10)):
        counted.clear()
        lengths.clear()
        found = jax.eval_shape(
            lambda k, own, n=name: references.search(k, n, 3.0, own, 10, 7), jax.random.key(0), landscapes
        )
        assert found.shape == (1,)
        assert set(counted) == {(1, population, 5)}
        assert lengths[0] * population <= 70 < (lengths[0] + 1) * population


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "cmaes"}, 'Did you mean "cma_es"'),
        ({"baseline": "dee"}, 'Did you mean "de"'),
        ({"shifts": ["dimensions"]}, 'Did you mean "dimension"'),
        ({"shifts": "dimension"}, "a list of shifts"),
        ({"dimension": 1}, "dimension as a whole number >= 2, got 1"),
        ({"population": 3}, "population as a whole number >= 4"),
        ({"iterations": 1}, "iterations as a whole number >= 2"),
        ({"instances": 2.0}, "instances as a whole number >= 1"),
    ],
)
def test_bad_options_say_what_was_expected(options, said):
    with pytest.raises(ConfigError, match=said):
        sym_bbo(**options)


# --- as a whole --------------------------------------------------------------------------------------


def test_a_search_of_rules_runs(tmp_path, monkeypatch, compile_cache):
    """The smoke profile, with random programs: what linear_gp does is for its own tests."""
    monkeypatch.chdir(tmp_path)
    said = cli("run", "sym_bbo", "--profile", "smoke", "--strategy", "random_search", "--name", "rules")
    assert said.code == 0, said.err
    run = evometa.open("rules")
    assert np.isfinite(run.champion.validation)
    assert set(run.params) == {"rule", "select"}


@pytest.mark.parametrize("profile", [None, "smoke", "standard", "full"])
def test_the_study_can_be_planned(profile):
    study = plan(ROOT / "studies" / "sym_bbo.toml", profile)
    assert len({v.evaluations for v in study.variants if v.searches}) == 1
    assert {"gp-de", "gp-scratch", "random-search", "de", "pso", "static", "cma-es"} <= {v.arm for v in study.variants}


def test_every_function_is_in_the_documentation():
    page = (ROOT / "docs" / "sym_bbo.md").read_text()
    rows = dict(line.strip("| ").split(" | ")[:2] for line in page.splitlines() if line.startswith("| `"))
    for role, names in (("train", module.TRAIN), ("validation", module.VALIDATION), ("test", module.TEST)):
        for name in names:
            assert rows.get(f"`{name.replace(':', '_')}`") == role, name

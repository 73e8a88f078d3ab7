"""POET: niches keep their best, environments enter by a criterion, solvers move; and the carts that it is for."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli, one_line

import evometa
from evometa.errors import ConfigError
from evometa.evaluate.cell import train_and_judge
from evometa.programs.vocabularies import LOSS
from evometa.space import Space, real, weights
from evometa.strategies import poet as module
from evometa.strategies.poet import poet
from evometa.tasks import courses as carts
from evometa.tasks.courses import courses
from evometa.types import Failure, Scores

pytest_plugins = ["shared"]

WORLDS = Space({"environment": {"where": real(0, 1)}, "solver": {"w": weights((2,))}})
NINE = {"population": 9, "transfer": 3, "reproduce": 4}


def scores(loss):
    """Scores of a generation with these losses; NaN fails."""
    loss = jnp.asarray(loss, jnp.float32)
    bad = ~jnp.isfinite(loss)
    failure = jnp.where(bad, Failure.NONFINITE, Failure.OK).astype(jnp.int8)
    fitness = jnp.where(bad, jnp.inf, loss)[:, None]
    return Scores(loss[:, None], jnp.ones((len(loss), 1), bool), fitness, jnp.zeros((len(loss), 0)), failure, {})


def distance(genomes):
    """The solver's first number should be twice the environment, the second nothing: a loss of 0 to 1."""
    off = (genomes[:, 1] - 2.0 * genomes[:, 0]) ** 2 + genomes[:, 2] ** 2
    return 1.0 - np.exp(-np.asarray(off))


@cache
def compiled(space, options):
    """A strategy, its ask and its tell: compiled once for all walks."""
    made = poet(space, **dict(options))
    return made, jax.jit(made.ask), jax.jit(made.tell)


class Walk:
    """A search told `loss(genomes)`, generation by generation, with everything it asked."""

    def __init__(self, loss=distance, space=WORLDS, start=None, **options):
        self.strategy, self.ask, self.tell = compiled(space, tuple(sorted({**NINE, **options}.items())))
        self.state = self.strategy.init(jax.random.key(0), None if start is None else jnp.asarray(start))
        self.loss, self.generation, self.log = loss, 0, []

    def go(self, generations):
        for _ in range(generations):
            key = jax.random.fold_in(jax.random.key(1), self.generation)
            genomes, parents, asked = self.ask(key, self.state)
            told = self.loss(np.asarray(genomes))
            before, self.state = self.state, self.tell(key, asked, genomes, scores(told))
            self.log.append((np.asarray(genomes), np.asarray(parents), np.asarray(told), before, self.state))
            self.generation += 1
        return self


START = np.float32([0.1, 0.2, 0.0])


def test_a_local_generation_asks_the_solver_again_and_mutants_of_it():
    genomes, parents, told, before, after = Walk(start=START).go(2).log[1]
    np.testing.assert_array_equal(genomes[0], before.genomes[0])
    np.testing.assert_array_equal(genomes[:, 0], np.repeat(before.genomes[0, 0], 9))
    assert len(np.unique(genomes[:, 1])) == 9, "all others are mutants"
    assert (parents[:, 0] == np.asarray(before.ids[0])[None]).all() and (parents[:, 1] == -1).all()
    np.testing.assert_array_equal(after.genomes[0], genomes[told.argmin()])
    assert after.ids[0].tolist() == [1, told.argmin()] and float(after.loss[0]) == pytest.approx(told.min())


def test_an_environment_enters_by_the_minimal_criterion():
    """Too easy and too hard ones stay out and are counted; what enters is as it was asked."""
    for loss, entered in ((0.01, False), (0.9, False), (0.3, True)):
        walk = Walk(lambda genomes, loss=loss: np.full(9, loss)).go(4)
        genomes, _, _, before, after = walk.log[3]
        assert int(after.phase) == module.REPRODUCE
        added = np.flatnonzero((np.asarray(before.born) < 0) & (np.asarray(after.born) >= 0))
        assert (len(added) == 2) == entered
        assert np.asarray(after.counts[:2]).tolist() == [3 * (loss == 0.01), 3 * (loss == 0.9)]
        for niche in added:
            assert after.born[niche] == 3
            np.testing.assert_array_equal(after.genomes[niche], genomes[int(after.ids[niche, 1])])
            assert after.genomes[niche, 0] != before.genomes[0, 0], "another environment"
            np.testing.assert_array_equal(after.genomes[niche, 1:], before.genomes[0, 1:], "with the solver as it was")


def test_the_most_novel_enters_first():
    walk = Walk(lambda genomes: np.full(9, 0.3), admitted=1).go(4)
    genomes, _, _, before, after = walk.log[3]
    offered = np.abs(genomes[::3, 0] - float(before.genomes[0, 0]))
    assert abs(float(after.genomes[1, 0]) - float(before.genomes[0, 0])) == pytest.approx(offered.max())


def test_where_all_niches_are_taken_the_oldest_is_given_up():
    walk = Walk(lambda genomes: np.full(9, 0.3)).go(24)
    born = np.asarray([state.born for *_, state in walk.log])
    assert (born[-1] >= 0).all() and born[-1].min() > born[7].min()
    assert int(walk.state.counts[2]) >= 3
    assert any("oldest" in note for note in walk.strategy.notes(walk.state))


def test_a_better_solver_from_elsewhere_takes_the_niche_and_has_two_parents():
    """The solver of one niche is made the best everywhere: at the next table of transfers it has them all."""
    walk = Walk(lambda genomes: np.full(9, 0.3)).go(6)
    assert (np.asarray(walk.state.born) >= 0).sum() == 3
    gifted = walk.state.genomes.at[1, 1:].set(jnp.float32([5.0, 5.0])).at[2, 1:].set(jnp.float32([1.0, 2.0]))
    walk.state = walk.state._replace(genomes=gifted, generation=jnp.int32(6))
    walk.generation = 6
    walk.loss = lambda genomes: np.where(np.all(genomes[:, 1:] == 5.0, axis=1), 0.1, 0.3)
    genomes, parents, _, before, after = walk.go(1).log[-1]
    assert int(after.phase) == module.TRANSFER
    np.testing.assert_array_equal(np.asarray(after.genomes)[:, 1:], np.full((3, 2), 5.0))
    np.testing.assert_array_equal(after.genomes[:, 0], before.genomes[:, 0], "environments stay where they are")
    for niche in (0, 2):
        row = int(after.ids[niche, 1])
        assert parents[row].tolist() == [before.ids[1].tolist(), before.ids[niche].tolist()]
    assert (parents[int(after.ids[1, 1]), 1] == -1).all(), "at home it was only asked again"
    assert len(np.unique(genomes, axis=0)) == 9, "every solver in every environment"
    assert walk.strategy.operators == ("initial", "mutation", "transfer")
    np.testing.assert_allclose(after.standing, [0.3, 0.1, 0.3])
    np.testing.assert_array_equal(walk.strategy.recommend(after), after.genomes[1])


def test_niches_fill_and_their_solvers_follow():
    """From one environment to several, each with a solver that fits it."""
    walk = Walk(start=START, population=36, transfer=4, reproduce=6, easiest=0.001, hardest=0.7).go(120)
    held = np.asarray(walk.state.genomes)
    assert (np.asarray(walk.state.born) >= 0).all()
    assert np.ptp(held[:, 0]) > 0.3, "environments have spread"
    assert np.median(distance(held)) < 0.02
    assert (
        distance(np.repeat(START[None], 6, axis=0) * [[1, 1, 1]] + (held * [[1, 0, 0]] - START * [1, 0, 0])).max() > 0.1
    )


def test_a_failed_row_takes_no_niche():
    def half(genomes):
        told = np.full(9, 0.3)
        told[::2] = np.nan
        return told

    walk = Walk(half).go(14)
    for _, _, told, before, after in walk.log:
        changed = np.flatnonzero((np.asarray(after.ids) != np.asarray(before.ids)).any(axis=1))
        assert np.isfinite(told[np.asarray(after.ids)[changed, 1]]).all()


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        (WORLDS, {"easiest": 0.8}, "expected easiest < hardest, got 0.8 and 0.7"),
        (WORLDS, {"population": 3}, "at least 4, got 3"),
        (WORLDS, {"transfer": 0}, "expected transfer in 1 .. "),
        (WORLDS, {"reach": 0.0}, "expected reach in"),
        (Space({"environment": {"where": real(0, 1)}}), {}, "there is no solver to search"),
        (Space({"rule": evometa.program(LOSS)}), {}, "searches .* columns, got program"),
    ],
)
def test_bad_options(space, options, said):
    with pytest.raises(ConfigError, match=said):
        poet(space, **options)


def test_without_environments_there_is_one_niche():
    walk = Walk(
        lambda genomes: np.sum(genomes**2, axis=1), Space({"w": weights((2,))}), start=np.float32([2.0, 2.0])
    ).go(40)
    assert (np.asarray(walk.state.born) >= 0).sum() == 1 and float(walk.state.loss[0]) < 0.05
    assert any("one environment" in note for note in walk.strategy.notes(walk.state))


# --- carts -------------------------------------------------------------------------------------------

TASK = courses()


def controller(**numbers):
    """A solver that is zero but for these."""
    made = {name: np.zeros_like(value) for name, value in TASK.baseline["solver"].items()}
    for name, entries in numbers.items():
        for place, value in entries.items():
            made[name][place] = value
    return {name: jnp.asarray(value, jnp.float32) for name, value in made.items()}


MOMENTUM = controller(hidden={(4, 0): 100.0}, bias={0: 0.3}, out={0: 5.0})  # always the way that it rolls
IDLE = controller()
drive = jax.jit(lambda solver, course, phases: carts.drive(solver, course, phases, 200))


def test_on_a_flat_road_the_cart_accelerates_as_it_should():
    solver = {name: jnp.asarray(value, jnp.float32) for name, value in TASK.baseline["solver"].items()}
    far, left = drive(solver, jnp.zeros(4), jnp.zeros(2))
    # Half of the acceleration times the square of the time, to a step: the goal after sqrt(2 / a) seconds.
    goal = np.sqrt(2.0 / (carts.MOTOR * np.tanh(2.0 * np.tanh(1.0)))) / carts.STEP
    assert float(far) == 1.0 and float(left) == pytest.approx(1.0 - goal / 200, abs=0.01)
    assert float(drive(IDLE, jnp.zeros(4), jnp.zeros(2))[0]) == 0.0


def test_steep_hills_need_momentum():
    phases = jax.random.uniform(jax.random.key(0), (64, 2), maxval=6.28)
    full = {name: jnp.asarray(value, jnp.float32) for name, value in TASK.baseline["solver"].items()}
    steep = jnp.float32([0.6, 0.2, 0.1, 0.1])
    found = [np.mean(jax.vmap(lambda p, s=s: drive(s, steep, p)[0])(phases)) for s in (full, MOMENTUM)]
    assert found[0] < 0.8 and found[1] > found[0] + 0.1


def test_only_the_own_domain_drives_the_candidates_course():
    space = TASK.space
    easy = {"environment": carts.EASY, "solver": TASK.baseline["solver"]}
    hard = {"environment": dict.fromkeys(carts.ENVIRONMENT, 1.0), "solver": TASK.baseline["solver"]}

    @jax.jit
    def loss(genome, query):
        judged = train_and_judge(TASK, space.decode(genome), jax.random.key(2), {}, {carts.QUERY: query})
        return judged[carts.QUERY]["loss"]

    for name, differ in (("own", True), ("rolling", False), ("muddy", False)):
        query = TASK.domain(name).queries[carts.QUERY]()
        one, two = (float(loss(jnp.asarray(space.encode(c)), query)) for c in (easy, hard))
        assert (one != two) == differ and min(one, two) >= 0.0 and max(one, two) <= 1.0


def test_what_is_sealed_and_what_is_held():
    assert {domain.name for domain in TASK.domains if domain.sealed} == set(TASK.split.test) == set(carts.TEST)
    assert TASK.split.train == ("own",) and set(TASK.split.validation) == set(carts.VALIDATION)
    held = courses(held="hard")
    assert not any(column.name.startswith("environment") for column in held.space.columns)
    candidate = held.space.decode(jnp.zeros(held.space.dimension))
    assert {name: round(float(value), 6) for name, value in candidate["environment"].items()} == carts.HARD


@pytest.mark.parametrize(("options", "said"), [({"held": "hardest"}, 'Did you mean "hard"'), ({"roads": 0}, "roads as a whole number")])  # fmt: skip
def test_bad_task_options(options, said):
    with pytest.raises(ConfigError, match=said):
        courses(**options)


def test_a_run_keeps_its_transfers(tmp_path, monkeypatch, compile_cache):
    """Niches, transfers and their parents are in the lineage; a bad option is one line."""
    monkeypatch.chdir(tmp_path)
    wrong = cli("run", "courses", "--strategy", "poet", "--set", "strategy_options.easiest=2", "--name", "w")
    one_line(wrong, 4, "expected easiest < hardest")
    options = ("strategy_options.transfer=3", "strategy_options.reproduce=2", "strategy_options.hardest=0.99")
    given = [word for option in options for word in ("--set", option)]
    said = cli("run", "courses", "--profile", "smoke", "--generations", 8, *given, "--name", "p", "--json")
    assert said.code == 0, said.err
    question = "SELECT operator, min(len(parents)) AS parents FROM lineage GROUP BY operator ORDER BY operator"
    rows = {row["operator"]: row for row in cli("archive", "query", "p", question, "--json").data}
    assert set(rows) == {"initial", "mutation", "transfer"}
    assert rows["transfer"]["parents"] == 2 and rows["mutation"]["parents"] == 1

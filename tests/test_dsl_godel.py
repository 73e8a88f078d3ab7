"""Agents that write programs: problems can be solved, the sealed stay sealed, lifetimes do what they say, better ones win."""

import inspect
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli

from evometa.errors import ConfigError
from evometa.evaluate.cell import train_and_judge
from evometa.export.module import python_module
from evometa.programs.code import Code, Program, assemble, disassemble, tables
from evometa.programs.interpret import Machine, prepare
from evometa.programs.listing import parse
from evometa.programs.operations import OPERATIONS, arithmetic
from evometa.programs.vary import random_programs
from evometa.strategies import open_ended_variation as variation
from evometa.strategies.catalogue import CATALOGUE
from evometa.study_plan import plan
from evometa.tasks import dsl_godel as module
from evometa.tasks.dsl_godel import dsl_godel
from evometa.tasks.parts import lifetime, problems, synthesis
from evometa.tasks.parts.synthesis import LISTS, TERSE

pytest_plugins = ["shared"]

ROOT = Path(__file__).parent.parent
DIALECT = {name: TERSE if name in problems.DIALECT else LISTS for name in problems.PROBLEMS}


def coded(vocabulary, lines):
    return assemble(parse(vocabulary, lines.replace("; ", "\n")))


@cache
def runner(vocabulary):
    return jax.jit(lambda tokens, x, y: synthesis.run(vocabulary, tokens, x, y))


def lists(seed, count=12, most=9):
    """Fresh lists: not those of any problem."""
    return np.random.default_rng(seed).integers(-most, most + 1, (2, count, synthesis.LENGTH)).astype(np.float32)


# --- problems ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_problem_is_solved_by_its_program(name):
    """The program fits its dialect and computes the function, on lists of every range."""
    made = problems.PROBLEMS[name]
    code = coded(DIALECT[name], made.program)
    for seed, most in enumerate((3, 9, 30)):
        x, y = lists(seed, most=most)
        np.testing.assert_array_equal(runner(DIALECT[name])(code.tokens, x, y), made.function(x, y), err_msg=name)


def test_no_problem_is_trivial_and_none_is_there_twice():
    """No answer is what an empty program or an input gives, and no two problems of a dialect are the same function."""
    x, y = lists(3, count=40)
    seen = {}
    for name, made in problems.PROBLEMS.items():
        out = np.asarray(made.function(x, y), np.float32)
        for trivial in (np.zeros_like(x), x, y, np.ones_like(x)):
            assert (out != trivial).any(), name
        assert seen.setdefault((DIALECT[name].name, out.tobytes()), name) == name
    assert [len(group) for group in (problems.TRAIN, problems.VALIDATION, problems.TEST, problems.DIALECT)] == [15, 15, 20, 15]  # fmt: skip


def test_sealed_problems_are_harder():
    steps = {label: [made.steps for made in group.values()] for label, group in (("train", problems.TRAIN), ("validation", problems.VALIDATION), ("test", problems.TEST))}  # fmt: skip
    assert min(steps["test"]) >= 3 and max(steps["train"] + steps["validation"]) <= 3
    assert np.mean(steps["test"]) > np.mean(steps["train"] + steps["validation"]) + 1


@pytest.mark.parametrize("name", [*problems.TRAIN, *problems.VALIDATION])
def test_examples_are_always_the_same_and_held_out_pairs_are_not_shown(name):
    shown, again = problems.examples(name, "shown"), problems.examples(name, "shown")
    assert all(np.array_equal(shown[key], again[key]) for key in shown)
    assert shown["x"].shape == (problems.SHOWN, synthesis.LENGTH)
    seen = {(*x, *y) for x, y in zip(shown["x"].tolist(), shown["y"].tolist(), strict=True)}
    for part in ("home", "away"):
        pairs = problems.examples(name, part)
        assert pairs["x"].shape == (problems.HELD, synthesis.LENGTH)
        assert not seen & {(*x, *y) for x, y in zip(pairs["x"].tolist(), pairs["y"].tolist(), strict=True)}
        assert abs(pairs["x"]).max() <= problems.RANGES[part][1]
    assert abs(problems.examples(name, "away")["x"]).max() > 9


def test_a_search_makes_no_sealed_example(monkeypatch):
    """Building the task makes no examples at all, and what a search loads is train and validation."""
    made = []
    real = problems.examples
    monkeypatch.setattr(problems, "examples", lambda name, part: made.append(name) or real(name, part))
    task = dsl_godel()
    assert not made
    for name in (*task.split.train, *task.split.validation):
        task.domain(name).support()
    assert set(made) == set(problems.TRAIN) | set(problems.VALIDATION)
    sealed = {domain.name for domain in task.domains if domain.sealed}
    assert sealed == set(task.split.test) == set(problems.TEST) | set(problems.DIALECT)


# --- the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [LISTS, TERSE], ids=lambda words: words.name)
def test_the_machine_is_the_house_machine(vocabulary):
    """Leaving out what has no effect changes nothing: random programs give what the interpreter gives."""
    x, y = lists(5, count=4)
    machine = Machine(vocabulary, (synthesis.LENGTH,) * 4)
    names = {register.name for register in vocabulary.inputs}

    @jax.jit
    def both(numbers):
        tokens = numbers.reshape(vocabulary.length, 5).astype(jnp.int32)
        ready = prepare(vocabulary, Code(tokens, jnp.zeros(0)))
        inputs = {k: v for k, v in synthesis.given(jnp.asarray(x), jnp.asarray(y)).items() if k in names}
        outputs, _ = machine.step(ready, machine.start(ready, {}), inputs)
        return outputs["out"].reshape(x.shape), synthesis.run(vocabulary, tokens, jnp.asarray(x), jnp.asarray(y))

    programs = random_programs(vocabulary, jax.random.key(0), 100)
    house, ours = jax.vmap(both)(programs)
    np.testing.assert_array_equal(house, ours)
    assert len(np.unique(np.asarray(ours).reshape(100, -1), axis=0)) > 30


LIST_OPERATIONS = {
    "reverse": lambda a: a[::-1],
    "sort": np.sort,
    "descend": lambda a: np.sort(a)[::-1],
    "cumsum": np.cumsum,
    "cummax": np.maximum.accumulate,
    "shift": lambda a: np.concatenate([[0], a[:-1]]),
    "rotate": lambda a: np.roll(a, -1),
    "delta": lambda a: np.diff(a, prepend=0),
    "layer_sum": lambda a: np.full(len(a), a.sum()),
    "layer_max": lambda a: np.full(len(a), a.max()),
    "layer_min": lambda a: np.full(len(a), a.min()),
    "layer_first": lambda a: np.full(len(a), a[0]),
}


@pytest.mark.parametrize("name", LIST_OPERATIONS)
@pytest.mark.parametrize("layers", [(5, 5), (1, 7), (20, 20), (3, 20)])
def test_operations_on_lists(name, layers):
    """Against NumPy, for layers of equal and different sizes, short and long."""
    values = np.random.default_rng(1).integers(-9, 10, sum(layers)).astype(np.float32)
    ends = np.cumsum(layers)
    expected = np.concatenate(
        [LIST_OPERATIONS[name](values[end - n : end]) for n, end in zip(layers, ends, strict=True)]
    )
    np.testing.assert_array_equal(arithmetic(name)(values, values, values, layers), expected)
    assert OPERATIONS[name].kind == ("layer" if name.startswith("layer") else "list")


def test_operations_on_numbers():
    a, b = np.float32([-5, 7, 7, 0, 5]), np.float32([3, 3, -3, 0, 0])
    for name, expected in {
        "mod": np.float32([1, 1, -2, 0, 0]), "half": np.float32([-3, 3, 3, 0, 2]), "relu": np.float32([0, 7, 7, 0, 5]),
        "less": np.float32([1, 0, 0, 0, 0]), "equal": np.float32([0, 0, 0, 1, 0]),
    }.items():  # fmt: skip
        np.testing.assert_array_equal(arithmetic(name)(a, b, b, (5,)), expected, err_msg=name)


def test_programs_on_lists_can_be_taken_home():
    """What `export --as python` writes computes the same: every problem's program, so nearly every operation."""
    x, y = lists(11, count=3)
    held = {"x": x.ravel(), "y": y.ravel(), "one": np.float32(1), "two": np.float32(2)}
    layers = (synthesis.LENGTH,) * 3
    for name, made in problems.PROBLEMS.items():
        space: dict = {}
        exec(python_module(parse(DIALECT[name], made.program.replace("; ", "\n")), "a test", {}), space)
        wanted = inspect.signature(space["update"]).parameters
        outputs, _ = space["update"](
            space["start"](layers=layers), layers=layers, **{k: v for k, v in held.items() if k in wanted}
        )
        found = np.broadcast_to(outputs["out"], x.size).reshape(x.shape)
        np.testing.assert_array_equal(found, made.function(x, y), err_msg=name)


def test_translation_keeps_what_the_dialect_has():
    program = parse(LISTS, "p = sort(x)\nq = add(x, y)\nout = sub(x, y)\nout = add(out, one)")
    tokens = synthesis.translate(LISTS, TERSE, jnp.asarray(assemble(program).tokens), tables(LISTS).arity)
    left = disassemble(TERSE, Code(np.asarray(tokens), np.zeros(0)))
    assert left == parse(TERSE, "out = sub(x, y)")


# --- lifetimes -----------------------------------------------------------------------------------------


@cache
def judged(**options):
    """`agents [A], key -> metrics {name: [A, problems]}` on the train problems; compiled once."""
    task = dsl_godel(**options)
    domains = [task.domain(name) for name in task.split.train]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    support = stack([domain.support() for domain in domains])
    queries = stack([{name: query() for name, query in domain.queries.items()} for domain in domains])

    @jax.jit
    def run(genomes, key):
        keys = jax.random.split(key, len(domains))

        def one(genome, key, support, queries):
            return train_and_judge(task, task.space.decode(genome), key, support, queries)

        cells = jax.vmap(one, (None, 0, 0, 0))
        return jax.vmap(cells, (0, None, None, None))(genomes, keys, support, queries)

    def on(agents, key=0):
        genomes = [one if isinstance(one, np.ndarray) else task.space.encode(one) for one in agents]
        genomes = jnp.stack([jnp.asarray(genome) for genome in genomes])
        return jax.tree.map(np.asarray, run(genomes, jax.random.key(key)))

    return on


def agent(solver="", mutation=""):
    return {"solver": module.coded(LISTS, solver), "mutation": module.coded(lifetime.MUTATION, mutation)}


def test_a_solver_program_that_is_right_is_kept():
    """No lifetime is worse than where it starts, and what it ends with is judged on all pairs."""
    for name, made in list(problems.TRAIN.items())[::3]:
        found = judged()([agent(made.program)])
        at = list(problems.TRAIN).index(name)
        for query in ("home", "away"):
            assert found[query]["loss"][0, at] == 0.0 and found[query]["solved"][0, at] == 1.0
        assert found["away"]["support_loss"][0, at] == 0.0
    empty = judged()([agent()])
    assert (empty["away"]["loss"] > 0).any()


def test_what_fits_the_examples_alone_is_told_apart():
    """x mod nothing: a program that is right where numbers are small only fails on `away`."""
    # Cut at 9, the largest number shown: right on `home`, wrong wherever `away` goes beyond.
    cut = "p = add(one, one); p = add(p, one); p = mul(p, p); q = sub(q, p); p = min(x, p); p = max(p, q); out = reverse(p)"
    found = judged()([agent(cut)])
    at = list(problems.TRAIN).index("reversed")
    assert found["home"]["loss"][0, at] == 0.0 and found["away"]["loss"][0, at] > 0.3


def test_agents_that_are_no_programs_fail():
    # As genomes, for a space encodes no such thing: an operation that is none, first in either program.
    broken, other = (dsl_godel().space.encode(agent()) for _ in range(2))
    broken[0] = other[LISTS.size] = 99.0
    found = judged()([broken, other, agent()])
    assert np.isnan(found["away"]["loss"][:2]).all() and np.isfinite(found["away"]["loss"][2]).all()


def test_edits_give_valid_programs_and_follow_the_weights():
    """Thousands of edits in a row: every program is valid and packed; a choice that weighs all is always made."""
    what = lifetime.choices(LISTS)
    total = sum(what.sizes)

    @jax.jit
    def walk(key, weight):
        def one(program, key):
            program, marks = lifetime.trial(LISTS, what, jax.random.uniform(key, (2, 9)), program, weight, 0.5)
            return program, (program, marks)

        return jax.lax.scan(one, jnp.zeros((LISTS.length, 5), jnp.int32), jax.random.split(key, 1000))[1]

    programs, marks = walk(jax.random.key(0), jnp.zeros(total))
    programs = np.asarray(programs)
    for tokens in programs[::7]:
        assert isinstance(disassemble(LISTS, Code(tokens, np.zeros(0))), Program)
    there = programs[:, :, 0] > 0
    assert (there[:, :-1] >= there[:, 1:]).all(), "instructions are at the front"
    lengths = there.sum(axis=1)
    assert lengths.min() <= 1 and lengths.max() == LISTS.length
    assert (np.asarray(marks).sum(axis=0) > 0).all(), "every choice is made now and then"

    starts = np.cumsum((0, *what.sizes))
    wish = np.zeros(total, np.float32)
    sort = starts[2] + LISTS.operations.index("sort") - 1
    wish[sort] = 30.0  # cut at 8: one in 230 is another
    chosen = np.asarray(walk(jax.random.key(1), jnp.asarray(wish))[1])[:, starts[2] : starts[3]].sum(axis=0)
    assert chosen[sort - starts[2]] > 0.98 * chosen.sum()


def test_a_better_mutation_program_is_a_better_improver():
    """The agent by hand against the seed, on train problems and several seeds: paired, far beyond luck."""
    seed, hand = ({k: module.coded(v, lines) for k, v, lines in zip(("solver", "mutation"), (LISTS, lifetime.MUTATION), module.AGENTS[name], strict=True)} for name in ("seed", "by_hand"))  # fmt: skip
    mutation_only = {**seed, "mutation": hand["mutation"]}
    gains = []
    for key in range(6):
        solved = judged()([seed, mutation_only, hand], key)["away"]["solved"].mean(axis=1)
        gains.append([solved[1] - solved[0], solved[2] - solved[0]])
        assert 0.05 < solved[0] < 0.6, "the seed solves some, and leaves much"
    gains = np.array(gains)
    assert (gains.mean(axis=0) > 0.05).all()
    assert (gains.mean(axis=0) > 2 * gains.std(axis=0, ddof=1) / np.sqrt(len(gains))).all()


# --- the task -------------------------------------------------------------------------------------------


def test_what_is_searched():
    assert {column.name for column in dsl_godel().space.columns} == {"solver", "mutation"}
    assert [column.name for column in dsl_godel(evolves="solver").space.columns] == ["solver"]
    held = dsl_godel(evolves="solver", agent="by_hand")
    candidate = held.space.decode(jnp.zeros(held.space.dimension))
    np.testing.assert_array_equal(candidate["mutation"].tokens, held.baseline["mutation"].tokens)
    assert set(held.controls) == {"fixed-mutation", "fixed-solver", "by-hand"}


def test_one_program_edits_trials_and_breeds_agents():
    """With `breeds` the mutation program also says how an agent's children are made; without, it never does."""
    task = dsl_godel(breeds=True)
    given = dict(CATALOGUE["open_ended"].defaults)
    assert variation.Breeding(dsl_godel().space, given).operator is None
    breeding = variation.Breeding(task.space, given)
    assert breeding.operator == lifetime.BREEDING

    lines = {"few": "c0 = 6.0; changes = neg(c0); {}", "many": "c0 = 6.0; changes = copy(c0); {}"}
    edits = "weight = sub(tried, won); more = copy(c0)"
    agents = [
        {"solver": module.coded(LISTS, "out = add(x, y)"), "mutation": module.coded(lifetime.BREEDING, line.format(edits))}
        for line in lines.values()
    ]  # fmt: skip
    count = 100
    parents = jnp.repeat(jnp.stack([jnp.asarray(task.space.encode(agent)) for agent in agents]), count, axis=0)
    facts = {name: jnp.zeros(2 * count) for name in ("share", "children", "age", "looks")}

    @jax.jit
    def born(parents):
        rates = breeding.rates(breeding.bounded(breeding.first_genes(2 * count) + breeding.said(jax.random.key(0), parents, facts)))  # fmt: skip
        return rates, breeding.children(jax.random.key(1), parents, parents, rates, jnp.zeros(2 * count, bool))

    rates, children = jax.tree.map(np.asarray, born(parents))
    assert rates.changes[0] < 1.1 and rates.changes[-1] > 5.5
    moved = (children != np.asarray(parents)).sum(axis=1).reshape(2, count).mean(axis=1)
    assert moved[1] > 1.5 * moved[0] > 0
    # In a lifetime what they say to the strategy is not heard: both agents, and one that says nothing, end alike.
    plain = {"solver": agents[0]["solver"], "mutation": module.coded(lifetime.MUTATION, f"c0 = 6.0; {edits}")}
    found = judged(breeds=True)(agents)["away"]["support_loss"]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], judged()([plain])["away"]["support_loss"][0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"agent": "seeds"}, 'Did you mean "seed"'),
        ({"evolves": "solvers"}, 'Did you mean "solver"'),
        ({"breeds": 1}, "expected breeds to be true or false, got 1"),
        ({"rounds": 0}, "expected rounds as a whole number >= 1, got 0"),
        ({"trials": 2.5}, "expected trials as a whole number"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        dsl_godel(**options)


@pytest.mark.parametrize("name", ["dsl_godel", "dsl_godel_breeds"])
@pytest.mark.parametrize("profile", [None, "smoke", "standard", "full"])
def test_the_study_can_be_planned(profile, name):
    study = plan(ROOT / "studies" / f"{name}.toml", profile)
    evaluations = {v.evaluations for v in study.variants if v.searches and v.own.budget == "equal"}
    assert len(evaluations) == 1


def test_a_run_from_start_to_text(tmp_path, monkeypatch, compile_cache):
    """A small run is judged, kept and shown in words."""
    monkeypatch.chdir(tmp_path)
    # With random agents: the profile's own strategy is run by docs/dsl_godel.md.
    said = cli("run", "dsl_godel", "--profile", "smoke", "--strategy", "random_search", "--name", "r", "--json")
    assert said.code == 0, said.err
    rows = cli("archive", "query", "r", "SELECT text, metrics FROM lineage", "--json")
    assert rows.code == 0, rows.err
    assert len(rows.data) == 16 and all("solved" in str(row) for row in rows.data)
    assert any("mutation: " in str(row) and "solver: " in str(row) for row in rows.data)


def test_the_improvement_is_a_ratio_of_shares_with_an_interval_over_searches(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.open_ended import ratio_of

    assert ratio_of(np.array([[0.2, 0.5]])) == {"seed_agent": 0.2, "champion": 0.5, "ratio": pytest.approx(2.5)}
    # Log ratios 0, log 2, log 4; the t quantile of two degrees of freedom is 4.302653.
    made = ratio_of(np.array([[0.1, 0.1], [0.1, 0.2], [0.1, 0.4]]))
    reach = np.exp(4.302653 * np.log(2) / np.sqrt(3))
    assert [made[name] for name in ("ratio", "low", "high")] == pytest.approx([2.0, 2.0 / reach, 2.0 * reach], rel=1e-5)
    # Where somebody solved nothing there is no log: the ratio of the means, if there is one.
    assert ratio_of(np.array([[0.0, 0.2], [0.2, 0.4]])) == pytest.approx(
        {"seed_agent": 0.1, "champion": 0.3, "ratio": 3.0}
    )
    assert "ratio" not in ratio_of(np.array([[0.0, 0.2], [0.0, 0.4]]))

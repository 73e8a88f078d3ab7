"""A search as an inner training: levels keep apart, scores alone pass between them (S0-1 to S0-8)."""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import columns, lineage_files

import evometa
from evometa import Domain, Objective, Split
from evometa.archives.read import Archive
from evometa.errors import ConfigError
from evometa.evaluate.data import load
from evometa.expand import expand
from evometa.names import strategy_factory
from evometa.nest import World, nest, search_of
from evometa.nest_search import Lower
from evometa.space import log, real, weights

pytest_plugins = ["shared"]

LEAVES = ("a", "b", "c", "d", "e", "f")


def leaf(number, poison=()):
    """A world whose best x and best y depend on it; `poison` names queries that are full of NaN."""
    at = jnp.float32(0.1 * number)
    queries = {q: {"at": at + shift, "bad": jnp.float32(np.nan if q in poison else 0)} for q, shift in QUERIES.items()}
    return Domain(LEAVES[number], support={"at": at}, queries=queries, tags={"number": str(number)})


QUERIES = {"home": 0.0, "away": 0.3}


def fit(key, candidate, support):
    noise = 0.01 * jax.random.normal(key)
    return {"x": candidate["x"] + noise, "w": candidate["w"], "rate": candidate["rate"], "at": support["at"]}


def judge(key, learned, query):
    spread = jnp.sum((learned["w"] - 0.5) ** 2)
    loss = (learned["x"] - query["at"]) ** 2 + spread + 0.1 * jnp.log(learned["rate"] / 0.1) ** 2
    return {"loss": loss + query["bad"], "inner_steps": jnp.float32(5)}


def small(poison=None, **fields):
    poison = poison or {}
    return evometa.task(
        name="small",
        space={"x": real(-1, 1), "w": weights((2,)), "rate": log(0.01, 1)},
        baseline={"x": 0.0, "w": [0.0, 0.0], "rate": 0.5},
        domains=[leaf(n, poison.get(name, ())) for n, name in enumerate(LEAVES)],
        split=Split(("a", "b", "c", "d"), ("e",), ("f",)),
        **{"fit": fit, "judge": judge, **fields},
    ).build()


def lower(generations=3, slots=(), prior=True, tunes=True, population=4, name="cma_es"):
    make = partial(strategy_factory(name), population=population)
    columns = {"sigma": log(0.02, 1.0)} if tunes else {}
    return Lower(make, generations, columns, {"sigma": 0.2} if tunes else {}, prior, tuple(slots))


WORLDS = {"c": World(("a", "b"), ("c",)), "d": World(("a", "b"), ("d",)), "e": World(("a", "b"), ("e",))}
SPLIT = Split(("c", "d"), ("e",))


def two(task=None, **options):
    return nest(task or small(), lower(**options), WORLDS, SPLIT)


def searched(task, seed=0, world="c", outer=None):
    """What the lower search of one world learned."""
    support = load(task, (world,))[0].support
    made = jax.jit(task.fit)(jax.random.key(seed), outer or task.baseline, jax.tree.map(jnp.asarray, support))
    return jax.tree.map(np.asarray, made)


def test_every_parameter_belongs_to_one_level():
    """S0-1: the outer space holds what the level above moves, the lower search has the rest."""
    task = two(slots=("rate",))
    names = [column.name for column in task.space.columns]
    assert names == ["strategy.sigma", "start.x", "start.w", "slots.rate"]
    assert [column.name for column in search_of(task).free.columns] == ["x", "w"]
    assert task.baseline["slots"] == {"rate": 0.5} and task.baseline["strategy"] == {"sigma": 0.2}


def test_slots_stand_still_while_the_lower_search_moves(tmp_path):
    """S0-1: every lower candidate has the outer candidate's value in the slot, to the bit."""
    task = two(slots=("rate",))
    run = evometa.run(task, generations=2, population=4, out=tmp_path)
    row = run.archive.row(1, 2)
    for search in expand(run.path, 1, 2)["searches"]:
        assert search["equal"]
        made = evometa.open(search["path"])
        assert "rate" not in made.lineage(["params"])["params"][0].as_py()
        held = dict((column.name, value) for column, value in made.space.held)
        assert np.float32(held["rate"]) == np.float32(row["params"]["slots.rate"])
        genomes = np.array(made.lineage(["genome"])["genome"].to_pylist())
        assert len(np.unique(genomes, axis=0)) == len(genomes) == 3 * 4


def test_poisoned_exams_leave_the_search_unchanged():
    """S0-2, S0-3: what the level above is judged on cannot reach the lower search."""
    clean = searched(two())
    poisoned = searched(two(small({"c": ("home", "away"), "d": ("home", "away"), "b": ("home",)})))
    assert clean.genome.tobytes() == poisoned.genome.tobytes()
    hurt = searched(two(small({"b": ("away",)})))
    assert clean.genome.tobytes() != hurt.genome.tobytes()


def test_tests_are_independent_and_leave_no_trace():
    """S0-4: any number and order of judgements, the same losses; what was learned is not changed by them."""
    task = two()
    learned, query = searched(task), {q: f() for q, f in task.domain("c").queries.items()}
    word = [np.array(x).tobytes() for x in jax.tree.leaves(learned)]
    judged = jax.jit(task.judge)
    first = [float(judged(jax.random.key(7), learned, query[q])["loss"]) for q in ("home", "away")]
    again = [float(judged(jax.random.key(7), learned, query[q])["loss"]) for q in ("away", "away", "home")]
    assert first == again[::-1][:2] and again[0] == again[1]
    assert [np.array(x).tobytes() for x in jax.tree.leaves(learned)] == word


def test_the_start_and_the_hyperparameters_reach_the_lower_search():
    task = two()
    base = searched(task)
    start = {**task.baseline, "start": {**task.baseline["start"], "x": 0.9}}
    wide = {**task.baseline, "strategy": {"sigma": 0.9}}
    assert searched(task, outer=start).genome.tobytes() != base.genome.tobytes()
    assert searched(task, outer=wide).genome.tobytes() != base.genome.tobytes()
    assert searched(task).genome.tobytes() == base.genome.tobytes()
    assert base.inner_steps == 3 * 4 * 2 * 5


def test_a_traced_step_size_is_the_same_as_a_given_one():
    """The lower search is the ordinary strategy: sigma from above gives what sigma in its options gives."""
    given = nest(small(), Lower(partial(strategy_factory("cma_es"), population=4, sigma=0.37), 3), WORLDS, SPLIT)
    tuned = two()
    outer = {**tuned.baseline, "strategy": {"sigma": 0.37}}
    want, got = searched(given), searched(tuned, outer=outer)
    np.testing.assert_allclose(got.genome, want.genome, rtol=2e-3)


@pytest.mark.parametrize("name", ["cma_es", "genetic", "open_es", "differential_evolution", "random_search"])
def test_any_strategy_can_search_below(name):
    """S0-8."""
    task = nest(small(), lower(name=name, tunes=False, generations=8), WORLDS, SPLIT)
    learned = searched(task)
    x = search_of(task).free.decode_host(learned.genome)
    base = search_of(task).free.encode(small().baseline)
    assert np.isfinite(learned.genome).all() and learned.genome.tobytes() != base.tobytes(), x


def test_three_levels_are_two_nests():
    """S0-7: a level-3 world's exam runs a level-2 search, and is scored on leaves that no other level used."""
    worlds = {name: World(("a",), (name,)) for name in ("b", "c", "d", "e")}
    second = nest(small(), lower(generations=2), worlds, Split(("b",), ("e",)))
    third = nest(
        second, lower(generations=2), {"c": World(("b",), ("c",)), "e": World(("b",), ("e",))}, Split(("c",), ("e",))
    )
    assert [c.name for c in third.space.columns] == [
        "strategy.sigma",
        "start.strategy.sigma",
        "start.start.x",
        "start.start.w",
        "start.start.rate",
    ]
    learned = searched(third)
    assert learned.genome.shape == (second.space.dimension,)
    # 2 generations x 4 candidates, each a level-2 fit (2 x 4 x 1 lower trainings of 5 steps) and its exam (5).
    assert learned.inner_steps == 8 * (8 * 5 + 5)
    judged = third.judge(jax.random.key(1), learned, load(third, ("c",))[0].queries["away"])
    assert np.isfinite(judged["loss"])
    assert judged["inner_steps"] == 8 * (8 * 5 + 5) + 8 * 5 + 5


def test_expanding_gives_the_lower_searches_back(tmp_path):
    task = two()
    run = evometa.run(task, generations=3, population=4, out=tmp_path)
    data = expand(run.path, 2, 1)
    assert data["equal"] and [s["domain"] for s in data["searches"]] == ["c", "d"]
    made = Archive(run.path / "expanded" / "2-1" / "c-r0")
    assert len(made.table()) == 3 * 4
    assert {s["domain"] for s in made.row(0, 0)["scores"]} == {"a", "b"}
    before = lineage_files(run.path / "expanded" / "2-1" / "c-r0")
    assert expand(run.path, 2, 1)["equal"]
    assert lineage_files(run.path / "expanded" / "2-1" / "c-r0") == before
    with pytest.raises(ConfigError, match="no search of searches"):
        expand(evometa.run(small(), generations=1, population=4, out=tmp_path, name="flat").path, 0, 0)


def test_judged_on_another_query_of_the_same_domains():
    """Tuning a strategy on problems: the search sees one query, the level above another."""
    worlds = {name: World((name,)) for name in ("a", "b", "e")}
    task = nest(small(objective=Objective("home")), lower(), worlds, Split(("a", "b"), ("e",)), judged_on="away")
    assert task.objectives[0].query == "away"
    assert np.isfinite(searched(task, world="a").genome).all()
    with pytest.raises(ConfigError, match="has no domains left to be judged on"):
        nest(small(objective=Objective("home")), lower(), worlds, Split(("a", "b"), ("e",)))


# --- plain Python ------------------------------------------------------------------------------------


def host_fit(key, candidate, support):
    return candidate["x"] + 0.01 * np.random.default_rng(key).normal() + 0.001 * support


def host_judge(key, learned, query):
    return {"loss": (learned - query) ** 2}


def host(judge=host_judge):
    domains = {name: {"support": n, "home": 0.1 * n, "away": 0.1 * n + 0.3} for n, name in enumerate(LEAVES)}
    return evometa.task(
        name="host", runs="python", space={"x": real(-1, 1), "y": real(0, 1)}, domains=domains, fit=host_fit,
        judge=judge, split=Split(("a", "b", "c", "d"), ("e",), ("f",)),
    ).build()  # fmt: skip


def test_python_tasks_nest_and_expand(tmp_path):
    task = nest(host(), lower(slots=("y",)), WORLDS, SPLIT)
    assert task.runs == "python"
    run = evometa.run(task, generations=2, population=4, out=tmp_path)
    assert set(columns(run.path, "failure")["failure"].to_pylist()) == {"ok"}
    assert expand(run.path, 1, 3)["equal"]


def _scorer(pipe):
    for query, learned in iter(pipe.recv, None):
        pipe.send(float((learned - query) ** 2))


def test_a_scorer_in_another_process_changes_nothing(tmp_path):
    """S0-3: a score is one float; who computes it, and where, leaves no trace in the lineage."""
    here, there = get_context("spawn").Pipe()
    child = get_context("spawn").Process(target=_scorer, args=(there,), daemon=True)
    child.start()
    scalars = []

    def far(key, learned, query):
        here.send((query, learned))
        assert here.poll(60)
        scalars.append(here.recv())
        return {"loss": scalars[-1]}

    try:
        runs = [
            evometa.run(nest(host(judge), lower(), WORLDS, SPLIT), generations=2, population=4, out=tmp_path, name=name)
            for name, judge in (("near", host_judge), ("far", far))
        ]
    finally:
        here.send(None)
        child.join(30)
    near, apart = (columns(run.path, "genome", "fitness", "scores") for run in runs)
    assert near.equals(apart)
    # Below: 2 x 4 outer candidates x 2 worlds x (3 x 4 candidates x 2 domains). Above: away and home of one domain.
    assert len(scalars) >= 2 * 4 * 2 * (3 * 4 * 2 + 2)


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worlds", "split", "text"),
    [
        ({}, Split(("c",)), "at least one world"),
        ({"c": World((), ("c",))}, Split(("c",)), "no domains left for the lower search"),
        ({"c": World(("a",))}, Split(("c",)), "no domains left to be judged on"),
        ({"c": World(("a",), ("c",)), "d": World(("c",), ("d",))}, Split(("c", "d")), "'c' is used by two levels"),
        ({"c": World(("a",), ("c",)), "t": World(("a",), ("c",))}, Split(("c",), (), ("t",)), "sealed in test"),
        ({"c": World(("a",), ("c",))}, Split(("cc",)), "world 'cc' that is not there. Did you mean"),
        ({"c": World(("zz",), ("c",))}, Split(("c",)), "no domain 'zz'"),
    ],
)
def test_domains_that_do_not_keep_apart_are_refused(worlds, split, text):
    """S0-7: one leaf, one level."""
    with pytest.raises(ConfigError, match=text):
        nest(small(), lower(), worlds, split)


def test_what_cannot_be_nested_is_refused():
    with pytest.raises(ConfigError, match="moves nothing"):
        two(prior=False, tunes=False)
    with pytest.raises(ConfigError, match=r"no column 'raet' for a slot. Did you mean .rate."):
        two(slots=("raet",))
    with pytest.raises(ConfigError, match="lower strategy must be traceable"):
        two(name="tpe", tunes=False)
    both = small(objective=(Objective("home"), Objective("away")))
    with pytest.raises(ConfigError, match="one objective"):
        two(both)


def test_sealed_worlds_stay_sealed():
    """S0-6: a test world's leaf is loaded for nobody but the opening."""
    opened = []

    def secret():
        opened.append(1)
        return {"at": jnp.float32(0), "bad": jnp.float32(0)}

    base = small()
    domains = [*base.domains[:5], Domain("f", {"at": jnp.float32(0)}, {"home": secret, "away": secret})]
    worlds = {**WORLDS, "f": World(("a", "b"), ("f",))}
    task = nest(base.with_(domains=tuple(domains)), lower(), worlds, Split(("c", "d"), ("e",), ("f",)))
    with pytest.raises(Exception, match="sealed"):
        load(task, ("f",))
    assert not opened

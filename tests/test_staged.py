"""Staged evaluation: who passes the hurdle, what is left out, and that nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli, one_line, rows_digest

import evometa
from evometa.archives import events
from evometa.archives.read import Archive
from evometa.errors import ConfigError
from evometa.evaluate import data as datasets
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.plan import Plan
from evometa.evaluate.settle import settle
from evometa.evaluate.staged import Hurdle, StagedCells
from evometa.loop import CompiledLoop
from evometa.strategies.genetic import genetic
from evometa.strategies.open_ended import open_ended
from evometa.types import Failure

pytest_plugins = ["shared"]

trained: list[int] = []


def fit(key, candidate, support):
    jax.debug.callback(lambda s: trained.append(int(s)), support)
    return candidate["x"] + 0.01 * jax.random.normal(key)


def judge(key, learned, query):
    # Far out it breaks down.
    return {"loss": jnp.where(learned > 0.95, jnp.nan, (learned - 0.1 * query) ** 2)}


def task():
    made = evometa.task(
        name="line", space={"x": evometa.real(0, 1)},
        domains={f"d{n}": {"support": jnp.float32(n), "away": jnp.float32(n)} for n in range(4)},
        split=evometa.Split(("d0", "d1", "d2", "d3")),
    )  # fmt: skip
    made.fit(fit)
    made.judge(judge)
    return made.build()


TASK = task()
LOADED = datasets.load(TASK, TASK.split.train)
GENOMES = np.array([[0.9], [0.1], [0.99], [0.3], [0.5], [0.05], [0.7], [0.2]], np.float32)
KEY = jax.random.key(4)


def staged(plan=None, **hurdle):
    return StagedCells(TASK, LOADED, plan or Plan(chunk=2), 1, Hurdle(**{"domains": 2, "keep": 0.5, **hurdle}))


def scores(cells, genomes=GENOMES):
    return jax.tree.map(np.asarray, settle(cells.host(KEY, genomes), cells.cells, TASK.objectives))


def test_the_best_share_passes_and_nobody_that_failed():
    hurdle = Hurdle(1, keep=0.5)
    loss, failed = jnp.asarray([3.0, 1.0, np.nan, 2.0, 1.0, 0.0]), jnp.asarray([False] * 5 + [True])
    assert hurdle.passing(loss, failed).tolist() == [False, True, False, True, True, False]
    assert hurdle._replace(below=2.0).passing(loss, failed).tolist() == [False, True, False, False, True, False]
    assert not hurdle.passing(loss, jnp.ones(6, bool)).any()


def test_who_passes_has_all_losses_and_the_others_those_of_the_hurdle():
    cells, whole = staged(), CompiledCells(TASK, LOADED, Plan(chunk=2), 1)
    assert cells.cells == whole.cells
    found, plain = scores(cells), scores(whole)
    # On d0 and d1 the four rows nearest to 0.05 are best.
    passed = np.array([False, True, False, True, False, True, False, True])
    skipped = ~passed & (np.arange(8) != 2)
    assert (
        found.failure.tolist() == [1, 0, 2, 0, 1, 0, 1, 0] == np.where(skipped, Failure.SKIPPED, plain.failure).tolist()
    )
    assert found.evaluated[:, :2].all() and np.array_equal(
        found.evaluated[:, 2:], np.repeat(passed[:, None], 2, axis=1)
    )
    np.testing.assert_allclose(found.loss[found.evaluated], plain.loss[found.evaluated], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.fitness[passed], plain.fitness[passed], rtol=1e-5)
    assert np.isinf(found.fitness[~passed]).all() and np.isnan(found.loss[~found.evaluated]).all()


def test_what_is_skipped_is_not_computed():
    trained.clear()
    scores(staged())
    jax.effects_barrier()
    # Once per chunk of two: four on each domain of the hurdle, of the rest two for the four rows that pass.
    assert [trained.count(domain) for domain in range(4)] == [4, 4, 2, 2]


def test_neither_company_nor_devices_change_a_bit():
    order = np.array([4, 7, 0, 2, 5, 1, 6, 3])
    one = scores(staged())
    for plan in (Plan(chunk=2), Plan(chunk=2, devices=2)):
        other = scores(staged(plan), GENOMES[order])
        assert other.loss.tobytes() == one.loss[order].tobytes() and np.array_equal(other.failure, one.failure[order])


def test_outside_a_compiled_loop_the_bits_are_the_same():
    """Stage by stage on the host, and all in one traced program: the same rows pass, with the same bits."""
    cells = staged(Plan(chunk=2, devices=2), keep=0.4)
    host, traced = cells.host(KEY, GENOMES), jax.jit(cells.evaluate)(KEY, jnp.asarray(GENOMES), cells.data)
    for one, other in zip(jax.tree.leaves(host), jax.tree.leaves(traced), strict=True):
        assert one.tobytes() == np.asarray(other).tobytes()


def test_what_was_not_judged_has_no_metrics_either():
    """A chunk holds neighbours of who passes too: what was computed of them by the way is nobody's."""
    made = evometa.task(
        name="count", space=dict(x=evometa.real(0, 1)), baseline={"x": 0.5}, domains=TASK.domains, split=TASK.split,
        fit=fit, judge=lambda key, learned, query: {"loss": learned, "inner_steps": jnp.float32(5)},
    ).build()  # fmt: skip
    cells = StagedCells(made, datasets.load(made, made.split.train), Plan(chunk=8), 1, Hurdle(2))
    raw = cells.host(KEY, GENOMES)
    assert np.array_equal(np.isfinite(raw.metrics["inner_steps"]), raw.evaluated) and not raw.evaluated.all()


@pytest.mark.parametrize("below", [None, -1.0])
def test_a_search_behind_a_hurdle(below):
    """In one compiled block. Where nobody passes, the search stands still and goes on asking."""
    cells = staged(below=below)
    strategy = open_ended(TASK.space, 8, capacity=16) if below is None else genetic(TASK.space, 8)
    loop = CompiledLoop(strategy, cells.evaluate, cells.data, cells.cells, TASK.objectives, 0, 4)
    state, block = loop.advance(strategy.init(jax.random.key(0), None), 0, 4)
    failure = np.asarray(block.scores.failure)
    if below is None:
        assert ((failure == Failure.OK).sum(axis=1) <= 4).all() and (failure == Failure.OK).any(axis=1).all()
        held = np.asarray(state.members.held)
        assert held.sum() == sum((row[1 if g else 0 :] == Failure.OK).sum() for g, row in enumerate(failure))
        assert int(state.counts[2]) > 0
    else:
        assert not (failure == Failure.OK).any() and not bool(state.told)
        assert len(np.unique(block.genomes.reshape(-1))) > 20


@pytest.mark.parametrize(
    ("hurdle", "words"),
    [
        ({"domains": 4}, "1 to 3 of the 4 train domains, got 4"),
        ({"domains": 0}, "got 0"),
        ({"keep": 0.0}, "0 < keep <= 1"),
        ({"keep": 1.0}, "lets everybody pass"),
        ({"below": float("inf")}, "finite below"),
    ],
)
def test_a_hurdle_that_makes_no_sense_is_refused(hurdle, words):
    with pytest.raises(ConfigError, match=words):
        staged(**hurdle)


# --- runs ------------------------------------------------------------------------------------------------

RUN = ("run", "ridge.py", "--strategy", "genetic", "--population", 8, "--set", "hurdle.domains=1", "--seed", 2)


def test_a_run_behind_a_hurdle_is_stored_replayed_and_extended(folder, compile_cache):
    assert cli(*RUN, "--generations", 6, "--set", "plan.block=2", "--name", "whole").code == 0
    rows = Archive(folder / "runs" / "whole").table(["generation", "index", "failure", "scores"]).to_pylist()
    assert {row["failure"] for row in rows} == {"ok", "skipped"}
    for row in rows:
        there = [cell["loss"] is not None for cell in row["scores"] if cell["query"] == "away"]
        assert there == ([True] * 3 if row["failure"] == "ok" else [True, False, False])
    for failure in ("ok", "skipped"):
        row = next(row for row in rows if row["failure"] == failure and row["generation"] == 3)
        assert cli("archive", "show", "whole", f"3:{row['index']}", "--replay").code == 0
    assert cli(*RUN, "--generations", 3, "--set", "plan.block=2", "--name", "part").code == 0
    assert cli("resume", "part", "--generations", 6).code == 0
    assert rows_digest(folder / "runs" / "part") == rows_digest(folder / "runs" / "whole")


def test_a_hurdle_that_nobody_passes_is_noted_and_nothing_is_lost(folder, compile_cache):
    never = ("--set", "hurdle.below=-1", "--set", "plan.block=2")
    said = cli(*RUN, "--generations", 2, *never, "--name", "idle")
    assert said.code == 0, said
    assert cli("resume", "idle", "--generations", 6).code == 0
    notes = [entry["text"] for entry in events.read(folder / "runs" / "idle") if entry["kind"] == "note"]
    assert notes == ["generation 0: nobody passed the hurdle; the search stands still until somebody does"]
    assert Archive(folder / "runs" / "idle").table(["failure"]).num_rows == 48
    one_line(cli(*RUN[:-4], "--set", "hurdle.domains=3", "--generations", 1), 4, "1 to 2 of the 3 train domains")

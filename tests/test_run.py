"""The same spec gives the same lineage files, whatever the blocks, devices and interruptions (design, section 7)."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import call, cli, columns, lineage_files, losses, one_line, rows_digest
from hostile import forge

import evometa
from evometa.archives.read import Archive
from evometa.folder import read_record

pytest_plugins = ["shared"]

RIDGE = ("run", "ridge.py", "--population", 8, "--seed", 3, "--generations", 12)


def test_the_same_spec_gives_the_same_files_twice(copies):
    """SYS-5."""
    assert cli(*RIDGE, "--set", "plan.block=4", "--name", "ridge", "--out", "again").code == 0
    assert lineage_files(copies / "again/ridge") == lineage_files(copies / "runs/ridge")
    arguments = ("run", "plain.py", "--population", 8, "--seed", 3, "--generations", 5, "--strategy", "genetic")
    assert cli(*arguments, "--name", "plain", "--out", "again").code == 0
    assert lineage_files(copies / "again/plain") == lineage_files(copies / "runs/plain")


def test_another_seed_gives_other_rows(copies):
    arguments = ("run", "plain.py", "--population", 8, "--seed", 4, "--generations", 5, "--strategy", "genetic")
    assert cli(*arguments, "--name", "other").code == 0
    assert rows_digest(copies / "runs/other") != rows_digest(copies / "runs/plain")


def test_where_blocks_are_cut_changes_no_row(copies):
    digest = rows_digest(copies / "runs/ridge")
    for block in (1, 8):
        assert cli(*RIDGE, "--set", f"plan.block={block}", "--name", f"block{block}").code == 0
        path = copies / f"runs/block{block}"
        assert len(lineage_files(path)) == (12 if block == 1 else 2)
        assert rows_digest(path) == digest


@pytest.mark.parametrize("strategy", ["cma_es", "genetic", "tpe", "snes"])
def test_one_and_two_host_devices_give_the_same_rows(folder, compile_cache, strategy):
    arguments = (
        "run",
        "ridge.py",
        "--population",
        8,
        "--generations",
        4,
        "--strategy",
        strategy,
        "--set",
        "plan.chunk=4",
    )
    assert cli(*arguments, "--set", "plan.devices=2", "--name", "two").code == 0
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache} if strategy != "tpe" else {}
    if strategy == "cma_es":  # one process that never had a second device
        said = call(folder, *arguments, "--set", "plan.devices=1", "--name", "one", **env)
    else:
        said = cli(*arguments, "--set", "plan.devices=1", "--name", "one")
    assert said.code == 0, said.err
    assert read_record(folder / "runs/one")["plan"]["devices"] == 1
    assert read_record(folder / "runs/two")["plan"]["devices"] == 2
    assert rows_digest(folder / "runs/one") == rows_digest(folder / "runs/two")


@pytest.mark.parametrize("strategy", ["tpe", "sobol"])
def test_strategies_that_jax_cannot_trace_repeat_too(folder, strategy):
    arguments = ("run", "plain.py", "--population", 6, "--generations", 4, "--strategy", strategy, "--name", "x")
    assert cli(*arguments).code == 0 and cli(*arguments, "--out", "again").code == 0
    assert lineage_files(folder / "again/x") == lineage_files(folder / "runs/x")


def test_an_extended_run_equals_a_longer_one(copies):
    assert cli("resume", "plain", "--generations", 8).code == 0
    long = (
        "run",
        "plain.py",
        "--population",
        8,
        "--seed",
        3,
        "--generations",
        8,
        "--strategy",
        "genetic",
        "--name",
        "long",
    )
    assert cli(*long).code == 0
    assert rows_digest(copies / "runs/plain") == rows_digest(copies / "runs/long")
    # The block grid is that of a longer run, however the run came there: 12 is cut at 14, and goes on to 16.
    assert cli("resume", "ridge", "--generations", 14).code == 0
    assert cli("resume", "ridge", "--generations", 20).code == 0
    longer = (*RIDGE[:-1], 20, "--set", "plan.block=4", "--name", "longer")
    assert cli(*longer).code == 0
    assert rows_digest(copies / "runs/ridge") == rows_digest(copies / "runs/longer")
    assert cli("archive", "check", "ridge").code == 0


def test_a_borrowed_plan(copies):
    assert cli(*RIDGE, "--plan", "ridge", "--name", "borrowed").code == 0
    assert read_record(copies / "runs/borrowed")["plan"] == read_record(copies / "runs/ridge")["plan"]
    assert rows_digest(copies / "runs/borrowed") == rows_digest(copies / "runs/ridge")


def test_a_forged_plan_is_one_line(copies):
    forge(copies / "runs/ridge", lambda record: record["plan"].update(threads=4))
    borrow = (*RIDGE, "--plan", "ridge", "--name", "borrowed")
    one_line(cli(*borrow), 4, "expected a plan of chunk, devices, block, platform, got one with 'threads' as well")
    assert cli("trust", "ridge").code == 0
    one_line(cli("run", "ridge.py", "--from", "ridge@4", "--name", "forked"), 4, "'threads'")
    assert not (copies / "runs/borrowed").exists() and not (copies / "runs/forked").exists()


def test_all_candidates_of_a_generation_meet_the_same_luck(folder):
    """Common random numbers: equal genomes have equal losses in a generation, and other luck in the next."""
    text = (folder / "plain.py").read_text()
    (folder / "luck.py").write_text(text.replace('"x": evometa.real(-1, 1)', '"x": evometa.real(0, 1e-30)'))
    said = cli("run", "luck.py", "--population", 6, "--generations", 3, "--strategy", "random_search", "--name", "luck")
    assert said.code == 0, said.err
    table = columns(folder / "runs/luck", "generation", "choices")
    generation = np.array(table["generation"])
    kinds = np.array([dict(row)["kind"] for row in table["choices"].to_pylist()])
    loss = losses(folder / "runs/luck")
    first = []
    for g in range(3):
        for kind in ("round", "flat"):
            rows = loss[(generation == g) & (kinds == kind)]
            assert (rows == rows[0]).all() if len(rows) else True
        first.append(loss[generation == g][0])
    assert (first[0] != first[1]).all() and (first[1] != first[2]).all()


def test_a_grouped_domain_gives_the_bits_it_gives_alone(folder):
    """Domains of other shapes, queries that some domains lack, replicates: each cell is its own."""
    text = (folder / "ridge.py").read_text()
    text = text.replace("world(n) for n in range(6)", "odd(n) for n in range(6)").replace(
        "task = evometa.task(",
        "def odd(n):\n    made = world(n)\n    if n == 1:\n        made = {k: {'x': v['x'][:5], 'y': v['y'][:5]} for k, v in made.items()}\n"
        "    if n == 2:\n        del made['home']\n    return made\n\ntask = evometa.task(",
    )
    text = text.replace("    split=", "    replicates=2,\n    split=").replace("/ 8", "/ 5")
    (folder / "odd.py").write_text(text)
    same = (
        "run",
        "odd.py",
        "--population",
        4,
        "--generations",
        2,
        "--strategy",
        "random_search",
        "--set",
        "plan.chunk=2",
    )
    assert cli(*same, "--name", "all").code == 0
    together = cells(folder / "runs/all")
    assert len(together) == 2 * 4 * 10  # w0 and w1 twice 2 queries, w2 without home
    for domain in ("w0", "w1", "w2"):
        rest = [name for name in ("w0", "w1", "w2") if name != domain]
        split = (
            "--set",
            f'split.train=["{domain}"]',
            "--set",
            'split.validation=["w3"]',
            "--set",
            f'split.test=["{rest[0]}"]',
        )
        assert cli(*same, *split, "--name", domain).code == 0
        alone = cells(folder / f"runs/{domain}")
        assert alone and all(together[name] == loss for name, loss in alone.items())


def cells(path):
    rows = Archive(path).scores().to_pylist()
    keys = ("generation", "index", "domain", "query", "replicate")
    return {tuple(row[k] for k in keys): row["loss"] for row in rows if row["loss"] is not None}


# --- forks -------------------------------------------------------------------------------------------------------


def generation_rows(path, first):
    table = Archive(path).table()
    table = table.filter(np.array(table["generation"]) >= first)
    return table.drop_columns(["run"]).to_pylist()


def test_a_fork_with_the_same_strategy_goes_on_as_its_parent(copies):
    for name, at, until, arguments in (
        ("ridge", 6, 12, (*RIDGE, "--set", "plan.block=4")),
        (
            "plain",
            2,
            5,
            ("run", "plain.py", "--population", 8, "--seed", 3, "--generations", 5, "--strategy", "genetic"),
        ),
    ):
        said = cli(*arguments, "--from", f"{name}@{at}", "--name", f"{name}-fork", "--json")
        assert said.code == 0, said.err
        assert said.data["generations"] == until and said.data["candidates"] == 8 * (until - at)
        fork = copies / f"runs/{name}-fork"
        assert generation_rows(fork, 0) == generation_rows(copies / f"runs/{name}", at)
        assert cli("archive", "check", f"{name}-fork").code == 0
        assert read_record(fork)["from"]["run"] == name and read_record(fork)["from"]["generation"] == at


def test_a_fork_of_a_fork_and_its_resume(copies):
    base = ("run", "plain.py", "--population", 8, "--seed", 3, "--strategy", "genetic")
    assert cli(*base, "--generations", 4, "--from", "plain@2", "--name", "one").code == 0
    assert cli(*base, "--generations", 5, "--from", "one@3", "--name", "two").code == 0
    assert generation_rows(copies / "runs/two", 0) == generation_rows(copies / "runs/plain", 3)
    assert cli("resume", "one", "--generations", 5).code == 0
    shutil.rmtree(copies / "runs/two/checkpoints")
    assert cli("resume", "two", "--generations", 6).code == 0
    assert cli("resume", "plain", "--generations", 6).code == 0
    assert generation_rows(copies / "runs/one", 0) == generation_rows(copies / "runs/plain", 2)[: 3 * 8]
    assert generation_rows(copies / "runs/two", 0) == generation_rows(copies / "runs/plain", 3)
    assert cli("archive", "lineage", "two", "4:1", "--json").data["nodes"]


def test_a_fork_needs_its_parent_no_more(copies):
    """Its start is its first checkpoint."""
    base = ("run", "plain.py", "--population", 8, "--seed", 3, "--strategy", "genetic")
    assert cli(*base, "--generations", 4, "--from", "plain@2", "--name", "one").code == 0
    assert cli(*base, "--generations", 5, "--name", "whole").code == 0
    shutil.rmtree(copies / "runs/plain")
    assert cli("resume", "one", "--generations", 5).code == 0
    assert generation_rows(copies / "runs/one", 0) == generation_rows(copies / "runs/whole", 2)
    said = cli("archive", "lineage", "one", "2:0")
    assert "a fork: ancestors before generation 2 are in plain" in said.out


def test_a_host_loop_commits_every_generation(copies):
    """A strategy that JAX cannot trace has no block to lose at a kill."""
    assert (
        cli("run", "ridge.py", "--strategy", "sobol", "--population", 8, "--generations", 3, "--name", "host").code == 0
    )
    assert [part.first for part in Archive(copies / "runs/host").parts()] == [0, 1, 2]


def test_several_objectives_keep_the_strategys_compromise(copies):
    """No single objective may choose for all of them."""
    objectives = ("--objective", "away", "--objective", "home", "--set", "strategy_options.objectives=2")
    arguments = ("run", "ridge.py", "--strategy", "nsga2", "--population", 8, "--generations", 3, "--name", "two")
    assert cli(*arguments, *objectives).code == 0
    champion = evometa.open("runs/two").champion
    assert champion is not None and champion.label == "recommendation"


def test_a_fork_with_another_seed_starts_at_the_same_state(copies):
    arguments = ("run", "plain.py", "--population", 8, "--seed", 9, "--strategy", "genetic", "--generations", 4)
    assert cli(*arguments, "--from", "plain@2", "--name", "other").code == 0
    parents = {
        (p["generation"], p["index"])
        for row in Archive(copies / "runs/other").table().to_pylist()[:8]
        for p in row["parents"]
    }
    assert parents and {generation for generation, _ in parents} == {1}, "its first parents are the parent run's last"
    assert generation_rows(copies / "runs/other", 0) != generation_rows(copies / "runs/plain", 2)


def test_a_fork_with_another_strategy_starts_at_the_recommendation(copies):
    arguments = ("run", "ridge.py", "--population", 8, "--seed", 3, "--generations", 2, "--strategy", "genetic")
    assert cli(*arguments, "--from", "ridge@12", "--name", "handed").code == 0
    first = np.array(Archive(copies / "runs/handed").row(0, 0)["genome"], np.float32)
    champion = evometa.open("runs/ridge").champion
    assert champion is not None and champion.label in ("recommendation", "observed")
    judged = pq.read_table(next((copies / "runs/ridge/judgements").glob("*.parquet"))).to_pylist()
    recommended = np.array(next(row["genome"] for row in judged if row["label"] == "recommendation"), np.float32)
    assert np.array_equal(first, recommended)
    assert cli("archive", "check", "handed").code == 0


def test_another_space_cannot_be_forked(copies):
    said = cli("run", "static.py", "--strategy", "genetic", "--population", 8, "--generations", 9, "--from", "plain@2")
    assert said.code == 6 and "another space" in said.err and said.err.count("\n") == 1

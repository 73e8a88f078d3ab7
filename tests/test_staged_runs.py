"""A hurdle before every kind of task on every backend: the same bytes, whatever is lost on the way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import cli, columns, lineage_files, one_line

import evometa
from evometa import api, driver
from evometa.archives import events
from evometa.archives.cells import CellJournal
from evometa.archives.read import Archive
from evometa.expand import expand
from evometa.session import prepare
from evometa.spec import build

pytest_plugins = ["shared"]

SMALL = ("--strategy", "genetic", "--population", 8, "--set", "hurdle.domains=1", "--seed", 2)
COMMAND = (
    "import json, sys; given = json.load(sys.stdin);"
    "path = given['learned'] + '/x';"
    "x = given['candidate']['x'] if 'candidate' in given else float(open(path).read());"
    "'candidate' in given and (open('calls.txt', 'a').write(given['support']), open(path, 'w').write(str(x)));"
    "'query' in given and print(json.dumps({'loss': (x - float(given['query'])) ** 2}))"
)


def made(name, *arguments, task, generations=3, out="runs"):
    """The lineage files of a run behind a hurdle."""
    said = cli("run", task, *SMALL, "--generations", generations, *arguments, "--name", name, "--out", out)
    assert said.code == 0, said.err
    return lineage_files(Path(out) / name)


def rows(path):
    return Archive(path).table(["generation", "index", "failure", "scores"]).to_pylist()


def there(row):
    return [cell["loss"] is not None for cell in row["scores"] if cell["query"] == "away"]


def calls(folder):
    """How many trainings there were on each domain."""
    said = [line.split()[-1] for line in (folder / "calls.txt").read_text().splitlines()]
    return {domain: said.count(domain) for domain in ("0", "1")}


def test_a_python_task_is_trained_on_the_rest_by_whom_passes_only(folder, monkeypatch):
    monkeypatch.setenv("EVOMETA_TEST_CALLS", str(folder / "calls.txt"))
    whole = made("x", task="plain.py")
    assert calls(folder) == {"0": 8 * 3, "1": 4 * 3}
    for row in rows(folder / "runs/x"):
        assert there(row) == ([True, True] if row["failure"] == "ok" else [True, False])
        assert row["failure"] in ("ok", "skipped")
    looked = cli("watch", "x", "--once", "--json")
    assert looked.code == 0 and looked.data["failed"] == 0, "who stopped at the hurdle did not fail"
    by_generation = {g: [r for r in rows(folder / "runs/x") if r["generation"] == g] for g in range(3)}
    for some in by_generation.values():
        first = {r["index"]: r["scores"][0]["loss"] for r in some}
        passed = {r["index"] for r in some if r["failure"] == "ok"}
        assert passed == set(sorted(first, key=lambda i: first[i])[:4]), "the better half on the hurdle's domain"
    # What passes has the losses that it has without a hurdle: a cell's key knows nothing of it.
    free = cli("run", "plain.py", *SMALL[:4], "--seed", 2, "--generations", 1, "--name", "free")
    assert free.code == 0, free.err
    plain = {row["index"]: row["scores"] for row in rows(folder / "runs/free")}
    for row in by_generation[0]:
        for cell, other in zip(row["scores"], plain[row["index"]], strict=True):
            assert cell["loss"] in (None, other["loss"])
    for workers in (1, 3):
        assert made("x", "--workers", workers, task="plain.py", out=f"w{workers}") == whole
    for failure in ("ok", "skipped"):
        row = next(row for row in by_generation[2] if row["failure"] == failure)
        assert cli("archive", "show", "x", f"2:{row['index']}", "--replay").code == 0
    assert cli("archive", "check", "x").code == 0
    assert cli("unseal", "x").code == 0


@pytest.mark.parametrize("name", ["ridge", "static"])
def test_a_jax_task_has_the_same_bytes_in_workers(folder, compile_cache, name):
    """Whole blocks as one compiled program (ridge), groups of equal static columns (static), chunks of a pool."""
    devices = ("--set", "plan.devices=2") if name == "ridge" else ()
    whole = made("x", *devices, task=f"{name}.py")
    assert {row["failure"] for row in rows(folder / "runs/x")} == {"ok", "skipped"}
    workers = 3 if name == "ridge" else 1
    assert made("x", *devices, "--workers", workers, task=f"{name}.py", out="other") == whole
    skipped = next(row for row in rows(folder / "runs/x") if row["failure"] == "skipped")
    who = f"{skipped['generation']}:{skipped['index']}"
    assert cli("archive", "show", "x", who, "--replay").code == 0
    # A run in workers goes on as a compiled one, and the other way about.
    assert cli("resume", "other/x", "--generations", 5, "--backend", "inline").code == 0
    assert cli("resume", "runs/x", "--generations", 5, "--workers", 1).code == 0
    wanted = ("genome", "failure", "scores", "fitness")
    assert columns(folder / "runs/x", *wanted).equals(columns(folder / "other/x", *wanted))


def test_a_command_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-S", "-E", "-c", COMMAND]
    task = {
        "fit": command, "judge": command, "space": {"x": {"kind": "real", "low": 0, "high": 1}},
        "domains": {name: {"support": name, "away": 0.1 * n} for n, name in enumerate("abc")},
        "split": {"train": ["a", "b"], "validation": ["c"]},
    }  # fmt: skip
    spec = {
        "task": task, "strategy": "genetic", "population": 4, "generations": 2, "hurdle": {"domains": 1, "keep": 0.25},
        "champion": {"observed": 1, "replicates": 1}, "name": "x",
    }  # fmt: skip
    run = api.begin(build(spec), tmp_path / "runs")
    said = (tmp_path / "calls.txt").read_text()
    assert said.count("a") == 8 and said.count("b") == 2
    assert [row["failure"] for row in rows(run.path)].count("ok") == 2
    there_too = api.begin(build({**spec, "workers": 2}), tmp_path / "other")
    assert lineage_files(there_too.path) == lineage_files(run.path)


class Killed(BaseException):
    """Between two files of the journal: nothing of what follows happens."""


# Six candidates, the better half passes: units 1 to 6 are the hurdle of generation 0, 7 to 9 the rest, and so on.
@pytest.mark.parametrize(("unit", "workers"), [(2, None), (6, None), (7, None), (9, None), (13, None), (5, 2)])
def test_a_kill_within_and_between_the_stages(folder, monkeypatch, unit, workers):
    monkeypatch.setenv("EVOMETA_TEST_CALLS", str(folder / "calls.txt"))
    spec = {
        "task": "plain.py", "strategy": "random_search", "population": 6, "generations": 2, "seed": 3,
        "hurdle": {"domains": 1}, "champion": {"observed": 1, "replicates": 1}, "name": "x", "backend": "inline",
    }  # fmt: skip
    calm = lineage_files(api.begin(build(spec), folder / "calm").path)
    (folder / "calls.txt").unlink()
    put_all, kept = CellJournal.put_all, []

    def then_die(journal, generation, outcomes):
        put_all(journal, generation, outcomes)
        kept.extend(outcomes)
        if len(kept) >= unit:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CellJournal, "put_all", then_die)
        where = {"backend": "processes", "workers": workers} if workers else {}
        api.begin(build({**spec, **where}), folder / "runs")
    api.resume(folder / "runs/x")
    assert lineage_files(folder / "runs/x") == calm
    expected = {"0": 12, "1": 6}
    if workers is None:
        assert calls(folder) == expected, "no training twice"
    else:
        assert all(expected[domain] <= n <= expected[domain] + 64 for domain, n in calls(folder).items())


FAILING = '''"""Some candidates fail on the hurdle, some behind it."""
import evometa

task = evometa.task(
    name="failing", runs="python", space={"x": evometa.real(0, 1)}, baseline={"x": 0.5},
    domains={f"d{n}": {"support": n, "away": n} for n in range(3)}, split=evometa.Split(("d0", "d1", "d2")),
)

@task.fit
def fit(key, candidate, support):
    if candidate["x"] > 0.8 or (support == 2 and candidate["x"] < 0.2):
        raise ValueError(f"no {support}")
    return candidate["x"]

@task.judge
def judge(key, x, query):
    return {"loss": x}
'''


@pytest.mark.parametrize("workers", [None, 2])
def test_who_fails_failed_on_either_side_of_the_hurdle(folder, workers):
    (folder / "failing.py").write_text(FAILING)
    spec = {"task": "failing.py", "strategy": "random_search", "population": 16, "generations": 1, "workers": workers}
    run = api.begin(build({**spec, "hurdle": {"domains": 2}, "name": "x"}), folder / "runs")
    table = run.lineage(["params", "failure", "message", "scores"]).to_pylist()
    order = sorted(range(16), key=lambda i: dict(table[i]["params"])["x"])
    for place, index in enumerate(order):
        row, x = table[index], dict(table[index]["params"])["x"]
        losses = [cell["loss"] is not None for cell in row["scores"] if cell["query"] == "away"]
        if x > 0.8:
            assert (row["failure"], losses) == ("error", [False] * 3) and "no 0" in row["message"]
        elif place >= 8:
            assert (row["failure"], losses, row["message"]) == ("skipped", [True, True, False], None)
        elif x < 0.2:
            assert (row["failure"], losses) == ("error", [True, True, False]) and "no 2" in row["message"]
        else:
            assert (row["failure"], losses) == ("ok", [True] * 3)
    assert {"error", "skipped", "ok"} == {row["failure"] for row in table}


# Four train domains make two worlds of two levels, so one of them can be the hurdle.
NESTED = {
    "strategy": "random_search", "population": 2, "levels": 2, "hurdle": {"domains": 1}, "name": "x",
    "nest": {"population": 2, "generations": 1, "strategy": "random_search", "tunes": {}},
}  # fmt: skip


def expanded(path):
    """How many searches are made again of one that passed, and of one that was stopped."""
    table, found = rows(path), {}
    assert {len({cell["domain"] for cell in row["scores"]}) for row in table} == {2}
    for failure in ("ok", "skipped"):
        row = next(row for row in table if row["failure"] == failure)
        again = expand(path, row["generation"], row["index"])
        assert again["equal"]
        found[failure] = len(again["searches"])
    return found


def test_a_compiled_search_of_searches_behind_a_hurdle(folder, compile_cache):
    """The hurdle is of the level above: who fails it has no more searches made, and none to be made again."""
    split = {"train": ["w0", "w1", "w2", "w3"], "validation": ["w4"]}
    session = prepare(build({**NESTED, "task": "ridge.py", "split": split, "plan": {"devices": 1}}))
    path = driver.start(session, folder / "runs")  # without a champion: it would compile for longer than all this
    driver.record_event(path, "started", generations=1, backend="inline")
    driver.advance(path, session, 1, driver.Unwatched())
    assert expanded(path) == {"ok": 2, "skipped": 1}


def test_a_search_of_searches_in_python_behind_a_hurdle(folder):
    split = {"train": ["d0", "d1", "d2", "d3"], "validation": ["d4"]}
    spec = {**NESTED, "task": "plain.py", "split": split, "generations": 1, "workers": 2}
    assert expanded(api.begin(build(spec), folder / "runs").path) == {"ok": 2, "skipped": 1}
    said = cli("deploy", "x", "--json")
    assert said.code == 0, said.err
    assert evometa.open("runs/x-deployed").record["spec"].get("hurdle") is None


@pytest.mark.parametrize("task", ["ridge.py", "static.py", "plain.py"])
@pytest.mark.parametrize("place", [(), ("--workers", 2)], ids=["inline", "workers"])
def test_a_hurdle_that_makes_no_sense_is_one_line(folder, compile_cache, task, place):
    train = 3 if task == "ridge.py" else 2
    for setting, code, words in (
        (f"hurdle.domains={train}", 4, f"1 to {train - 1} of the {train} train domains, got {train}"),
        ("hurdle.domains=0", 4, "hurdle.domains: input should be greater than or equal to 1"),
        ("hurdle.keep=0.0", 4, "hurdle.keep: input should be greater than 0"),
        ("hurdle.keep=1.5", 4, "hurdle.keep: input should be less than or equal to 1"),
        ("hurdle.keep=1", 4, "keep = 1 lets everybody pass"),
        ("hurdle.below=inf", 4, "finite below"),
    ):
        one_line(cli("run", task, *SMALL[:4], *place, "--generations", 1, "--set", setting), code, words)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("workers", [(), ("--workers", 2)], ids=["inline", "workers"])
def test_nobody_passes_on_the_host(folder, workers):
    never = ("--set", "hurdle.below=-10")
    files = made("idle", *never, *workers, task="plain.py")
    assert files and {row["failure"] for row in rows(folder / "runs/idle")} == {"skipped"}
    notes = [entry["text"] for entry in events.read(folder / "runs/idle") if entry["kind"] == "note"]
    assert notes == ["generation 0: nobody passed the hurdle; the search stands still until somebody does"]
    assert np.isinf(columns(folder / "runs/idle", "fitness")["fitness"].to_numpy()).all()

"""Python and command tasks through whole runs: whatever goes wrong in a cell is recorded, never the end of the run."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers import lineage_files

import evometa
from evometa import api
from evometa.backends import command, python
from evometa.errors import StorageError
from evometa.evaluate.data import Loaded
from evometa.spec import build

TRAIN = """
import json, os, pathlib, subprocess, sys, time
request = json.load(sys.stdin)
assert sorted(request) == ["candidate", "key", "learned", "support"], sorted(request)
x = request["candidate"]["x"]
with open("calls.log", "a") as log:
    log.write(f"{x} {request['support']}\\n")
mode = pathlib.Path("mode.txt").read_text().split() if pathlib.Path("mode.txt").exists() else ["fine", "0"]
if x > float(mode[1]):
    if mode[0] == "crash":
        print("first words", file=sys.stderr)
        sys.exit("no such luck")
    if mode[0] == "hang":
        child = subprocess.Popen(["sleep", "987"])
        pathlib.Path(f"pid-{os.getpid()}").write_text(str(child.pid))
        time.sleep(987)
    if mode[0] == "slow":
        time.sleep(0.15)
pathlib.Path(request["learned"], "x.json").write_text(json.dumps(x))
"""
JUDGE = """
import json, pathlib, sys
request = json.load(sys.stdin)
assert sorted(request) == ["key", "learned", "query"], sorted(request)
x = json.loads(pathlib.Path(request["learned"], "x.json").read_text())
mode = pathlib.Path("mode.txt").read_text().split() if pathlib.Path("mode.txt").exists() else ["fine", "0"]
print("some progress")
if x > float(mode[1]) and mode[0] == "garbage":
    print("done, all well")
elif x > float(mode[1]) and mode[0] == "nan":
    print('{"loss": NaN}')
elif x > float(mode[1]) and mode[0] == "silent":
    pass
else:
    print(json.dumps({"loss": (x - float(pathlib.Path(request["query"]).read_text())) ** 2}))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "judge.py").write_text(JUDGE)
    for name, target in (("a", 0.2), ("b", 0.3)):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.away").write_text(str(target))
    return tmp_path


def table(**fields: Any) -> dict[str, Any]:
    """A spec's `[task]` table. `-S` and `-E`: a bare interpreter starts faster."""
    python = [sys.executable, "-S", "-E"]
    return {
        "fit": [*python, "train.py"],
        "judge": [*python, "judge.py"],
        "space": {"x": {"kind": "real", "low": 0.0, "high": 1.0}},
        "domains": {name: {"support": name, "away": f"{name}.away"} for name in ("a", "b")},
        "split": {"train": ["a"], "validation": ["b"]},
        **fields,
    }


SMALL: dict[str, Any] = {
    "strategy": "random_search",
    "population": 4,
    "generations": 1,
    "champion": {"observed": 1, "replicates": 1},
}


def rows(run: Any) -> list[dict[str, Any]]:
    return [{**row, "params": dict(row["params"])} for row in run.lineage().to_pylist()]


def run_commands(**fields: Any) -> list[dict[str, Any]]:
    # As the front door does for a spec file: the table is the task.
    return rows(api.begin(build({"task": table(**fields), **SMALL}), Path("runs")))


def test_a_spec_file_runs_its_commands(folder: Path) -> None:
    lines = [
        "strategy = 'random_search'",
        "population = 4",
        "generations = 2",
        "champion = {observed = 1, replicates = 1}",
        "[task]",
    ]
    given = table()
    lines += [
        f"fit = {json.dumps(given['fit'])}",
        f"judge = {json.dumps(given['judge'])}",
        "split = {train = ['a'], validation = ['b']}",
    ]
    lines += ["space = {x = {kind = 'real', low = 0.0, high = 1.0}}"]
    lines += ["[task.domains]", "a = {support = 'a', away = 'a.away'}", "b = {support = 'b', away = 'b.away'}"]
    (folder / "spec.toml").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "evometa", "run", "spec.toml", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["candidates"] == 8
    kept = rows(evometa.open(result["path"]))
    assert all(abs(row["fitness"] - (row["params"]["x"] - 0.2) ** 2) < 1e-6 for row in kept)
    # Only train and validation supports were ever handed over.
    assert {line.split()[1] for line in (folder / "calls.log").read_text().splitlines()} == {"a", "b"}


@pytest.mark.parametrize(
    ("mode", "failure", "words"),
    [
        ("crash", "error", "fit command ended with status 1: no such luck"),
        ("garbage", "error", "expected JSON on its last output line, got 'done, all well'"),
        ("silent", "error", "expected JSON on its last output line, got 'some progress'"),
        ("nan", "nonfinite", "expected a finite float32, got nan"),
    ],
)
def test_what_goes_wrong_in_a_command_is_recorded(folder: Path, mode: str, failure: str, words: str) -> None:
    (folder / "mode.txt").write_text(f"{mode} 0.51")  # the baseline, at 0.5, works
    found = run_commands()
    bad = [row for row in found if row["params"]["x"] > 0.51]
    assert 0 < len(bad) < 4
    assert all(row["failure"] == failure and words in row["message"] and "domain a" in row["message"] for row in bad)
    assert all(row["failure"] == "ok" and np.isfinite(row["fitness"]) for row in found if row not in bad)


def test_messages_name_no_random_folder(folder: Path) -> None:
    train = folder / "train.py"
    train.write_text(TRAIN.replace('sys.exit("no such luck")', "sys.exit('cannot write ' + request['learned'])"))
    (folder / "mode.txt").write_text("crash 0.51")
    words = {row["message"] for row in run_commands() if row["failure"] != "ok"}
    assert words == {"domain a: RuntimeError: fit command ended with status 1: cannot write CELL/learned"}


def test_our_own_temporary_files_are_no_fault_of_a_candidate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("TemporaryDirectory", "TemporaryFile"):
        with monkeypatch.context() as patch:
            patch.setattr(command.tempfile, name, full)
            with pytest.raises(StorageError, match="No space left on device.*TMPDIR"):
                run_commands()


def test_a_late_command_is_killed_with_its_children(folder: Path) -> None:
    (folder / "mode.txt").write_text("hang 0.51")
    found = run_commands(time_limit=1.5)
    bad = [row for row in found if row["params"]["x"] > 0.51]
    assert bad and all(row["failure"] == "timeout" and "took longer than 1.5 s" in row["message"] for row in bad)
    pids = [int(word) for path in folder.glob("pid-*") for word in (path.name[4:], path.read_text())]
    assert len(pids) == 2 * len(bad)
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_a_missing_program_stops_the_run_with_words(folder: Path) -> None:
    with pytest.raises(
        evometa.EvometaError, match=r"every candidate .* 'no-such-program' cannot be started: No such file"
    ):
        run_commands(fit=["no-such-program", "train.py"])


def test_a_killed_run_repeats_no_finished_cell(folder: Path) -> None:
    (folder / "mode.txt").write_text("slow -1")
    text = f"""
import evometa.api as api, pathlib
from evometa.spec import build
api.begin(build({{"task": {table()!r}, **{ {**SMALL, "population": 12, "generations": 2}!r}, "name": "killed"}}), pathlib.Path("runs"))
"""
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE)
    log, journal = folder / "calls.log", folder / "runs" / "killed" / "cells" / "gen-000000000.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or len(journal.read_text().splitlines()) < 5):
        time.sleep(0.02)
        assert process.poll() is None, process.stderr and process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    time.sleep(0.4)  # a cell that was under way ends alone
    done = len(journal.read_text().splitlines())
    assert 5 <= done < 12
    before = len(log.read_text().splitlines())
    assert before <= done + 1  # the one under way
    run = evometa.resume("runs/killed")
    calls = [line for line in log.read_text().splitlines()[before:] if line.endswith(" a")]
    # The missing cells of generation 0, then generation 1.
    assert len(calls) == (12 - done) + 12
    assert len(rows(run)) == 24
    straight = api.begin(
        build({"task": table(), **SMALL, "population": 12, "generations": 2, "name": "straight"}), Path("runs")
    )
    assert [r["scores"] for r in rows(run)] == [r["scores"] for r in rows(straight)]


def test_a_task_in_a_table_has_no_name_to_type(folder: Path) -> None:
    with pytest.raises(evometa.EvometaError) as caught:
        run_commands(fit=["no-such-program", "train.py"])
    assert "evometa check task" not in str(caught.value) and "'fit'" not in str(caught.value)


def test_a_resume_elsewhere_runs_where_the_run_was_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = api.begin(build({"task": table(), **SMALL}), Path("runs")).path.absolute()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    run = api.resume(path, generations=2)
    assert len(rows(run)) == 8 and all(row["failure"] == "ok" for row in rows(run))
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["train.py", "judge.py"])
def test_a_changed_command_is_refused(folder: Path, name: str) -> None:
    path = api.begin(build({"task": table(), **SMALL}), Path("runs")).path
    with (folder / name).open("a") as file:
        file.write("# another line\n")
    with pytest.raises(evometa.EvometaError, match="the task changed since the run started .its code") as caught:
        api.resume(path, generations=2)
    assert caught.value.exit_code == 6  # type: ignore[attr-defined]


# --- plain Python --------------------------------------------------------------------------------------


def python_task(bad: Any, **fields: Any) -> evometa.Task:
    """Candidates above 0.51 do something bad in judge; the baseline, at 0.5, works."""

    def fit(key: int, candidate: dict[str, Any], support: float) -> float:
        return candidate["x"]

    def judge(key: int, learned: float, query: float) -> Any:
        return bad() if learned > 0.51 else {"loss": (learned - query) ** 2}

    return evometa.Task(
        name="bad", space=evometa.Space({"x": evometa.real(0, 1)}), baseline={"x": 0.5}, runs="python", fit=fit, judge=judge,
        domains=(evometa.Domain("a", 0.0, {"away": 0.2}),), split=evometa.Split(("a",)), **fields,
    )  # fmt: skip


def _raise(error: BaseException) -> Any:
    raise error


def _forever() -> Any:
    while True:
        try:
            time.sleep(0)
        except Exception:
            continue


@pytest.mark.parametrize(
    ("bad", "failure", "words"),
    [
        (lambda: _raise(ValueError("too wild")), "error", "domain a: ValueError: too wild"),
        (lambda: _raise(SystemExit(3)), "error", "domain a: SystemExit: 3"),
        (lambda: _raise(MemoryError()), "out_of_memory", "domain a: out of memory"),
        (lambda: {"loss": "0.5"}, "error", "expected a real number, got str '0.5'"),
        (lambda: {"loss": True}, "error", "got bool True"),
        (lambda: {"loss": np.True_}, "error", "got bool"),
        (lambda: {"loss": (0.5,)}, "error", "got tuple"),
        (lambda: {"loss": np.zeros(2)}, "error", "got ndarray"),
        (lambda: {"loss": 1j}, "error", "got complex"),
        (lambda: {"loss": None}, "error", "got NoneType"),
        (lambda: {"loss": 1e39}, "nonfinite", "expected a finite float32, got 1e+39"),
        (lambda: {"loss": float("nan")}, "nonfinite", "got nan"),
        (lambda: {"loss": -float("inf")}, "nonfinite", "got -inf"),
        (lambda: {"loss": 10**400}, "nonfinite", "expected a finite float32"),
        (lambda: {"loss": 0.5, "error": float("nan")}, "nonfinite", "'error' expected a finite"),
        (
            lambda: {"loss": 0.5, "accuracy": 1.0},
            "error",
            "metric 'accuracy' is not declared; add metrics=('accuracy',)",
        ),
        (lambda: {"score": 0.5}, "error", "expected a 'loss', got the names ['score']"),
        (lambda: 0.5, "error", "expected a dict with a 'loss', got float 0.5"),
        (lambda: time.sleep(30), "timeout", "took longer than 0.3 s"),
        (_forever, "timeout", "took longer than 0.3 s"),
    ],
)
def test_what_goes_wrong_in_python_is_recorded(tmp_path: Path, bad: Any, failure: str, words: str) -> None:
    task = python_task(bad, time_limit=0.3, metrics=("error",))
    found = rows(evometa.run(task, out=tmp_path, **SMALL))
    failed = [row for row in found if row["params"]["x"] > 0.51]
    assert 0 < len(failed) < 4
    for row in failed:
        assert row["failure"] == failure and words in row["message"], row["message"]
        assert row["fitness"] == np.inf
    assert all(row["failure"] == "ok" for row in found if row not in failed)


def _stubborn() -> Any:
    """Swallows the bell itself, and answers as if nothing had been."""
    try:
        time.sleep(30)
    except:  # noqa: E722
        return {"loss": 0.0}


def _sulking() -> Any:
    try:
        time.sleep(30)
    except BaseException:
        raise ValueError("another error") from None


def _stubborn_twice() -> Any:
    _stubborn()
    return _stubborn()


@pytest.mark.parametrize("bad", [_stubborn, _sulking, _stubborn_twice])
def test_a_time_limit_cannot_be_swallowed(tmp_path: Path, bad: Any) -> None:
    before = signal.getsignal(signal.SIGALRM)
    found = rows(evometa.run(python_task(bad, time_limit=0.2), out=tmp_path, **SMALL))
    failed = [row for row in found if row["params"]["x"] > 0.51]
    assert failed and all(row["failure"] == "timeout" for row in failed)
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_late_ring_stays_inside() -> None:
    """Rings that come from the first bytecode on: every one ends as a `TimeoutError`."""

    task = python_task(lambda: {"loss": 0.0}, time_limit=2e-5)
    late = 0
    for _ in range(2000):
        try:
            python.run_cell(task, {"x": 0.5}, 0, {"away": 1}, Loaded("a", "train", 0.0, {"away": 0.2}))
        except TimeoutError:
            late += 1
    assert 0 < late <= 2000


def test_equal_runs_store_equal_messages(tmp_path: Path) -> None:
    bads = (lambda: object(), lambda: {"loss": object()}, lambda: _raise(ValueError(f"no {object()!r}")))
    for number, bad in enumerate(bads):
        files = []
        for word in ("one", "two"):
            run = evometa.run(python_task(bad), out=tmp_path / f"{number}{word}", **SMALL)
            assert any(" at 0x..." in (row["message"] or "") for row in rows(run))
            files.append(lineage_files(run.path))
        assert files[0] == files[1]


def test_control_c_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evometa.run(python_task(lambda: _raise(KeyboardInterrupt())), out=tmp_path, **SMALL)


@pytest.mark.parametrize("good", [np.float64(0.25), np.float32(0.25), np.array(0.25), np.int64(0), 0, 0.25])
def test_numbers_of_every_library_are_numbers(tmp_path: Path, good: Any) -> None:
    found = rows(evometa.run(python_task(lambda: {"loss": good}), out=tmp_path, **SMALL))
    assert all(row["failure"] == "ok" for row in found)

"""kill -9 at any moment, then resume: the lineage files of a run that nobody disturbed. Real processes, real signals."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import call, cli, environment, lineage_files, start

pytest_plugins = ["shared"]

PLAIN = (
    *("run", "plain.py", "--population", 6, "--generations", 8, "--strategy", "genetic", "--name", "x"),
    *("--backend", "inline"),  # workers are killed in test_processes_runs.py
)
SLOW = {"EVOMETA_TEST_SLEEP": "0.02"}


def wait_for(condition, process, seconds=120.0):
    """Until the condition holds or the process ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def cells_of(path: Path) -> list[str]:
    """The search's trainings that were counted: those of the validation judge another domain."""
    return [line for line in path.read_text().splitlines() if line.split()[-1] in ("0", "1")] if path.exists() else []


@pytest.fixture
def undisturbed(folder):
    """The lineage of the plain run, and how many trainings it took."""
    (folder / "calm").mkdir()
    said = call(folder, *PLAIN, "--out", "calm", EVOMETA_TEST_CALLS=str(folder / "calm.txt"))
    assert said.code == 0, said.err
    return lineage_files(folder / "calm/x"), len(cells_of(folder / "calm.txt"))


def test_kills_of_a_python_task_and_no_cell_twice(folder, undisturbed):
    """SYS-5: a crash loses at most the cells in flight, and resume gives identical rows."""
    files, trainings = undisturbed
    calls, run = folder / "calls.txt", folder / "runs/x"
    draw = random.Random(0)
    env = {**SLOW, "EVOMETA_TEST_CALLS": str(calls)}
    kills, command = 0, PLAIN
    for more in (1, 9, 17, 23, 30):  # trainings after which, and then a moment later, the process dies
        process = start(folder, *command, **env)
        before = lines(calls)
        wait_for(lambda before=before, more=more: lines(calls) >= before + more, process)
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (run / "run.json").exists():
            command = ("resume", "x")
    assert kills == 5
    said = call(folder, *command, EVOMETA_TEST_CALLS=str(calls))
    assert said.code == 0, said.err
    assert lineage_files(run) == files
    assert cli("archive", "check", "x").code == 0
    assert trainings <= len(cells_of(calls)) <= trainings + kills, "nothing twice but what was in flight"
    assert not list((run / "cells").glob("gen-*"))


def test_kills_of_a_compiled_run(folder, compile_cache, finished):
    """The same for whole blocks in one program."""
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    arguments = ("run", "ridge.py", "--population", 8, "--seed", 3, "--set", "plan.block=4", "--name", "ridge")
    run = folder / "runs/ridge"
    process = start(folder, *arguments, "--generations", 20000, **env)
    wait_for(lambda: len(list(run.glob("lineage/*.parquet"))) >= 5, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start(folder, "resume", "ridge", **env)
    before = len(list(run.glob("lineage/*.parquet")))
    assert before >= 5
    wait_for(lambda: len(list(run.glob("lineage/*.parquet"))) >= before + 9, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    survived = lineage_files(run)
    assert len(survived) > before
    # What the run would have been, had it been left alone up to where it came.
    total = 4 * len(survived)
    assert cli(*arguments, "--generations", total, "--out", "calm").code == 0
    assert lineage_files(folder / "calm/ridge") == survived
    first = {name: data for name, data in survived.items() if name in lineage_files(finished / "runs/ridge")}
    assert len(first) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_that_can_be_resumed(folder, undisturbed, number, code):
    calls = folder / "calls.txt"
    env = {"EVOMETA_TEST_CALLS": str(calls)}
    process = start(folder, *PLAIN, **env, EVOMETA_TEST_SLEEP="0.1")
    wait_for(lambda: lines(calls) >= 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err and err.strip().splitlines()[-1].startswith("evometa: stopped by"), err
    assert "evometa resume runs/x" in err and out == ""
    assert call(folder, "resume", "x", **env).code == 0
    assert lineage_files(folder / "runs/x") == undisturbed[0]
    assert len(cells_of(calls)) <= undisturbed[1] + 1


# Both as the third block is to be committed, in which nothing is to be interrupted: the first is noted, the second drops the block.
TWICE = """
import itertools, os, signal, time
from evometa import cli, driver
commit, blocks = driver._Advance._commit, itertools.count(1)

def interrupted(*arguments):
    for _ in range(2 if next(blocks) == 3 else 0):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    return commit(*arguments)

driver._Advance._commit = interrupted
cli.main()
"""


@pytest.mark.parametrize("where", ["commit", "training"])
def test_a_second_signal_drops_everything(folder, undisturbed, where):
    """What was finished is kept all the same, and the run goes on to the same bytes."""
    calls, run = folder / "calls.txt", folder / "runs/x"
    env = {"EVOMETA_TEST_CALLS": str(calls)}
    if where == "commit":
        command = [sys.executable, "-c", TWICE, *map(str, PLAIN)]
        said = subprocess.run(command, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=200)
        code, out, err = said.returncode, said.stdout, said.stderr
        assert "once more to drop it" in err and "Traceback" not in err, err
        assert len(list(run.glob("lineage/*.parquet"))) == 2, "the third was dropped"
    else:
        process = start(folder, *PLAIN, **env, EVOMETA_TEST_SLEEP="0.1")
        wait_for(lambda: lines(calls) >= 5, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        code = process.returncode
    assert code in (130, -signal.SIGINT) and out == "", err  # a shell says 130 to both
    assert cli("archive", "check", "x").code == 0
    assert call(folder, "resume", "x", **env).code == 0
    assert lineage_files(run) == undisturbed[0]
    assert len(cells_of(calls)) <= undisturbed[1] + (where == "training")


def test_a_task_cannot_swallow_a_stop(folder):
    """A training that was interrupted has no number, even where the task catches every exception."""
    text = (folder / "plain.py").read_text()
    guarded = text.replace("    return candidate\n", "    return candidate\n", 1).replace(
        '    time.sleep(float(os.environ.get("EVOMETA_TEST_SLEEP", "0")))\n',
        '    try:\n        time.sleep(float(os.environ.get("EVOMETA_TEST_SLEEP", "0")))\n'
        "    except Exception:\n        return {'x': 9.0, 'kind': 'round'}\n",
    )
    assert guarded != text
    (folder / "plain.py").write_text(guarded)
    assert cli(*PLAIN, "--out", "calm").code == 0
    calls = folder / "calls.txt"
    process = start(folder, *PLAIN, EVOMETA_TEST_CALLS=str(calls), EVOMETA_TEST_SLEEP="0.3")
    wait_for(lambda: lines(calls) >= 4, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert cli("resume", "x").code == 0
    assert lineage_files(folder / "runs/x") == lineage_files(folder / "calm/x")


def test_a_run_has_one_writer(folder):
    calls = folder / "calls.txt"
    process = start(folder, *PLAIN, EVOMETA_TEST_CALLS=str(calls), EVOMETA_TEST_SLEEP="0.3")
    wait_for(lambda: lines(calls) >= 3, process)
    said = cli("resume", "x")
    assert said.code == 1 and f"process {process.pid}" in said.err and "evometa watch runs/x" in said.err
    seen = cli("watch", "x", "--once", "--json")
    assert seen.code == 0 and seen.data["of"] == 8  # looking on is allowed
    process.kill()
    process.communicate()
    assert cli("resume", "x").code == 0, "death releases the lock"
    shutil.rmtree(folder / "runs")

"""Whole runs in worker processes: the same bytes as in one, through kills and moves, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import call, cli, environment, lineage_files, start
from wild import SMALL, WILD, enter, gone, rows

from evometa import api
from evometa.archives import events
from evometa.spec import build

pytest_plugins = ["shared"]


@pytest.fixture
def wild(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


@pytest.mark.parametrize("victim", ["driver", "warden"])
def test_nobody_survives_a_kill(wild, victim):
    """kill -9: of the driver, with all that candidates started; of the warden, which the run survives."""
    (wild / "mode.txt").write_text("family")
    process = start(
        wild, "run", "wild.py", "--strategy", "random_search", "--population", 4, "--generations", 1, "--workers", 2
    )
    end = time.monotonic() + 120
    while len(list(wild.glob("pids-*"))) < 1 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    below = psutil.Process(process.pid).children(recursive=True)
    pids = {p.pid for p in below} | {int(w) for path in wild.glob("pids-*") for w in path.read_text().split()}
    assert len(pids) >= 5, "the warden, a worker, and a family of three"
    if victim == "driver":
        process.kill()
        process.communicate()
        assert gone(pids)
    else:
        (wild / "mode.txt").write_text("fine")
        warden = psutil.Process(process.pid).children()[0]
        workers = [p.pid for p in warden.children()]
        warden.kill()
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert gone(workers)
        for pid in pids:  # what outlives a warden that was killed: it cannot be asked any more
            if psutil.pid_exists(pid) and psutil.Process(pid).name() == "sleep":
                os.kill(pid, signal.SIGKILL)


def test_a_night_that_was_cut_short_repeats_only_what_was_under_way(folder):
    """kill -9 of everything at several moments: finished cells are not computed again, and the bytes are the same."""
    plain = ("run", "plain.py", "--population", 6, "--generations", 4, "--strategy", "genetic", "--name", "x")
    assert cli(*plain, "--out", "calm").code == 0
    calls, run, command, kills = folder / "calls.txt", folder / "runs/x", (*plain, "--workers", 2), 0
    env = {"EVOMETA_TEST_CALLS": str(calls), "EVOMETA_TEST_SLEEP": "0.1"}

    def counted():
        lines = calls.read_text().splitlines() if calls.exists() else []
        return len([line for line in lines if line.split()[-1] in ("0", "1")])

    for more in (3, 14, 25):
        process = start(folder, *command, **env)
        end = time.monotonic() + 120
        while counted() < more and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in family:
            if one.is_running():
                one.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert gone([one.pid for one in family])
        command = ("resume", "x")
    assert kills == 3
    said = call(folder, *command, **{**env, "EVOMETA_TEST_SLEEP": "0"})
    assert said.code == 0, said.err
    assert lineage_files(run) == lineage_files(folder / "calm/x")
    # Two workers: at each kill two cells under way, and two that ended a moment before and were not recorded yet.
    assert 48 <= counted() <= 48 + 4 * kills
    assert cli("archive", "check", "x").code == 0


def test_a_signal_stops_the_run_and_its_workers(folder):
    process = start(folder, "run", "plain.py", "--population", 6, "--generations", 8, "--workers", 2, "--name", "x", "--strategy", "genetic",
                    EVOMETA_TEST_SLEEP="30")  # fmt: skip
    end = time.monotonic() + 120
    while len(psutil.Process(process.pid).children(recursive=True)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    family = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert gone(family)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(copies, workers):
    made = ("--population", 8, "--seed", 3, "--generations", 5, "--strategy", "genetic")
    said = cli(
        "run", "plain.py", *made, "--backend", "processes", "--workers", workers, "--name", "plain", "--out", "other"
    )
    assert said.code == 0, said.err
    assert lineage_files(copies / "other/plain") == lineage_files(copies / "runs/plain")
    assert events.read(copies / "other/plain")[0]["workers"] == workers
    assert (
        cli("unseal", "other/plain", "--json").data["domains"] == cli("unseal", "runs/plain", "--json").data["domains"]
    )
    kinds = [event["kind"] for event in events.read(copies / "other/plain")]
    assert kinds[-2:] == ["opening", "opened"]


def test_a_resume_may_move(copies):
    """From here to workers and back: what follows is the same, and the diary says where it was computed."""
    assert cli("resume", "plain", "--generations", 6, "--workers", 2).code == 0
    assert cli("resume", "plain", "--generations", 7).code == 0
    assert cli("resume", "plain", "--generations", 8, "--backend", "inline").code == 0
    where = [
        (e["backend"], e.get("workers"))
        for e in events.read(copies / "runs/plain")
        if e["kind"] in ("started", "resumed")
    ]
    assert where == [("inline", None), ("processes", 2), ("processes", 2), ("inline", None)]
    made = ("--population", 8, "--seed", 3, "--strategy", "genetic", "--name", "plain", "--out", "straight")
    assert cli("run", "plain.py", *made, "--generations", 8).code == 0
    assert lineage_files(copies / "straight/plain") == lineage_files(copies / "runs/plain")


GPUS = '''"""What a worker sees."""
import os, time
import evometa

@evometa.objective(space={"x": evometa.real(0, 1)}, runs="python", name="gpus", metrics=("device",))
def task(key, candidate):
    time.sleep(0.2)
    return {"loss": candidate["x"], "device": float(os.environ["CUDA_VISIBLE_DEVICES"].replace(",", ".") or -1)}
'''


@pytest.mark.parametrize(("each", "seen"), [(1, {4.0, 7.0}), (2, {4.7}), (0.5, {4.0, 7.0}), (0, {-1.0})])
def test_every_worker_sees_its_own_gpus(tmp_path, monkeypatch, each, seen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    Path("gpus.py").write_text(GPUS)
    workers = {1: 2, 2: 1, 0.5: 4, 0: 1}[each]
    run = api.begin(
        build({"task": "gpus.py", **SMALL, "population": 16, "workers": workers, "gpus_per_worker": each}), Path("runs")
    )
    found = {
        round(
            dict(row["metrics"])["device/seen"]
            if "device/seen" in dict(row["metrics"])
            else next(v for k, v in dict(row["metrics"]).items() if "device" in k),
            6,
        )
        for row in rows(run)
    }
    assert found == seen


def test_a_script_is_not_run_again_by_its_workers(wild):
    """No `if __name__ == "__main__"` is needed: workers do not import the script that starts them."""
    text = f'print("once"); import evometa; evometa.run("wild.py", workers=2, **{SMALL!r})'
    (wild / "script.py").write_text(text)
    done = subprocess.run([sys.executable, "script.py"], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["once"]


def test_what_workers_print_is_shown(wild):
    (wild / "wild.py").write_text(
        WILD.replace('return candidate["x"]', 'print("seen", support); return candidate["x"]')
    )
    said = call(
        wild,
        "run",
        "wild.py",
        "--strategy",
        "random_search",
        "--population",
        4,
        "--generations",
        1,
        "--workers",
        1,
        "--json",
    )
    assert said.code == 0, said.err
    assert said.err.count("seen a") == 4 and json.loads(said.out)["candidates"] == 4

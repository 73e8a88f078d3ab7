"""Whole runs under fire: killed, signalled, out of disk, with a clock that jumps. The final bytes are always the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fire_workload import Server, acknowledged, kill_until_done
from helpers import call, cli, lineage_files, start, write_tasks

from evometa.archives.check import check
from evometa.archives.read import Archive

pytest_plugins = ["shared"]
KILLS = 50
LONG = {"generations": 60}
COMPILED = ("run", "ridge.py", "--population", 8, "--seed", 3, "--set", "plan.block=4", "--name", "ridge")
SLOW = {"env": {"EVOMETA_TEST_SLEEP": "0.005"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that starts runs at once."""
    server = Server(tmp_path_factory.mktemp("fire"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def calm(server):
    """`calm(generations)`: the lineage files of the run that nobody disturbed."""
    made = {}

    def files(generations: int, seed: int = 0) -> dict[str, bytes]:
        if (generations, seed) not in made:
            run = server.folder / f"calm-{generations}-{seed}/x"
            server.start("run", run, spec={"generations": generations, "seed": seed})
            assert server.end() == 0, server.said()
            assert acknowledged(run) == generations
            made[generations, seed] = lineage_files(run)
        return made[generations, seed]

    return files


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def parts(run: Path) -> int:
    return len(list((run / "lineage").glob("*.parquet")))


@pytest.mark.timeout(1800)  # on a machine that is busy with other things
def test_fifty_kills_at_any_moment(server, calm):
    """Reliability R2: acknowledged rows are there after each, none twice, and in the end the undisturbed run's bytes."""
    calm(3)  # compiles
    began = time.monotonic()
    calm(3, seed=1)
    longest = min(4.0, 1.5 * (time.monotonic() - began))  # of a start, a few generations and an end on this machine
    hit, seed = 0, 0
    while hit < KILLS:
        run = server.folder / f"fire-{seed}/x"
        spec = {**LONG, "seed": seed}
        hit += kill_until_done(server, run, random.Random(seed), longest, KILLS - hit, spec=spec, **SLOW)
        assert lineage_files(run) == calm(60, seed) and check(run).problems == []
        assert not list((run / "cells").glob("gen-*"))
        seed += 1
    assert hit == KILLS


@pytest.mark.timeout(1800)
def test_five_kills_of_a_compiled_run(folder, compile_cache):
    """Blocks of generations in one program, from a warm cache."""
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    run, draw = folder / "runs/ridge", random.Random(5)
    command = (*COMPILED, "--generations", 20000)
    for kill in range(5):
        process = start(folder, *command, **env)
        before = parts(run)
        wait_for(lambda before=before, p=process: parts(run) > before + 2 or p.poll() is not None)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and parts(run) > before, kill
        command = ("resume", "ridge")
        assert check(run).problems == []
    total = Archive(run).generations()
    assert cli(*COMPILED, "--generations", total, "--out", "calm").code == 0
    assert lineage_files(folder / "calm/ridge") == lineage_files(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_under_load(server, calm, number):
    """The run ends with 128 + the signal's number, everything acknowledged is there, and a resume gives the rest."""
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() or 1)]
    run = server.folder / f"signal-{number}/x"
    try:
        pid = server.start("run", run, spec=LONG, **SLOW)
        wait_for(lambda: parts(run) >= 3)
        os.kill(pid, number)
        assert server.end() == 128 + number, server.said()
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert f"stopped by {signal.Signals(number).name}" in server.said() and "evometa resume" in server.said()
    assert 3 <= acknowledged(run) <= parts(run) < 60 and check(run).problems == []
    server.start("resume", run)
    assert server.end() == 0 and lineage_files(run) == calm(60)


@pytest.fixture(scope="module")
def calm_ridge(tmp_path_factory, compile_cache):
    """The lineage files of a compiled run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    write_tasks(folder)
    with contextlib.chdir(folder):
        assert cli(*COMPILED, "--generations", 8).code == 0
    return lineage_files(folder / "runs/ridge")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_while_it_compiles(folder, number, calm_ridge, compile_cache):
    """From the first moment that there is a run: in mid-compile, or in a block. Nothing is torn, and it goes on."""
    process = start(folder, *COMPILED, "--generations", 8)  # and keeps nothing that it compiles
    run = folder / "runs/ridge"
    wait_for(lambda: (run / "run.json").exists() or process.poll() is not None)
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode in (128 + number, 0), err
    assert "Traceback" not in err and ("stopped by" in err or process.returncode == 0), err
    assert call(folder, "resume", "ridge", JAX_COMPILATION_CACHE_DIR=compile_cache).code == 0
    assert lineage_files(run) == calm_ridge and check(run).problems == []


def test_a_second_process_on_the_same_run_harms_nothing(server, calm, monkeypatch):
    run = server.folder / "twice/x"
    monkeypatch.chdir(server.folder)
    server.start("run", run, spec=LONG, **SLOW)
    wait_for(lambda: parts(run) >= 2)
    refused = 0
    for _ in range(3):
        said = cli("resume", run)
        refused += said.code == 1 and "another process is running x" in said.err
        assert cli("archive", "top", run).code == 0 and cli("watch", run, "--once").code == 0
    assert refused == 3
    assert server.end() == 0 and lineage_files(run) == calm(60)


@pytest.mark.parametrize("shift", [-86_400, 3600])
def test_a_clock_that_jumps(server, calm, shift):
    """Back by a day or on by an hour at every look at it: times in the diary are wrong, and nothing else."""
    run = server.folder / f"clock{shift}/x"
    server.start("run", run, spec={"generations": 12}, shift=shift)
    assert server.end() == 0, server.said()
    assert lineage_files(run) == calm(12) and check(run).problems == []


def test_a_full_disk(server, calm):
    """No file may grow beyond a part's size: the run stops with 74, names the cure, and goes on to the same bytes."""
    files = calm(12)
    run = server.folder / "full/x"
    server.start("run", run, spec={"generations": 12}, bytes=max(map(len, files.values())) - 1)
    assert server.end() == 74, server.said()
    assert server.said().startswith("StorageError: ") and "evometa resume" in server.said()
    assert check(run).problems == [] and parts(run) >= acknowledged(run)
    server.start("resume", run)
    assert server.end() == 0, server.said()
    assert lineage_files(run) == files


def test_a_small_disk(server, calm, tmp_path):
    """The same where a real file system has no room left."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        run = tmp_path / "x"
        server.start("run", run, spec=LONG)
        assert server.end() == 74, server.said()
        assert "the disk is full" in server.said() and f"evometa resume {run}" in server.said()
        kept = parts(run)
        assert 0 < kept < 60 and kept >= acknowledged(run) and check(run).problems == []
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path], check=True)
        server.start("resume", run)
        assert server.end() == 0, server.said()
        assert lineage_files(run) == calm(60)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_durations_come_from_a_clock_that_does_not_jump():
    """Nothing that is computed, and no limit, asks for the time of day."""
    import ast

    import evometa

    for path in Path(evometa.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                word = f"{node.value.id}.{node.attr}"
                # The diary, ages of files, and the doctor's look at the clock itself.
                allowed = path.name in ("events.py", "write.py", "doctor_machine.py")
                assert allowed or word not in ("time.time", "datetime.now", "datetime.utcnow"), path

"""Command tasks in worker processes: the same bytes, the same limits, and nothing left on the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import lineage_files
from wild import ours, outcomes

from evometa import api
from evometa.spec import build

# A candidate above 0.51 does what mode.txt says.
TRAIN = """
import json, os, pathlib, signal, sys, time
request = json.load(sys.stdin)
x, mode = request["candidate"]["x"], pathlib.Path("mode.txt").read_text()
if x > 0.51:
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(987)
    if mode == "eat":
        held = []
        while True:
            held.append(bytearray(8 << 20))
            time.sleep(0.002)
    if mode == "chat":
        while True:
            print("x" * 1000)
    if mode == "mutter":
        print("x" * (3 << 20))
    if mode == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(987)
print("progress")
pathlib.Path(request["learned"], "x.json").write_text(json.dumps([x, os.environ.get("CUDA_VISIBLE_DEVICES", "")]))
"""
JUDGE = """
import json, pathlib, sys
request = json.load(sys.stdin)
x, device = json.loads(pathlib.Path(request["learned"], "x.json").read_text())
print(json.dumps({"loss": (x - request["query"]) ** 2, "device": float(device or -1)}))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "cells").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "cells"))
    python = [sys.executable, "-S", "-E"]  # a bare interpreter starts faster
    table = {
        "fit": [*python, "train.py"],
        "judge": [*python, "judge.py"],
        # Not in the order of their names: a worker must decode a genome as the run does.
        "space": {"x": {"kind": "real", "low": 0.0, "high": 1.0}, "a": {"kind": "real", "low": 5.0, "high": 6.0}},
        "domains": {name: {"support": name, "away": 0.2} for name in ("one", "two")},
        "split": {"train": ["one"], "validation": ["two"]},
        "metrics": ["device"],
    }

    def start(mode, out="runs", **spec):
        Path("mode.txt").write_text(mode)
        small = {
            "strategy": "random_search",
            "population": 4,
            "generations": 1,
            "champion": {"observed": 1, "replicates": 1},
        }
        return api.begin(build({"task": table, **small, "name": "x", **spec}), Path(out))

    return start


@pytest.mark.parametrize(
    ("mode", "limits", "failure", "message"),
    [
        ("hang", {"seconds": 3}, "timeout", "domain one: fit command took longer than 3 s"),
        ("eat", {"memory_mb": 250}, "out_of_memory", "domain one: used more than 250 MB of memory"),
        ("chat", {"output_mb": 1}, "error", "domain one: RuntimeError: fit command wrote more than 1 MB of output"),
        ("mutter", {"output_mb": 1}, "error", "domain one: RuntimeError: fit command wrote more than 1 MB of output"),
        ("parent", {}, "worker_lost", "domain one: worker lost: its process was ended by SIGKILL (3 attempts)"),
    ],
)
def test_commands_keep_the_limits(run, mode, limits, failure, message):
    found = run(mode, backend="processes", workers=2, limits=limits)
    assert outcomes(found) == {(failure, message)}
    assert not ours() and not list(Path("cells").iterdir())


def test_the_bytes_are_those_of_one_process(run):
    here, there = run("fine", out="here"), run("fine", out="there", backend="processes", workers=2)
    assert lineage_files(here.path) == lineage_files(there.path)
    assert not list(Path("cells").iterdir())


def test_commands_see_their_workers_gpus(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    found = run("fine", population=12, gpus_per_worker=1).lineage(["metrics"])["metrics"].to_pylist()
    devices = {value for row in found for name, value in row if name.startswith("device")}
    assert devices == {np.float64(4), np.float64(7)}

"""A task of which some candidates behave badly, and what to ask of its runs."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from evometa import api
from evometa.spec import build

# Candidates above 0.51 do what mode.txt says; the baseline, at 0.5, works.
WILD = '''"""A task of which some candidates behave badly."""
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
import evometa

task = evometa.task(
    name="wild",
    runs="python",
    space={"x": evometa.real(0, 1)},
    baseline={"x": 0.5},
    domains={name: {"support": name, "away": 0.2} for name in ("a", "b")},
    split=evometa.Split(("a",), ("b",)),
    objective="away",
)

class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("cannot be pickled")
        self.two = lambda: two

def forever():
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

def hold(number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(987)

def family():
    """A child in a session of its own, and a daemon whose parent is gone."""
    child = subprocess.Popen(["sleep", "987"], start_new_session=True)
    daemon = subprocess.run(["sh", "-c", "setsid sleep 987 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE).stdout
    pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid} {int(daemon)}")
    pathlib.Path("pids.tmp").rename(f"pids-{os.getpid()}")
    time.sleep(987)

def eat():
    held = []
    while True:
        held.append(bytearray(8 << 20))
        time.sleep(0.002)

def gulp():
    held = bytes(bytearray(400 << 20))
    del held

def chat():
    while True:
        print("x" * 1000)

def once(name):
    """True the first time that this is asked for, in whichever process."""
    try:
        os.mkdir(name)
        return True
    except FileExistsError:
        return False

DEEDS = {
    "fine": lambda: None,
    "sleep": lambda: time.sleep(987),
    "forever": forever,
    "ignore": lambda: hold(1),
    "stuck": lambda: ctypes.PyDLL(None).sleep(987),  # holds the interpreter's lock: no handler runs
    "family": family,
    "exit": lambda: os._exit(3),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": lambda: os.abort(),
    "eat": eat,
    "gulp": gulp,
    "chat": chat,
    "mutter": lambda: print("x" * (3 << 20)),
    "strange": lambda: (_ for _ in ()).throw(Unpicklable(1, 2)),
    "break": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "leave": lambda: sys.exit("enough"),
    "unlucky": lambda: os._exit(9) if once("luck") else None,
    "silent": lambda: os.closerange(3, 64),
    "mute": lambda: (os.closerange(3, 64), time.sleep(987)),
}

@task.fit
def fit(key, candidate, support):
    if candidate["x"] > 0.51:
        DEEDS[pathlib.Path("mode.txt").read_text()]()
    return candidate["x"]

@task.judge
def judge(key, x, query):
    return {"loss": (x - query) ** 2}
'''

SMALL = {"strategy": "random_search", "population": 4, "generations": 1, "champion": {"observed": 1, "replicates": 1}}


def enter(tmp_path, monkeypatch):
    """A folder with the task, as current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wild.py").write_text(WILD)
    (tmp_path / "mode.txt").write_text("fine")
    return tmp_path


def run_wild(mode, name="x", out="runs", **spec):
    Path("mode.txt").write_text(mode)
    given = {"task": "wild.py", **SMALL, "backend": "processes", "workers": 2, "name": name, **spec}
    return api.begin(build(given), Path(out))


def rows(run):
    return [{**row, "params": dict(row["params"])} for row in run.lineage().to_pylist()]


def outcomes(run):
    """{(failure, message)} of the candidates that misbehave; the others must be well."""
    found = rows(run)
    bad = [row for row in found if row["params"]["x"] > 0.51]
    assert 0 < len(bad) < len(found)
    for row in found:
        if row not in bad:
            assert row["failure"] == "ok" and abs(row["fitness"] - (row["params"]["x"] - 0.2) ** 2) < 1e-6
    return {(row["failure"], row["message"]) for row in bad}


def ours():
    """Processes below this one, but for those that are waited for elsewhere, and multiprocessing's own, which stays."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def gone(pids, seconds=20.0):
    """Whether none of the processes runs any more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.05)
    return False

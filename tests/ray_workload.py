"""What the tests of Ray clusters have computed: a task, a builder of workers, and a process that uses an engine."""

from __future__ import annotations

# What mode.json says: how long a training takes, whether large candidates hang, and what is killed once.
ROUGH = '''"""Candidates that take their time; some hang, some kill what computes them."""
import json
import os
import pathlib
import signal
import subprocess
import time
import evometa

task = evometa.task(
    name="rough",
    runs="python",
    space={"x": evometa.real(0, 1)},
    baseline={"x": 0.5},
    domains={name: {"support": n, "away": 0.1 * n} for n, name in enumerate("abc")},
    split=evometa.Split(("a", "b"), ("c",)),
    objective="away",
)

def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

def kill(who):
    try:
        os.mkdir(f"killed-{who}")
    except FileExistsError:
        return
    warden = os.getppid()
    os.kill({"worker": os.getpid(), "warden": warden, "ray": parent(warden)}[who], signal.SIGKILL)
    time.sleep(60)

@task.fit
def fit(key, candidate, support):
    mode = json.loads(pathlib.Path("mode.json").read_text())
    with open("calls.txt", "a") as file:
        file.write(f"{os.getpid()} {key} {candidate['x']!r} {support}\\n")
    for who in mode.get("kill", []):
        kill(who)
    if mode.get("hang") and candidate["x"] > 0.6:
        time.sleep(987)
    if mode.get("family"):
        subprocess.Popen(["sleep", "987"], start_new_session=True)
    time.sleep(mode.get("nap", 0))
    return candidate["x"]

@task.judge
def judge(key, x, query):
    if pathlib.Path("devices").exists():
        with open("devices", "a") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
    return {"loss": (x - query) ** 2}
'''

# A command, given its role: candidates of a large x hang, of a small one print three megabytes or end with an error.
TALK = """
import json, pathlib, sys, time
request = json.load(sys.stdin)
file = pathlib.Path(request["learned"], "x.json")
if sys.argv[1] == "fit":
    x = request["candidate"]["x"]
    if x > 0.8:
        time.sleep(987)
    if x < 0.15:
        sys.exit("no such luck")
    if x < 0.3:
        print("x" * (3 << 20))
    file.write_text(json.dumps(x))
else:
    print(json.dumps({"loss": (json.loads(file.read_text()) - request["query"]) ** 2}))
"""
COMMANDS = """
strategy = "random_search"
population = 6
generations = 1
seed = 11
champion = {observed = 1, replicates = 1}
limits = {seconds = 10}
[task]
fit = ["PYTHON", "-S", "-E", "talk.py", "fit"]
judge = ["PYTHON", "-S", "-E", "talk.py", "judge"]
space = {x = {kind = "real", low = 0.0, high = 1.0}}
domains = {a = {support = "a", away = 0.2}, b = {support = "b", away = 0.3}}
split = {train = ["a"], validation = ["b"]}
"""

# An engine without a run: what it says of works that end in any way.
ENGINE = """
import os, sys
from concurrent.futures import Future
from evometa.backends import ray as engines
from evometa.backends.dispatch import Limits, work
from evometa.errors import EvometaError
from evometa.types import Failure

def unit(number, deed, seconds=None):
    return work("scope", [(number, "", 0)], {"deed": deed}, b"", Limits(seconds))

def one(engine):
    while not (found := engine.wait(None)):
        pass
    return found[0]

notes = []
engine = engines.RayEngine({"builder": "deeds:build", "plan": {"platform": "cpu"}}, note=notes.append)
assert notes == ["ray: 2 nodes, 2 workers"] and engine.capacity == 4, notes
engine.submit(1, unit(1, "fine"))
assert one(engine).outcomes == {(1, "", 0): {"failure": 0, "threads": os.environ.get("OMP_NUM_THREADS")}}
engine.submit(2, unit(2, "refuse"))
assert str(one(engine).refusal) == "not here"
engine.submit(3, unit(3, "sleep"))
assert engine.wait(0.1) == []
engine.cancel(3)
assert engine.wait(None) == [], "nothing is out any more"
engine.submit(4, unit(4, "sleep", 500.0))
engines._SILENCE = -1000.0 - 1.0
lost = one(engine)
assert (lost.failure, lost.message) == (Failure.WORKER_LOST, "its node says nothing")
for tries in range(4):
    found, future = [], Future()
    future.set_exception(sys.modules["ray"].exceptions.NodeDiedError("it left"))
    if tries == 0:
        engine.submit(6, unit(6, "fine"))
    engine._take((6, engine._out[6].task, future), found)
    assert bool(found) == (tries == 3), "sent again three times"
assert (found[0].failure, found[0].message) == (Failure.WORKER_LOST, "its node was lost")
engine._order = ["nothing that Ray knows"]
engine._digest = "another"
engine.submit(5, unit(5, "fine"))
assert "every node needs the same installation" in str(one(engine).refusal).lower()
engine.close()
engine.close()
assert "ray" in sys.modules and not sys.modules["ray"].is_initialized()
"""
DEEDS = """
import os, subprocess
from evometa.errors import ConfigError

class Deeds:
    def answer(self, head, body, say):
        deed = head["work"]["deed"]
        if deed == "refuse":
            raise ConfigError("not here")
        say.begin(0)
        if deed == "sleep":
            subprocess.run(["sleep", "987"], start_new_session=True)
        say.done(0, {"failure": 0, "threads": os.environ.get("OMP_NUM_THREADS")})

def build(order):
    return Deeds()
"""

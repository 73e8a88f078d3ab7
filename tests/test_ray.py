"""Ray clusters of several nodes: the bytes of one process, whatever is lost on the way, and nobody left behind."""

from __future__ import annotations

import ipaddress
import json
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from helpers import call, cli, environment, lineage_files, one_line, start

from evometa.archives.read import Archive

pytest_plugins = ["shared"]
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'evometa[ray]'")

HERE = Path(__file__).parent

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
RUN = ("run", "rough.py", "--strategy", "genetic", "--population", 6, "--generations", 4, "--name", "x")
TRAININGS = 6 * 4 * 2


class Nodes:
    """A cluster (see ray_cluster.py), and what a driver of it has in its environment."""

    def __init__(self, *nodes: str) -> None:
        self.token = secrets.token_hex(32)
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_cluster.py"), *nodes], env=environment(**self.env), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.env["RAY_ADDRESS"] = self._out.readline().strip()
        assert self.env["RAY_ADDRESS"], "the cluster did not start"

    def tell(self, line: str) -> None:
        self._in.write(line + "\n")
        self._in.flush()
        assert self._out.readline().split() == line.split()[:1]

    def close(self) -> None:
        self._in.close()
        self._process.wait(60)
        self._out.close()


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes; the second shows a GPU that nobody has."""
    nodes = Nodes("1", "1:1")
    yield nodes
    nodes.close()


@pytest.fixture
def rough(folder):
    (folder / "rough.py").write_text(ROUGH)
    return folder


def mode(**said):
    Path("mode.part").write_text(json.dumps(said))
    Path("mode.part").rename("mode.json")  # at once: it may be read meanwhile


def calls(part=0):
    """What the search's trainings wrote down: 0: their processes, None: the rest, which names the training."""
    path = Path("calls.txt")
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line[-1] in "01"]
    return [int(line[0]) for line in lines] if part == 0 else [tuple(line[1:]) for line in lines]


def calm(*arguments, out="calm", **said):
    """The lineage of the same run in this process."""
    mode(**said)
    done = cli(*(arguments or RUN), "--backend", "inline", "--out", out)
    assert done.code == 0, done.err
    Path("calls.txt").unlink(missing_ok=True)
    return lineage_files(Path(out) / "x")


def wait_for(condition, process=None, seconds=150.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end and (process is None or process.poll() is None):
        time.sleep(0.02)
    return condition()


def with_token(token):
    """The processes that were started with a token."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN") == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def evaluators(token):
    """Those of them that compute candidates: wardens, their workers, and what these started."""
    names = []
    for process in with_token(token):
        try:
            names.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [name for name in names if "evometa.backends" in name and "ray_local" not in name or name == "sleep 987"]


def test_a_cluster_gives_the_bytes_of_one_process(rough, cluster):
    expected = calm()
    said = call(rough, *RUN, "--backend", "ray", "--json", **cluster.env)
    assert said.code == 0, said.err
    assert said.data["generations"] == 4, "Ray says nothing on standard output"
    assert lineage_files(rough / "runs/x") == expected
    assert "ray: 2 nodes, 2 workers" in said.err
    assert len(calls()) == TRAININGS and len(set(calls(None))) == TRAININGS
    assert len(set(calls())) == 2, "one worker process on each node, kept warm"
    assert wait_for(lambda: not evaluators(cluster.token)), evaluators(cluster.token)


def test_a_cluster_gives_the_bytes_of_one_process_for_a_jax_task(copies, cluster, compile_cache):
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    made = ("--population", 8, "--seed", 3, "--generations", 12, "--set", "plan.block=4", "--set", "plan.devices=2")
    said = call(copies, "run", "ridge.py", *made, "--name", "ridge", "--out", "other", "--backend", "ray",
                **env, **cluster.env)  # fmt: skip
    assert said.code == 0, said.err
    assert lineage_files(copies / "other/ridge") == lineage_files(copies / "runs/ridge")


def test_a_candidate_that_hangs_and_workers_that_are_killed(rough, cluster):
    """kill -9 of Ray's process, of the warden in it and of the worker below: the lineage knows of none of them."""
    limited = (*RUN, "--set", "limits.seconds=1")
    expected = calm(*limited, hang=True)
    mode(hang=True, kill=["ray", "warden", "worker"])
    said = call(rough, *limited, "--backend", "ray", **cluster.env)
    assert said.code == 0, said.err
    assert sorted(path.name for path in rough.glob("killed-*")) == ["killed-ray", "killed-warden", "killed-worker"]
    assert lineage_files(rough / "runs/x") == expected
    late = [row for row in Archive(rough / "runs/x").table(["failure", "message"]).to_pylist() if row["message"]]
    assert late and all(row["failure"] == "timeout" and "longer than 1 s" in row["message"] for row in late)
    assert wait_for(lambda: not evaluators(cluster.token)), evaluators(cluster.token)


def test_a_node_leaves_and_another_comes(rough, cluster):
    expected = calm()
    mode(nap=0.3)
    process = start(rough, *RUN, "--backend", "ray", **cluster.env)
    assert wait_for(lambda: len(calls()) >= 8, process), process.communicate()
    cluster.tell("remove")
    before = len(calls())
    mode(nap=2)
    assert wait_for(lambda: len(calls()) >= before + 3, process), "the other node goes on"
    known = set(calls())
    cluster.tell("add 1:1")
    assert wait_for(lambda: set(calls()) - known, process), "the new node has work"
    before = len(calls())
    wait_for(lambda: len(calls()) >= before + 6, process)  # and is seen
    mode()
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert lineage_files(rough / "runs/x") == expected
    assert " left (1 worker); " in err and " joined (1 worker); " in err, err
    assert TRAININGS <= len(calls()) <= TRAININGS + 2 and len(set(calls(None))) == TRAININGS


def stopped(process, number, count):
    """A driver that a signal reached after so many trainings: its exit code, and what it said."""
    assert wait_for(lambda: len(calls()) >= count, process), process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert out == "" and "Traceback" not in err, err
    return process.returncode, err


def test_a_driver_is_killed_and_the_run_goes_on_on_a_new_cluster(rough, cluster):
    """kill -9: no candidate is lost, none is there twice, and what it had started on the old cluster ends."""
    expected = calm()
    mode(nap=0.3, family=True)
    process = start(rough, *RUN, "--backend", "ray", **cluster.env)
    assert stopped(process, signal.SIGKILL, 11)[0] == -signal.SIGKILL
    assert wait_for(lambda: not evaluators(cluster.token)), evaluators(cluster.token)
    before = len(calls())
    mode()
    new = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    said = call(rough, "resume", "x", "--backend", "ray", "--workers", 2, **new)
    assert said.code == 0, said.err
    assert "ray: 1 node, 2 workers\n" in said.err
    assert lineage_files(rough / "runs/x") == expected
    assert before < TRAININGS and len(set(calls(None))) == TRAININGS
    assert len(calls()) <= TRAININGS + 2, "nothing is computed again but the two that were under way"
    assert cli("archive", "check", "x").code == 0
    assert not with_token(new["RAY_AUTH_TOKEN"]), "a local cluster ends with its driver"


def test_a_local_cluster_is_nobodys_but_its_drivers(rough, cluster):
    """It listens on 127.0.0.1 and ends with a driver that was killed; Ctrl-C stops a driver at once, on any cluster."""
    expected = calm()
    mode(nap=0.3, family=True)
    local = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = start(rough, *RUN, "--backend", "ray", "--workers", 1, **local)
    assert wait_for(lambda: calls(), process), process.communicate()
    assert_loopback(local["RAY_AUTH_TOKEN"])
    assert stopped(process, signal.SIGKILL, 3)[0] == -signal.SIGKILL
    assert wait_for(lambda: not with_token(local["RAY_AUTH_TOKEN"])), with_token(local["RAY_AUTH_TOKEN"])
    process = start(rough, "resume", "x", "--backend", "ray", **cluster.env)
    code, err = stopped(process, signal.SIGINT, 7)
    assert code == 130 and "evometa: stopped by SIGINT" in err, err
    assert wait_for(lambda: not evaluators(cluster.token)), evaluators(cluster.token)
    mode()
    assert cli("resume", "x", "--backend", "inline").code == 0
    assert lineage_files(rough / "runs/x") == expected


def assert_loopback(token):
    ports = []
    for process in with_token(token):
        with suppress(psutil.NoSuchProcess):  # Ray starts and ends helpers of its own
            ports += [one.laddr for one in process.net_connections("tcp") if one.status == "LISTEN"]
    assert ports
    for port in ports:
        address = ipaddress.ip_address(port.ip)
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback, port


def test_a_worker_sees_the_gpu_that_ray_gave_it(rough, cluster):
    mode()
    (rough / "devices").touch()
    small = (*RUN[:-4], "--generations", 1, "--name", "x")
    said = call(rough, *small, "--backend", "ray", "--gpus-per-worker", 1, **cluster.env)
    assert said.code == 0, said.err
    assert "ray: 1 node, 1 worker\n" in said.err, "only one node has a GPU"
    assert set((rough / "devices").read_text().split()) == {"0"}


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


def python(folder, text, **env):
    command, kept = [sys.executable, "-c", text], environment(**{"PYTHONPATH": str(folder), **env})
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=200, check=False)


def test_the_engine_by_itself(tmp_path, cluster):
    (tmp_path / "deeds.py").write_text(DEEDS)
    done = python(tmp_path, ENGINE, **cluster.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert wait_for(lambda: not evaluators(cluster.token)), evaluators(cluster.token)


def test_what_is_wrong_with_a_cluster_is_one_line(rough, cluster):
    mode()
    nowhere = {**cluster.env, "RAY_ADDRESS": "127.0.0.1:9"}
    one_line(
        call(rough, *RUN, "--backend", "ray", **nowhere), 4, "no Ray cluster answers at 127.0.0.1:9", "RAY_ADDRESS"
    )
    join = "from evometa.backends.ray_cluster import connection\nfrom evometa.errors import ConfigError\n"
    join += "try:\n    connection.acquire(1)\nexcept ConfigError as error:\n    print(error)"
    said = python(rough, join, **{**cluster.env, "RAY_ADDRESS": "ray://127.0.0.1:10001"}).stdout
    assert "ray job submit" in said and said.count("\n") == 1
    cluster.tell("version 2.9.3")
    try:
        said = python(rough, join, **cluster.env).stdout
    finally:
        import ray

        cluster.tell(f"version {ray.__version__}")
    assert "Ray: 2.9.3" in said and "pip install ray==VERSION" in said and said.count("\n") == 1, said
    said = python(rough, join, **{**cluster.env, "RAY_AUTH_TOKEN": "0" * 64}).stdout
    assert "another token" in said and "RAY_AUTH_MODE=token" in said and said.count("\n") == 1, said


def test_who_does_not_use_ray_does_not_wait_for_it(tmp_path):
    text = "import sys, evometa.cli, evometa.placement, evometa.backends.ray; print('ray' in sys.modules)"
    assert python(tmp_path, text).stdout == "False\n"

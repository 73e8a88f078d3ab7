"""Ray clusters of several nodes: the bytes of one process, whatever is lost on the way, and nobody left behind."""

from __future__ import annotations

import ipaddress
import json
import platform
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
from ray_workload import COMMANDS, DEEDS, ENGINE, ROUGH, TALK

from evometa.archives import events
from evometa.archives.read import Archive

pytest_plugins = ["shared"]
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'evometa[ray]'")

HERE = Path(__file__).parent

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


CALM = {}


def calm(*arguments, **said):
    """The lineage of the same run in this process; computed once."""
    mode(**said)
    if (arguments, *said) not in CALM:
        done = cli(*(arguments or RUN), "--backend", "inline", "--out", "calm")
        assert done.code == 0, done.err
        Path("calls.txt").unlink(missing_ok=True)
        CALM[arguments, *said] = lineage_files(Path("calm/x"))
    return CALM[arguments, *said]


def notes():
    """What the diary says of the nodes."""
    return [entry["text"] for entry in events.diary(Path("runs/x")) if entry["kind"] == "note"]


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


def test_a_cluster_gives_the_bytes_of_one_process_behind_a_hurdle(rough, cluster):
    """Two rounds over the cluster: everybody on the hurdle's domain, and on the other who passes."""
    hurdled = (*RUN, "--set", "hurdle.domains=1")
    expected = calm(*hurdled)
    said = call(rough, *hurdled, "--backend", "ray", **cluster.env)
    assert said.code == 0, said.err
    assert lineage_files(rough / "runs/x") == expected
    assert [line[-1] for line in calls(None)].count("0") == 6 * 4
    assert [line[-1] for line in calls(None)].count("1") == 3 * 4


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


def test_commands_on_a_cluster_give_the_rows_of_one_process(tmp_path, monkeypatch, cluster):
    """One hangs and one ends with an error, in the same words; one prints more than it may there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.py").write_text(TALK)
    (tmp_path / "commands.toml").write_text(COMMANDS.replace("PYTHON", sys.executable))
    said = call(tmp_path, "run", "commands.toml", "--backend", "ray", "--set", "limits.output_mb=1", **cluster.env)
    assert said.code == 0, said.err
    (there,) = (tmp_path / "runs").iterdir()
    said = cli("run", "commands.toml", "--backend", "inline", "--out", "calm")
    assert said.code == 0, said.err
    names = ["index", "genome", "params", "fitness", "scores", "failure", "message"]
    found, calm = (Archive(path).table(names).to_pylist() for path in (there, Path("calm") / there.name))
    words = {
        "timeout": "domain a: fit command took longer than 10 s",
        "error": "domain a: RuntimeError: fit command ended with status 1: no such luck",
        "loud": "domain a: RuntimeError: fit command wrote more than 1 MB of output",
        "ok": None,
    }
    met = []
    for row, like in zip(found, calm, strict=True):
        x = dict(row["params"])["x"]
        met.append("timeout" if x > 0.8 else "error" if x < 0.15 else "loud" if x < 0.3 else "ok")
        assert row["message"] == words[met[-1]] and row["failure"] == ("error" if met[-1] == "loud" else met[-1]), row
        assert str(row) == str(like) or (met[-1] == "loud" and like["failure"] == "ok")
    assert set(met) == set(words), met
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
    assert wait_for(lambda: len(notes()) == 3, process), "both are seen"
    mode()
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert lineage_files(rough / "runs/x") == expected
    assert " left (1 worker); " in err and " joined (1 worker); " in err, err
    assert TRAININGS <= len(calls()) <= TRAININGS + 2 and len(set(calls(None))) == TRAININGS
    first, *changes = notes()
    assert first == "ray: 2 nodes, 2 workers", first
    assert sorted(word for text in changes for word in text.split() if word in ("joined", "left")) == ["joined", "left"]
    extras = [json.loads(text)["hosts"] for text in Archive(rough / "runs/x").timings()["extras"].to_pylist()]
    assert len(extras) == 4 and all(hosts == {platform.node(): 12} for hosts in extras), extras


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
    assert len(calls()) <= TRAININGS + 4, "computed again: two that were under way, and two whose results were"
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
    join = "import os\nfrom evometa.backends.ray_cluster import connection\nfrom evometa.errors import ConfigError\n"
    join += "for address in os.environ['ADDRESSES'].split():\n    os.environ['RAY_ADDRESS'] = address\n"
    join += "    try:\n        connection.acquire(1)\n    except ConfigError as error:\n        print(error)"
    here = cluster.env["RAY_ADDRESS"]
    cluster.tell("version 2.9.3")
    try:
        first, said = python(rough, join, ADDRESSES=f"ray://127.0.0.1:10001 {here}", **cluster.env).stdout.splitlines(
            True
        )
    finally:
        import ray

        cluster.tell(f"version {ray.__version__}")
    assert "ray job submit" in first
    assert "Ray: 2.9.3" in said and "pip install ray==VERSION" in said and said.count("\n") == 1, said
    said = python(rough, join, ADDRESSES=here, **{**cluster.env, "RAY_AUTH_TOKEN": "0" * 64}).stdout
    assert "another token" in said and "RAY_AUTH_MODE=token" in said and said.count("\n") == 1, said


def test_the_head_is_lost(rough, cluster):
    """The last of this cluster. Ray would wait for a minute, and then end the driver without a word of ours."""
    expected = calm()
    mode(nap=0.5)
    # A driver that is less patient.
    text = "import sys; from evometa.backends import ray; ray._HEAD = 1.0; from evometa.cli import main; main()"
    command = [sys.executable, "-c", text, *map(str, RUN), "--backend", "ray"]
    process = subprocess.Popen(
        command, cwd=rough, env=environment(**cluster.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert wait_for(lambda: len(calls()) >= 4, process), process.communicate()
    (head,) = (one for one in with_token(cluster.token) if "gcs_server" in one.name())
    head.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and out == "" and "Traceback" not in err, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("evometa: the head of the Ray cluster does not answer any more") and "resume" in last, err
    before = len(calls())
    mode()
    assert cli("resume", "x", "--backend", "inline").code == 0
    assert lineage_files(rough / "runs/x") == expected
    assert 4 <= before < TRAININGS and len(calls()) <= TRAININGS + 4, "what was finished is kept"


def test_who_does_not_use_ray_does_not_wait_for_it(tmp_path):
    text = "import sys, evometa.cli, evometa.placement, evometa.backends.ray; print('ray' in sys.modules)"
    assert python(tmp_path, text).stdout == "False\n"

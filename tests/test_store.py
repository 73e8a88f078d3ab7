"""Runs in an object store: the promises of a disk, kept by a server on 127.0.0.1, through kills, rivals and refusals."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import cli, environment, lineage_files, one_line, write_tasks

import evometa
from evometa.archives import ledger, store
from evometa.errors import EvometaError

pytest_plugins = ["shared", "object_store"]

SMALL = ("run", "plain.py", "--population", 4, "--generations", 2, "--strategy", "genetic", "--name", "x")


def start(folder: Path, *arguments: object, **env: str) -> subprocess.Popen[str]:
    """`evometa ...` as a process of its own, with the same short lease and patience."""
    code = (
        "from evometa.archives import lease, store; lease.LEASE = 1.0; store.PATIENCE = 2.0;"
        "from evometa.cli import main; main()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environment(**env), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The lineage of the small run, as a disk has it."""
    at = tmp_path_factory.mktemp("expected")
    write_tasks(at)
    with contextlib.chdir(at):
        assert cli(*SMALL).code == 0
    return lineage_files(at / "runs" / "x")


def test_a_run_in_a_store_is_a_run(bucket, made, expected, folder):
    """The same bytes, every way to look at it, another machine, and a way home."""
    run = made["path"]
    assert run == f"{bucket.url}/x"
    assert bucket.lineage("x") == expected
    assert not Path("s3:").exists() and not Path("runs").exists()
    one_line(cli(*SMALL, "--out", bucket.url), 2, "exists", f"evometa resume {run}")
    bucket.forget()
    assert cli("resume", run, "--generations", 4).code == 0
    assert cli("unseal", run).code == 0
    bucket.forget()
    rows = cli("runs", "--out", bucket.url, "--json").data
    assert [(row["run"], row["generations"], row["looks"]) for row in rows] == [("x", 4, 1)]
    assert len(list((bucket.copy("x") / "lineage").iterdir())) == 1, "a list of runs needs the last part alone"
    assert cli("archive", "check", run, "--json").data == {"ok": True, "parts": 4, "rows": 16, "problems": []}
    assert cli("archive", "top", run, "-k", 1, "--json").data[0]["fitness"] is not None
    assert cli("archive", "query", run, "SELECT count(*) AS n FROM lineage", "--json").data == [{"n": 16}]
    for command in ("report", "compare", "watch", "trust"):
        said = cli(command, run, *(["--once"] if command == "watch" else []))
        assert said.code == 0 and "stores" not in said.out, said
    assert cli("archive", "lineage", run, "--json").data["nodes"]
    assert "3 parts" not in cli("archive", "compact", run, "--dry-run").out
    for command in ("compact", "repair"):
        one_line(cli("archive", command, run), 2, f"evometa archive pull {run} DIR")
    assert cli("run", "plain.py", "--from", f"{run}@2", "--strategy", "genetic", "--population", 4, "--generations", 3,
               "--out", bucket.url, "--name", "fork").code == 0  # fmt: skip
    bucket.forget()
    assert cli("resume", f"{bucket.url}/fork", "--generations", 4).code == 0
    assert cli("archive", "pull", run, "home/x").code == 0
    assert cli("archive", "check", "home/x").code == 0 and cli("resume", "home/x", "--generations", 5).code == 0
    assert ledger.read(Path("home"))[0]["runs"] == ["x"]
    assert cli("archive", "compact", "home/x", "--grace", 0).code == 0


def test_python_takes_urls(bucket, made, folder):
    run = evometa.open(made["path"])
    assert run.generations == 2
    again = evometa.resume(Path(made["path"]), generations=4)  # what pathlib makes of it
    assert again.generations == 4
    with pytest.raises(EvometaError, match=f"evometa runs --out {bucket.url}$"):
        evometa.open(f"{bucket.url}/y")


class Crash(BaseException):
    """The process is gone."""


class Dying:
    """A store client whose process dies at a given request, before or after the server heard it."""

    def __init__(self, monkeypatch, at: int, heard: bool) -> None:
        self.count, self.at, self.heard, self.dead = 0, at, heard, False
        for name in ("put", "delete", "get", "list"):
            monkeypatch.setattr(store.Store, name, self._wrap(getattr(store.Store, name)))

    def _wrap(self, real):
        def method(*arguments, **options):
            if threading.current_thread() is not threading.main_thread():
                if self.dead:
                    raise store.Unreachable("dead")
                return real(*arguments, **options)
            if self.dead:
                raise Crash
            self.count += 1
            if self.count == self.at:
                self.dead = True
                if self.heard:
                    real(*arguments, **options)
                raise Crash
            return real(*arguments, **options)

        return method


def test_a_crash_at_any_request_loses_and_doubles_nothing(bucket, expected, folder, monkeypatch, diary):
    with monkeypatch.context() as patch:
        watching = Dying(patch, 0, False)
        assert cli(*SMALL, "--out", bucket.url).code == 0
    requests = watching.count
    assert requests > 12
    died = 0
    for at in range(1, requests + 1, 2):
        for key in bucket.names():
            bucket.remove(key)
        bucket.forget()
        with monkeypatch.context() as patch:
            dying = Dying(patch, at, heard=at % 4 == 1)
            with contextlib.suppress(Crash):
                cli(*SMALL, "--out", bucket.url)
        died += dying.dead  # one that checkpoints less often has fewer requests
        acknowledged = {event["kind"] for event in diary()}
        if at % 3 == 0:
            bucket.forget()
        begun = "runs/x/run.json" in bucket.names()
        said = cli("resume", f"{bucket.url}/x") if begun else cli(*SMALL, "--out", bucket.url)
        assert said.code == 0, (at, said)
        assert bucket.lineage("x") == expected, at
        assert acknowledged <= {event["kind"] for event in diary()}
        assert cli("archive", "check", f"{bucket.url}/x").code == 0
    assert died > 5


def test_kill_9_at_any_moment(bucket, expected, folder):
    """Real processes: killed thrice, the last time followed by another machine."""
    moments = random.Random(5)
    slow = {"EVOMETA_TEST_SLEEP": "0.02"}
    command = (*SMALL, "--out", bucket.url)
    for round_ in range(3):
        process = start(folder, *command, **slow)
        before = len(bucket.names())
        end = time.monotonic() + 120
        wanted = before + moments.randrange(1, 4)
        while len(bucket.names()) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if "runs/x/run.json" in bucket.names():
            command = ("resume", f"{bucket.url}/x")
        if round_ == 1:
            bucket.forget()
    bucket.forget()
    assert cli(*command).code == 0
    assert bucket.lineage("x") == expected
    assert cli("archive", "check", f"{bucket.url}/x").code == 0


def test_a_server_that_goes_away_costs_a_pause(bucket, expected, folder):
    process = start(folder, *SMALL, "--out", bucket.url, EVOMETA_TEST_SLEEP="0.3")
    end = time.monotonic() + 120
    while not bucket.names("runs/x/lineage/") and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    bucket.server.stop()
    try:
        out, err = process.communicate(timeout=120)
        one_line(cli("archive", "top", f"{bucket.url}/x"), 74, "type it again")
    finally:
        bucket.server.start()
    assert process.returncode == 74 and out == "", (process.returncode, out, err)
    assert f"evometa resume {bucket.url}/x" in err.splitlines()[-1] and "Traceback" not in err
    assert cli("resume", f"{bucket.url}/x").code == 0
    assert bucket.lineage("x") == expected

"""Runs that can be stopped anywhere without waiting for Python to start: a process that has imported everything forks
one child for each line of JSON on standard input, `{"folder", "do": "run" | "resume", "env", ...}`.

The child's id is printed, and when it ended its exit code. A child says in `acks` which generations it was told are on
disk. As a script with an argument, the soak: `python fire_workload.py soak KILLS`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

TASK = '''"""A noisy parabola in plain Python that takes its time."""
import os
import time
import numpy as np
import evometa

task = evometa.task(
    name="fire",
    runs="python",
    time_limit=None,
    space={"x": evometa.real(-1, 1), "y": evometa.real(-1, 1)},
    domains={f"d{n}": {"support": n, "away": n} for n in range(4)},
    split=evometa.Split(("d0", "d1"), ("d2",), ("d3",)),
    objective="away",
)

@task.fit
def fit(key, candidate, support):
    time.sleep(float(os.environ.get("EVOMETA_TEST_SLEEP", "0")))
    return candidate

@task.judge
def judge(key, candidate, query):
    return {"loss": (candidate["x"] - 0.1 * query) ** 2 + 0.1 * np.random.default_rng(key).normal()}
'''
POPULATION = 4


class Acks:
    """Looks on, and writes down every generation that a run says is on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def begin(self, session: Any, path: Path, generation: int, until: int) -> None:
        """Nothing."""

    def block(self, block: Any, state: Any, seconds: float) -> None:
        """A block is on disk."""
        os.write(self.file, f"{block.first + block.generations}\n".encode())

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


def _child(order: dict[str, Any]) -> int:
    from evometa import api
    from evometa.errors import EvometaError

    os.chdir(order["folder"])
    os.environ |= order.get("env", {})
    watch: Any = Acks(Path(order["acks"]))
    if "shift" in order:  # a clock that jumps by so many seconds with every look at it
        real, looks = time.time, iter(range(10**9))
        time.time = lambda: real() + order["shift"] * next(looks)
    if "bytes" in order:  # no file may grow beyond: the disk is full
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["bytes"], resource.RLIM_INFINITY))
    try:
        if order["do"] == "run":
            api.run(watch=watch, **order["spec"])
        else:
            api.resume(order["run"], watch=watch)
    except EvometaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def serve() -> None:
    """Fork a child for every line until standard input ends."""
    import evometa.api
    import evometa.strategies.genetic  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = 1
            try:
                code = _child(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print("started", pid, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Server:
    """The forking process, from outside."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        (folder / "fire.py").write_text(TASK)
        self.errors = (folder / "errors.txt").open("a+")
        # What a start compiles is kept: a killed run is started again and again.
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        compiled |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **compiled, **env},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def _answer(self, kind: str) -> int:
        # Never to be mixed up: a signal to process 0, an exit code, would go to all processes of this group.
        word, _, number = self._line().partition(" ")
        assert word == kind, f"expected {kind}, got {word!r}"
        return int(number)

    def start(self, do: str, run: Path, **order: Any) -> int:
        """Start a child that makes or resumes a run, and return its id."""
        assert self.process.stdin
        spec = {"task": "fire.py", "strategy": "genetic", "population": POPULATION, "out": str(run.parent)}
        spec |= {"name": run.name, "backend": "inline", **order.pop("spec", {})}
        whole = {"folder": str(self.folder), "do": do, "run": str(run), "spec": spec, "acks": f"{run}.acks", **order}
        self.process.stdin.write(json.dumps(whole) + "\n")
        self.process.stdin.flush()
        return self._answer("started")

    def end(self) -> int:
        """The exit code of the child, when it ended; negative: the signal that killed it."""
        return self._answer("ended")

    def said(self) -> str:
        """The last line of standard error of all children."""
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or [""])[-1]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def acknowledged(run: Path) -> int:
    """How many generations of a run were said to be on disk."""
    path = Path(f"{run}.acks")
    # A torn last line was not said.
    whole = [line for line in path.read_text().split("\n")[:-1] if line] if path.exists() else []
    return max(map(int, whole), default=0)


def kill_until_done(server: Server, run: Path, draw: random.Random, longest: float, kills: int, **order: Any) -> int:
    """Start and kill a run at random moments, at most `kills` times, then let it end; returns how many kills hit.

    After every kill what was acknowledged must be there, once.
    """
    from evometa.archives.read import Archive
    from evometa.folder import RECORD

    hit = 0
    while True:
        do = "resume" if (run / RECORD).is_file() else "run"
        pid = server.start(do, run, **order)
        if hit < kills:
            time.sleep(draw.uniform(0, longest))
            with suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
        code = server.end()
        if code == 0:
            return hit
        assert code == -signal.SIGKILL, server.said()
        hit += 1
        if (run / RECORD).is_file():
            table = Archive(run).table(["generation", "index"])
            rows = set(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
            assert len(rows) == len(table), "a row is there twice"
            assert len(rows) >= POPULATION * acknowledged(run), "what was acknowledged is gone"


def soak(kills: int) -> None:
    """So many kills of real runs, each then compared with one that nobody disturbed."""
    from evometa.archives.check import check
    from evometa.archives.read import list_parts

    with tempfile.TemporaryDirectory() as name:
        server, hit, number, spec = Server(Path(name)), 0, 0, {"generations": 60}
        env = {"EVOMETA_TEST_SLEEP": "0.005"}
        while hit < kills:
            fire, calm = (Path(name) / f"{kind}-{number}/x" for kind in ("fire", "calm"))
            draw = random.Random(number)
            most = min(50, kills - hit)
            hit += kill_until_done(server, fire, draw, 4.0, most, spec={**spec, "seed": number}, env=env)
            server.start("run", calm, spec={**spec, "seed": number})
            assert server.end() == 0, server.said()
            files = [{p.name: p.path.read_bytes() for p in list_parts(run / "lineage")} for run in (fire, calm)]
            assert files[0] == files[1] and check(fire).ok, f"run {number} is not what it would have been"
            number += 1
            print(f"{hit} kills, {number} runs equal to the undisturbed ones", flush=True)
        server.close()


if __name__ == "__main__":
    soak(int(sys.argv[2])) if sys.argv[1:2] == ["soak"] else serve()

"""A Ray cluster of this machine alone, kept by a process of its own for as long as the driver lives.

Ray starts its processes by forking, which a driver with JAX's threads must not do; and of a driver that was killed, Ray
leaves some behind. So a keeper starts the cluster, and ends it with all that came of it when its standard input does.
It listens on 127.0.0.1, asks for a token that nobody else has, and keeps its files in a folder of its own.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

from evometa.backends import process_tree, worker
from evometa.backends.wire import write
from evometa.errors import EvometaError

TOKEN = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    # Ray's own switch for "this machine alone": every port is one of 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_STORE_BYTES = 200_000_000  # of shared memory, for results that are large; what does not fit goes to the disk
_START, _END = 180.0, 30.0  # seconds


class Keeper:
    """A local cluster of `workers` CPUs; None: all. Raises `EvometaError` where it cannot be started."""

    def __init__(self, workers: int | None) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]
        boot = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
            " from evometa.backends import ray_local; ray_local.main(json.loads(sys.argv[2]))"
        )
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot, json.dumps(path), json.dumps(workers)], env={**environment, **ENVIRONMENT},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            self.address = self._address()
        except BaseException:
            self.close()
            raise

    def _address(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START)
        line = self._process.stdout.readline() if ready else b""
        said = json.loads(line) if line else {"error": "it says nothing"}
        if "error" in said:
            raise EvometaError(
                f"no local Ray cluster can be started: {said['error']}. Try without one: --backend processes"
            )
        return said["address"]

    def close(self) -> None:
        """End the cluster."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            process_tree.kill(self._process.pid)
            self._process.wait()
        self._process.stdout.close()


def main(workers: int | None) -> None:
    """Keep a cluster until standard input ends."""
    worker.adopt_orphans()
    replies = os.dup(1)
    os.dup2(2, 1)  # Ray talks on standard output
    # Short, because the names of sockets are: 107 characters at the most.
    folder = tempfile.mkdtemp(prefix="evometa-ray-")
    try:
        _say(replies, _start(workers, folder))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while os.read(0, 1 << 10):
            pass
        import ray

        ray.shutdown()
    finally:
        for _ in range(3):  # what is killed may leave others behind, which are this process's own then
            for pid in process_tree.children(os.getpid()):
                process_tree.kill(pid)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)


def _start(workers: int | None, folder: str) -> dict[str, str]:
    try:
        import ray

        ray.init(
            address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_STORE_BYTES,
            _temp_dir=folder, log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
        return {"address": ray.get_runtime_context().gcs_address}
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {(lines or [''])[0][:300]}".rstrip(".: ")}


def _say(descriptor: int, said: dict[str, str]) -> None:
    write(descriptor, json.dumps(said).encode() + b"\n")
    os.close(descriptor)

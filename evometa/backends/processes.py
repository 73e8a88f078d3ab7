"""Worker processes of this machine as an engine: each candidate within its limits, each failure its own.

Workers are new processes (never forked: a copy of a process with threads deadlocks, and JAX has threads), started as
`python -c`, so a script that starts a run is not run again in them. See warden.py for who watches them.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evometa.backends.dispatch import Ended, Work
from evometa.backends.wire import Frames, ended_of, frame, work_head, write
from evometa.errors import ConfigError, EvometaError
from evometa.types import Failure

_WARDENS = 3  # that may be lost in a row
_PATIENCE = 10.0  # seconds for the warden to end its workers, before they are ended with it


class ProcessEngine:
    """`workers` processes that build `order` (see worker.py) and answer works; started when there is work for them.

    `gpus_per_worker`: what each sees of the machine's GPUs (CUDA_VISIBLE_DEVICES), a whole number, or a fraction
    where several share one; None leaves that alone. `grace`: seconds that a late unit gets to stop by itself.
    """

    def __init__(
        self, order: Mapping[str, Any], workers: int, gpus_per_worker: float | None = None, grace: float = 0.5
    ) -> None:
        shares: Sequence[str | None] = [None] * workers
        if gpus_per_worker is not None:
            shares = gpu_shares(workers, gpus_per_worker, visible_gpus())
        self._first = {
            "order": dict(order),
            # Where evometa itself lies comes last: the warden starts without the site's own ways of finding it.
            "path": [*[os.path.abspath(entry) for entry in sys.path], str(Path(__file__).parents[2])],
            "grace": grace,
            "slots": [{} if share is None else {"CUDA_VISIBLE_DEVICES": share} for share in shares],
        }
        self._workers, self._deaths = workers, 0
        self._out: dict[int, Work] = {}
        self._said: list[Ended] = []  # endings that no worker told
        self._warden: subprocess.Popen[bytes] | None = None
        self._end = lambda: None

    @property
    def capacity(self) -> int:
        """Every worker's own, and one that waits next to it."""
        return 2 * self._workers

    def submit(self, ticket: int, work: Work) -> None:
        """Take a work. Raises `EvometaError` where no process can be started."""
        self._out[ticket] = work
        self._send(frame(work_head(ticket, work), work.body))

    def wait(self, timeout: float | None) -> list[Ended]:
        """Works that ended; waits for one at least, or for `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        found, self._said = self._said, []
        while not found and self._out:
            left = None if end is None else max(0.0, end - time.monotonic())
            ready = self._selector.select(left) if self._warden is not None else []
            if ready:
                found = self._read()
            elif self._warden is None:
                found = self._lost("there is no warden")
            elif left is not None:
                break
        for ended in found:
            self._out.pop(ended.ticket, None)
        return found

    def cancel(self, ticket: int) -> None:
        """Stop a work; its worker ends with it where it had begun."""
        if self._out.pop(ticket, None) is not None and self._warden is not None:
            with suppress(EvometaError):
                self._send(frame({"cancel": ticket}))

    def close(self) -> None:
        """End the workers and all that they started."""
        self._out.clear()
        self._warden = None
        self._end()

    # --- the warden ------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._warden is None:
            self._start()
        assert self._warden is not None and self._warden.stdin is not None
        try:
            write(self._warden.stdin.fileno(), data)
        except BrokenPipeError:
            pass  # the next `wait` finds its other pipe ended too
        except BaseException:
            # Half a message may be out, and nobody could read what follows.
            self._warden = None
            self._end()
            raise

    def _start(self) -> None:
        boot = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
            " from evometa.backends import warden; warden.main(int(sys.argv[2]))"
        )
        try:
            warden = subprocess.Popen(
                [sys.executable, "-S", "-c", boot, json.dumps(self._first["path"]), str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EvometaError(
                f"no worker process can be started: {error}. Try the run without them: --backend inline"
            ) from error
        assert warden.stdin is not None and warden.stdout is not None
        self._frames, self._selector = Frames(), selectors.DefaultSelector()
        self._selector.register(warden.stdout, selectors.EVENT_READ)
        self._warden = warden
        self._end = weakref.finalize(self, _end, warden, self._selector)
        self._send(frame(self._first))

    def _read(self) -> list[Ended]:
        assert self._warden is not None and self._warden.stdout is not None
        data = os.read(self._warden.stdout.fileno(), 1 << 20)
        if not data:
            return self._lost("its warden ended")
        self._deaths = 0
        found = [ended_of(head) for head, _ in self._frames.feed(data)]
        return [ended for ended in found if ended.ticket in self._out]

    def _lost(self, why: str) -> list[Ended]:
        """The warden is gone, and all that it was asked for with it."""
        self._warden = None
        self._end()
        self._deaths += 1
        if self._deaths > _WARDENS:
            raise EvometaError(
                f"the process that watches the workers ended {self._deaths} times in a row."
                " Try the run without them: --backend inline"
            )
        host = platform.node()
        return [Ended(ticket, {}, Failure.WORKER_LOST, None, why, host=host) for ticket in self._out]


def _end(warden: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> None:
    assert warden.stdin is not None and warden.stdout is not None
    selector.close()
    with suppress(OSError):
        warden.stdin.close()
    # What it still has to say is read, or it could not end.
    end = time.monotonic() + _PATIENCE
    with suppress(subprocess.TimeoutExpired):
        while warden.poll() is None and time.monotonic() < end:
            try:
                warden.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
    if warden.poll() is None:
        warden.kill()
        warden.wait()
    warden.stdout.close()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def gpu_shares(workers: int, each: float, gpus: Sequence[str]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of every worker. Raises `ConfigError` where there are too few, or no even share."""
    if each == 0:
        return [""] * workers
    if each >= 1 and each != int(each) or each < 1 and 1 / each != int(1 / each):
        raise ConfigError(f"gpus_per_worker: expected a whole number, or 1/2, 1/3 ... of one, got {each:g}")
    together = 1 if each >= 1 else int(1 / each)
    count = int(each) if each >= 1 else 1
    needed = -(-workers // together) * count
    if needed > len(gpus):
        raise ConfigError(
            f"{workers} workers with {each:g} GPUs each need {needed}, this machine shows {len(gpus)}."
            f" Try fewer --workers, or name the devices in CUDA_VISIBLE_DEVICES"
        )
    return [",".join(gpus[(w // together) * count : (w // together) * count + count]) for w in range(workers)]


def most_workers(each: float, gpus: Sequence[str]) -> int:
    """How many workers the GPUs suffice for."""
    return max(1, int(len(gpus) / each)) if each else os.cpu_count() or 1

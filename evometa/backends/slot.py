"""A slot of the warden: one worker process at a time, its limits, and what becomes of the work in it."""

from __future__ import annotations

import os
import platform
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from evometa.backends import process_tree, worker
from evometa.backends.dispatch import Ended, Outcome, Unit
from evometa.backends.wire import Frames, Outbox, error_of, frame, limits_of, select_now, units_of
from evometa.errors import EvometaError
from evometa.types import Failure

CELLS = "EVOMETA_CELLS"  # see command.py, which is not imported here: it brings NumPy
_DYING = 2.0  # seconds that a process has to end by itself once it cannot say anything any more
_STARTS = 3  # workers that may die in a row before they have built anything
_TAIL = 2000  # bytes of a worker's output that are kept for the message of a start that failed


@dataclass
class House:
    """What the slots of one warden share."""

    say: Callable[[Ended], None]
    echo: Outbox  # where the workers' output goes
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    slots: list[Slot] = field(default_factory=list)
    order: bytes = b""  # the first frame of every worker
    path: list[str] = field(default_factory=list)  # where workers import from
    grace: float = 0.0  # seconds that a late unit gets to stop by itself
    failed_starts: int = 0


class _Job:
    """A work in a slot."""

    def __init__(self, head: dict[str, Any], fresh: bool) -> None:
        self.ticket: int = head["ticket"]
        self.units, self.limits, self.fresh = units_of(head), limits_of(head), fresh
        self.outcomes: dict[Unit, Outcome] = {}
        self.began: float | None = None
        self.at: int | None = None  # the unit under way; None: nothing, or all together
        self.seconds = 0.0

    def ended(self, failure: Failure = Failure.OK, message: str = "", refusal: EvometaError | None = None) -> Ended:
        at = self.units[self.at] if self.at is not None else self.units[0] if len(self.units) == 1 else None
        seconds = self.seconds + (time.monotonic() - self.began if self.began is not None else 0.0)
        blamed = None if failure is Failure.OK else at
        return Ended(
            self.ticket, self.outcomes, failure, blamed, message, seconds, platform.node(), self.fresh, refusal
        )


class Slot:
    """Holds a worker, or none until there is work for it."""

    def __init__(self, house: House, number: int, environment: dict[str, str]) -> None:
        self.house, self.number, self.environment = house, number, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.job: _Job | None = None
        self.deadline: float | None = None
        self.used = self.ready = False
        self.silent_since: float | None = None  # when the pipe that it answers by ended

    # --- a worker's life -------------------------------------------------------------------------

    def take(self, head: dict[str, Any], body: bytes) -> None:
        """Start on a work, with a new worker where there is none, or a new one is asked for."""
        if self.process is not None and head["fresh"] and self.used:
            self.end()
        self.job = _Job(head, fresh=not self.used)
        if self.process is None:
            self.job.fresh = True
            self._start()
        self.used = True
        self.inbox.put(frame(head, body))
        self.inbox.push()

    def _start(self) -> None:
        receive, self.requests = os.pipe()
        self.replies, send = os.pipe()
        arguments = [*worker.command(self.house.path), str(receive), str(send), str(os.getpid())]
        self.cells = tempfile.mkdtemp(prefix="evometa-cell-")
        environment = {**os.environ, **self.environment, CELLS: self.cells}
        self.process = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=(receive, send), start_new_session=True,
        )  # fmt: skip
        os.close(receive)
        os.close(send)
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        for descriptor in (self.requests, self.replies, self.output):
            os.set_blocking(descriptor, False)
        self.frames, self.inbox, self.tail = Frames(), Outbox(self.requests), b""
        self.used, self.ready, self.written = False, False, 0
        self.silent_since = None
        self.inbox.put(self.house.order)
        self.house.selector.register(self.replies, selectors.EVENT_READ, self._reply)
        self.house.selector.register(self.output, selectors.EVENT_READ, self._read_output)

    def end(self) -> None:
        """Kill the worker and all that it started."""
        process, self.process, self.deadline = self.process, None, None
        if process is None:
            return
        if process.returncode is None:
            process_tree.kill(process.pid)
            process.wait()
        end_orphans({slot.process.pid for slot in self.house.slots if slot.process is not None})
        for descriptor in (self.replies, self.output):
            with suppress(KeyError):
                self.house.selector.unregister(descriptor)
        os.close(self.requests)
        os.close(self.replies)
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(self.cells, ignore_errors=True)
        self.used = False

    # --- what it says ----------------------------------------------------------------------------

    def _reply(self) -> None:
        if self.process is None:
            return  # ended since it was found ready to be read
        try:
            data = os.read(self.replies, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.silent_since = time.monotonic()
            self.house.selector.unregister(self.replies)
        for head, _ in self.frames.feed(data):
            if self.process is None or self.job is None:
                return  # ended by what it said before
            if "ready" in head:
                self.ready, self.house.failed_starts = True, 0
            elif "begin" in head:
                self._begin(self.job, head["begin"])
            elif "done" in head:
                self._done(self.job, head["done"], head["outcome"], head["peak"])
            elif "end" in head:
                self.house.say(self.job.ended())
                self.job, self.deadline = None, None
            elif "failed" in head:
                self._read_output()
                if self.job is not None:
                    failure, message = head["failed"]
                    self.house.say(self.job.ended(Failure(failure), message))
                    self.job, self.deadline = None, None
            else:
                self._refused(self.job, *head["refusal"])

    def _begin(self, job: _Job, at: int | None) -> None:
        self._read_output()
        self.written, job.at, job.began = 0, at, time.monotonic()
        self.deadline = None if job.limits.seconds is None else job.began + job.limits.seconds + self.house.grace

    def _done(self, job: _Job, place: int, outcome: Outcome, peak: float | None) -> None:
        limits = job.limits
        self._read_output()
        if self.job is not job:
            return  # it wrote too much, up to the last
        if limits.memory_mb is not None and peak is not None and peak > limits.memory_mb:
            # Known for certain by its peak, however short that was.
            self._stop(Failure.OUT_OF_MEMORY, f"used more than {limits.memory_mb:g} MB of memory")
            return
        job.outcomes[job.units[place]] = outcome
        self.deadline = None
        if job.at is not None and job.began is not None:
            job.seconds += time.monotonic() - job.began
            job.at = job.began = None
            job.fresh = False

    def _refused(self, job: _Job, kind: str, message: str) -> None:
        self.house.say(job.ended(refusal=error_of(kind, message)))
        self.job = None
        self.end()  # it may be half built

    def _read_output(self) -> None:
        while self.process is not None:
            try:
                data = os.read(self.output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                with suppress(KeyError):
                    self.house.selector.unregister(self.output)
                return
            self.written += len(data)
            self.tail = (self.tail + data)[-_TAIL:]
            self.house.echo.put(data)
            self.house.echo.push()
            most = None if self.job is None or self.job.began is None else self.job.limits.output_mb
            if most is not None and self.written > most * (1 << 20):
                self._stop(Failure.ERROR, f"wrote more than {most:g} MB of output")

    # --- what it does not say --------------------------------------------------------------------

    def look(self) -> None:
        """Time, memory, and whether it is still there."""
        if self.process is None:
            return
        self.inbox.push()
        job = self.job
        if _dead(self.process):
            while self.silent_since is None and self.process is not None and select_now(self.replies):
                self._reply()  # what it said before it died
            if self.process is not None:
                self._died()
        elif self.silent_since is not None:
            # Its pipes end a moment before it does; one that closed them and goes on is no use any more.
            if time.monotonic() - self.silent_since > _DYING:
                self._died("closed the pipes that it answers by")
        elif job is not None and job.began is not None:
            limits = job.limits
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self._stop(Failure.TIMEOUT, f"took longer than {limits.seconds:g} s")
            elif limits.memory_mb is not None and process_tree.memory_mb(self.process.pid) > limits.memory_mb:
                self._stop(Failure.OUT_OF_MEMORY, f"used more than {limits.memory_mb:g} MB of memory")

    def _stop(self, failure: Failure, message: str) -> None:
        job, self.job = self.job, None
        assert job is not None
        ended = job.ended(failure, message)
        self.end()
        self.house.say(ended)

    def _died(self, words: str | None = None) -> None:
        assert self.process is not None
        self._read_output()
        process_tree.kill(self.process.pid)  # before it is waited for: until then the number is its own
        status = self.process.wait()
        how, job, tail, ready = words or _how(status), self.job, self.tail, self.ready
        self.job = None
        self.end()
        if job is None:
            return  # an idle one: its slot is empty now
        self.house.failed_starts += not ready
        if self.house.failed_starts >= _STARTS:
            lines = tail.decode(errors="replace").strip().splitlines()
            words = f": {lines[-1][:300]}" if lines else ""
            refusal = EvometaError(
                f"worker processes end while they start ({how}){words}. Try the run without them: --backend inline"
            )
            self.house.say(job.ended(refusal=refusal))
            return
        self.house.say(job.ended(Failure.WORKER_LOST, f"its process {how}"))


def _dead(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended; it is not waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def end_orphans(workers: Collection[int] = ()) -> None:
    """End what dead workers left behind: it is the warden's own child now, and none of the `workers`."""
    for pid in process_tree.children(os.getpid()):
        if pid not in workers:
            process_tree.kill(pid)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

"""A worker process: builds what its order says, once, and answers works until its pipe ends.

The order is plain data. Its `builder` names a function of evometa (`module:function`) that makes the `Answers` of
an order: machines do not know how a spec becomes a task. Messages to whoever started the worker, in this order:
`{"ready": true}` once; for each work `{"begin": k}` and `{"done": k, "outcome": ...}` per unit (k: its place in the
work; None: all at once), then `{"end": true}`; or `{"failed": [failure, message]}` in their place; or
`{"refusal": [class, message]}` where evometa itself refuses.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from evometa.backends.wire import Frames, frame, write
from evometa.errors import EvometaError
from evometa.types import Failure

_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36  # prctl(2)


class Say(Protocol):
    """What an answer reports while it works."""

    def begin(self, place: int | None) -> None:
        """Unit `place` of the work begins now (None: all of them together): its time starts."""
        ...

    def done(self, place: int, outcome: Mapping[str, Any]) -> None:
        """Unit `place` came to this."""
        ...

    def failed(self, failure: Failure, message: str) -> None:
        """What was begun last failed as a whole, and the work ends with it."""
        ...


class Answers(Protocol):
    """What a builder returns."""

    def answer(self, head: Mapping[str, Any], body: bytes, say: Say) -> None:
        """Compute a work, whose head is that of its frame (see wire.py), and report every unit."""
        ...


def build(order: Mapping[str, Any]) -> Answers:
    """The answers of an order, by the name of its builder."""
    module, _, function = order["builder"].partition(":")
    return getattr(importlib.import_module(module), function)(order)


def command(path: list[str]) -> list[str]:
    """The command line of a worker that imports from `path`; two descriptors and its parent's number follow."""
    boot = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
        " from evometa.backends import worker; worker.main(*map(int, sys.argv[2:]))"
    )
    return [sys.executable, "-c", boot, json.dumps(path)]


def main(requests: int, replies: int, parent: int) -> None:
    """Serve until `requests` ends. Dies with its parent, and so does what it started: see warden.py."""
    prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    prctl(_SET_SUBREAPER, 1)
    if os.getppid() != parent:
        os._exit(0)  # the parent was gone before it could be tied to
    for descriptor in (requests, replies):
        os.set_inheritable(descriptor, False)
    sys.argv = [sys.argv[0]]  # a task that reads it reads nothing of ours
    serve(requests, replies)


def serve(requests: int, replies: int) -> None:
    """Read the order, then works, from one descriptor and answer on the other."""
    frames, answers = Frames(), None
    while data := os.read(requests, 1 << 20):
        for head, body in frames.feed(data):
            try:
                if answers is None:
                    answers = build(head)
                    write(replies, frame({"ready": True}))
                else:
                    said = _Said(replies, head["limits"][1] is not None)
                    answers.answer(head, body, said)
                    if not said.over:
                        write(replies, frame({"end": True}))
            except EvometaError as error:
                _flush()
                write(replies, frame({"refusal": [type(error).__name__, str(error)]}))
            except Exception as error:
                traceback.print_exc()
                _flush()
                text = f"a worker raised {type(error).__name__}: {error}. Look at it with: --backend inline"
                write(replies, frame({"refusal": ["EvometaError", text]}))


class _Said:
    def __init__(self, replies: int, peak: bool) -> None:
        self._replies, self._peak, self.over = replies, peak, False

    def begin(self, place: int | None) -> None:
        if self._peak:
            reset_peak()
        write(self._replies, frame({"begin": place}))

    def done(self, place: int, outcome: Mapping[str, Any]) -> None:
        _flush()  # what it printed is counted as its own
        peak = peak_mb() if self._peak else None
        write(self._replies, frame({"done": place, "outcome": outcome, "peak": peak}))

    def failed(self, failure: Failure, message: str) -> None:
        _flush()
        self.over = True
        write(self._replies, frame({"failed": [int(failure), message]}))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def prctl(option: int, value: int) -> None:
    """Linux's process control; nothing elsewhere."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def reset_peak() -> None:
    """Forget the most memory that this process ever held, so that a unit is not blamed for another's."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_mb() -> float | None:
    """The most memory that this process held since `reset_peak`, in MB; None where the system does not say."""
    with suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def adopt_orphans() -> None:
    """Children whose parent dies become this process's own, instead of init's."""
    prctl(_SET_SUBREAPER, 1)

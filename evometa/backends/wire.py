"""How processes talk: frames of a JSON head and bytes. Nothing that is received is ever executed or unpickled."""

from __future__ import annotations

import json
import os
import select
import struct
from collections.abc import Mapping
from typing import Any

from evometa.backends.dispatch import Ended, Limits, Unit, Work
from evometa.errors import EvometaError
from evometa.types import Failure

_LENGTHS = struct.Struct("<IQ")


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One message, ready to be written. The head keeps the order of its keys."""
    text = json.dumps(head).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


class Frames:
    """Whole messages out of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """The messages (head, body) that are whole now."""
        self._data += data
        found = []
        while len(self._data) >= _LENGTHS.size:
            head, body = _LENGTHS.unpack_from(self._data)
            end = _LENGTHS.size + head + body
            if len(self._data) < end:
                break
            text = bytes(self._data[_LENGTHS.size : _LENGTHS.size + head])
            found.append((json.loads(text), bytes(self._data[_LENGTHS.size + head : end])))
            del self._data[:end]
        return found


def write(descriptor: int, data: bytes) -> None:
    """All of it, to a descriptor that blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def work_head(ticket: int, work: Work) -> dict[str, Any]:
    """The head of a frame that carries a work; its body is the work's."""
    limits = list(work.limits)
    return {"ticket": ticket, "covers": work.covers, "limits": limits, "fresh": work.fresh, "work": dict(work.head)}


def limits_of(head: Mapping[str, Any]) -> Limits:
    """The limits of a work's head."""
    return Limits(*head["limits"])


def units_of(head: Mapping[str, Any]) -> list[Unit]:
    """The units that a work's head covers."""
    return [(index, domain, replicate) for index, domain, replicate in head["covers"]]


def ended_head(ended: Ended) -> dict[str, Any]:
    """An `Ended` as JSON."""
    refusal = None if ended.refusal is None else [type(ended.refusal).__name__, str(ended.refusal)]
    outcomes = [[unit, outcome] for unit, outcome in ended.outcomes.items()]
    return {**ended._asdict(), "outcomes": outcomes, "failure": int(ended.failure), "refusal": refusal}


def ended_of(head: Mapping[str, Any]) -> Ended:
    """The `Ended` of its JSON."""
    outcomes = {(i, d, r): outcome for (i, d, r), outcome in head["outcomes"]}
    at = None if head["at"] is None else (head["at"][0], head["at"][1], head["at"][2])
    failure, refusal = Failure(head["failure"]), head["refusal"]
    error = None if refusal is None else error_of(*refusal)
    return Ended(**{**head, "outcomes": outcomes, "at": at, "failure": failure, "refusal": error})


def error_of(kind: str, message: str) -> EvometaError:
    """An error of evometa's by the name of its class."""
    from evometa import errors

    found = getattr(errors, kind, EvometaError)
    known = isinstance(found, type) and issubclass(found, EvometaError)
    return found(message) if known else EvometaError(message)


class Outbox:
    """Bytes for a descriptor that may not take them at once."""

    def __init__(self, descriptor: int, most: int | None = None) -> None:
        self.descriptor, self.most, self._data = descriptor, most, bytearray()
        # A pipe that is ready takes 4096 bytes without waiting, also where it blocks.
        self._piece = 4096 if os.get_blocking(descriptor) else 1 << 16

    def __bool__(self) -> bool:
        return bool(self._data)

    def put(self, data: bytes) -> None:
        """Keep bytes to be written; all of them or, beyond `most`, none."""
        if self.most is None or len(self._data) + len(data) <= self.most:
            self._data += data

    def push(self) -> None:
        """Write what the reader takes now."""
        try:
            while self._data and select_now(self.descriptor, write=True):
                del self._data[: os.write(self.descriptor, self._data[: self._piece])]
        except BlockingIOError:
            return
        except OSError:
            self._data.clear()  # nobody reads it any more


def select_now(descriptor: int, write: bool = False) -> bool:
    """Whether a descriptor can be read (written) without waiting; also where its number is a large one."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(0))

"""The warden: one small process that starts the workers, watches their limits and outlives nobody.

It stands between the driver and the workers so that limits hold while the driver is busy, and so that nothing is
left when the driver ends in any way, kill -9 included: its pipe from the driver ends, it kills every worker with all
that they started, and goes. Were the warden itself killed, its workers die with it. It imports nothing heavy.

From the driver: one frame with the order and the slots' environments, then works (see wire.py) and
`{"cancel": ticket}`. To the driver: one frame per `Ended`.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from evometa.backends import worker
from evometa.backends.slot import House, Slot, end_orphans
from evometa.backends.wire import Frames, Outbox, ended_head, frame

_TICK = 0.05  # seconds between looks at memory, and at a death that no pipe told of
_BACKLOG = 1 << 20  # bytes of workers' output that wait for a reader; what comes beyond is dropped


class Warden:
    """All slots of one engine: each holds a worker, or none until there is work for it."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.frames = Frames()
        self.queue: deque[tuple[dict[str, Any], bytes]] = deque()
        os.set_blocking(requests, False)
        os.set_blocking(replies, False)
        self.outbox, self.echo = Outbox(replies), Outbox(2, most=_BACKLOG)
        self.house = House(lambda ended: self.outbox.put(frame(ended_head(ended))), self.echo)
        self.slots = self.house.slots
        self.house.selector.register(requests, selectors.EVENT_READ, self._request)

    def serve(self) -> None:
        """Until the driver's pipe ends."""
        try:
            while self.requests >= 0:
                self._hand_out()
                for key, _ in self.house.selector.select(self._patience()):
                    key.data()
                for slot in self.slots:
                    slot.look()
                self.outbox.push()
                self.echo.push()
        finally:
            for slot in self.slots:
                slot.end()
            end_orphans()

    def _patience(self) -> float | None:
        if self.outbox or self.echo:
            return 0.002
        busy = [slot for slot in self.slots if slot.process is not None and (slot.job or slot.silent_since)]
        if not busy:
            return None
        ends = [slot.deadline - time.monotonic() for slot in busy if slot.deadline is not None]
        return max(0.0, min([_TICK, *ends]))

    # --- the driver's side -----------------------------------------------------------------------

    def _request(self) -> None:
        try:
            data = os.read(self.requests, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.requests = -1
        for head, body in self.frames.feed(data):
            if "slots" in head:
                house = self.house
                house.order, house.path, house.grace = frame(head["order"]), head["path"], head["grace"]
                house.slots += [Slot(house, number, env) for number, env in enumerate(head["slots"])]
            elif "cancel" in head:
                self._cancel(head["cancel"])
            else:
                self.queue.append((head, body))

    def _cancel(self, ticket: int) -> None:
        self.queue = deque(one for one in self.queue if one[0]["ticket"] != ticket)
        for slot in self.slots:
            if slot.job is not None and slot.job.ticket == ticket:
                slot.job = None
                slot.end()

    def _hand_out(self) -> None:
        while self.queue:
            idle = [slot for slot in self.slots if slot.job is None]
            if not idle:
                return
            head, body = self.queue.popleft()

            # One that runs and is ready before one that must be started; a new one where that is asked for.
            def cost(slot: Slot, fresh: bool = head["fresh"]) -> tuple[bool, int]:
                return (slot.process is None or (fresh and slot.used), slot.number)

            min(idle, key=cost).take(head, body)


class _Ended(BaseException):
    pass


def _terminate(number: int, _: Any) -> None:
    raise _Ended


def main(parent: int) -> None:
    """Serve the driver on standard input and a copy of standard output."""
    worker.adopt_orphans()
    signal.signal(signal.SIGTERM, _terminate)
    replies = os.dup(1)
    os.dup2(2, 1)
    if os.getppid() == parent:
        with suppress(_Ended):
            Warden(0, replies).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))

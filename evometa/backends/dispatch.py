"""Hands work to whoever computes it, and brings every result home once: independent of what computes it.

An `Engine` (worker processes, a cluster) takes `Work`, and says how it `Ended`. Everything else is here, once for
all engines: how much is out at a time, what is tried again and how often, which candidate it was that took a worker
with it, that a result which comes twice counts once, and what a failure leaves of a candidate's other trainings.
What comes back depends on the units alone: not on their order, nor on how they were packed, tried or lost.

A *unit* is one training with its judgements for Python and command tasks, and one candidate with all its cells for
JAX tasks. Its *outcome* is JSON with a `failure` code and a `message`; the rest is between the job and its workers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

from evometa.errors import EvometaError
from evometa.types import Failure

Unit = tuple[int, str, int]  # candidate index, domain, replicate; (index, "", 0) where one unit is a whole candidate
Outcome = dict[str, Any]

ATTEMPTS = 3  # times that a unit may lose its worker
_BATCH_SECONDS = 0.05  # what a work should last at least, so that handing it over does not cost more than doing it
_LARGEST_BATCH = 64
_GRACE = 0.5  # seconds that a generation's superfluous works have to end by themselves


class Limits(NamedTuple):
    """What one unit may use (a JAX work: all its candidates together); None is no limit."""

    seconds: float | None = None  # wall time, without what is compiled or loaded before
    memory_mb: float | None = None  # resident, of the worker and everything that it started
    output_mb: float | None = None  # standard output and standard error


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Work:
    """What crosses the wire: plain data, no code. Equal keys are equal work and have equal outcomes."""

    key: str  # sha256 of what it is part of, what it covers and what it says; see `work`
    covers: tuple[Unit, ...]
    head: Mapping[str, Any]  # JSON
    body: bytes  # arrays, as the head says
    limits: Limits = NO_LIMITS
    fresh: bool = False  # to be done by a worker that has done nothing before


def work(
    scope: str, covers: Sequence[Unit], head: Mapping[str, Any], body: bytes, limits: Limits, fresh: bool = False
) -> Work:
    """A `Work` with its idempotency key. `scope`: the run's identity digest, the stream and the generation."""
    sha = hashlib.sha256(json.dumps([scope, list(covers), head], sort_keys=True, default=list).encode())
    sha.update(b"\0" + body)
    return Work(sha.hexdigest(), tuple(covers), head, body, limits, fresh)


class Ended(NamedTuple):
    """How a work ended. `outcomes` holds the units that were finished, also where the work as a whole was not."""

    ticket: int
    outcomes: Mapping[Unit, Outcome]
    failure: Failure = Failure.OK  # TIMEOUT, ERROR, OUT_OF_MEMORY are final; WORKER_LOST is tried again
    at: Unit | None = None  # whose fault it was, where that is known
    message: str = ""  # holds nothing that differs between equal runs: no process number, no address, no time
    seconds: float = 0.0
    host: str = ""  # the machine's name
    fresh: bool = True  # whether the worker had done nothing before: a full memory may be its history's fault
    refusal: EvometaError | None = None  # evometa's own error (a full disk, another version): it ends the run


class Engine(Protocol):
    """Whoever computes: `processes.ProcessEngine`, and others of the same shape.

    Made with an order (see worker.py), which says what its workers build once. Enforces a work's limits.
    """

    @property
    def capacity(self) -> int:
        """How many works may be out at a time: those that run, and a few that wait next to a worker. May change."""
        ...

    def submit(self, ticket: int, work: Work) -> None:
        """Take a work; the ticket is the caller's name for it, and never used twice. Returns at once."""
        ...

    def wait(self, timeout: float | None) -> list[Ended]:
        """Works that ended since the last call; waits for one at least, or for `timeout` seconds (None: for ever)."""
        ...

    def cancel(self, ticket: int) -> None:
        """Stop a work, by force where it runs. It is said to have ended never, or too late, which does no harm; a
        ticket that is not out any more is no error."""
        ...

    def close(self) -> None:
        """End all workers and what they started. May be called twice."""
        ...


class Job(Protocol):
    """What is to be computed, for `Dispatcher.gather`."""

    units: Sequence[Unit]  # every unit, in the order in which one process would compute them
    most: int | None  # units in one work: exactly so many where there are as many; None: as their duration suggests

    def group(self, unit: Unit) -> Hashable:
        """Units of different groups never share a work."""
        ...

    def pack(self, units: Sequence[Unit], fresh: bool) -> Work:
        """The work of some units of one group."""
        ...

    def failed(self, unit: Unit, failure: Failure, message: str) -> Outcome:
        """The outcome of a unit that has none of its own."""
        ...


@dataclass
class _Parcel:
    """Units that travel together, and what they have cost so far."""

    units: tuple[Unit, ...]
    losses: int = 0  # workers lost by exactly these units
    patience: int = 2  # losses after which they are split
    fresh: bool = False


@dataclass
class Dispatcher:
    """Brings the outcomes of a job's units home, whatever happens to the workers on the way.

    One for the life of an engine. `lost` counts, by message, the workers that were lost and replaced, `hosts` the
    finished units by the machine that they came from.
    """

    engine: Engine
    attempts: int = ATTEMPTS
    lost: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    _tickets: Any = field(default_factory=lambda: count(1))
    _seconds: float = 0.0  # what a unit takes, a moving average

    def gather(
        self,
        job: Job,
        done: Mapping[Unit, Outcome] | None = None,
        keep: Callable[[Mapping[Unit, Outcome]], None] = lambda outcomes: None,
    ) -> dict[Unit, Outcome]:
        """The outcome of every unit that counts: all, but for those behind a candidate's first failure.

        `done`: outcomes from before. `keep` is handed new ones as soon as they are here, each once. Raises
        `EvometaError` where a worker refuses.
        """
        gathering = _Gathering(self, job, dict(done or {}), keep)
        grace = 0.0
        try:
            gathering.run()
            grace = _GRACE
        finally:
            gathering.drop(grace)
        return gathering.counted()


class _Gathering:
    """One call of `gather`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        job: Job,
        done: dict[Unit, Outcome],
        keep: Callable[[Mapping[Unit, Outcome]], None],
    ) -> None:
        self.owner, self.engine, self.job, self.done, self.keep = dispatcher, dispatcher.engine, job, done, keep
        self.out: dict[int, _Parcel] = {}
        self.losses: Counter[Unit] = Counter()  # the ledger of attempts, for units that travel alone
        self.again: deque[_Parcel] = deque()
        position: Counter[int] = Counter()
        self.position: dict[Unit, int] = {}
        for unit in job.units:
            self.position[unit] = position[unit[0]]
            position[unit[0]] += 1
        # Where a candidate's first known failure is: what lies behind it does not count.
        self.failed: dict[int, int] = {}
        for unit in [unit for unit in done if unit in self.position]:
            self._note(unit, done[unit])
        # Every candidate's first training before anybody's second: most failures show there, and spare the rest.
        order = sorted(job.units, key=lambda unit: self.position[unit])
        self.waiting: dict[Hashable, deque[Unit]] = {}
        for unit in order:
            if unit not in done:
                self.waiting.setdefault(job.group(unit), deque()).append(unit)

    def run(self) -> None:
        while True:
            while len(self.out) < self.engine.capacity and (parcel := self._next()) is not None:
                ticket = next(self.owner._tickets)
                self.out[ticket] = parcel
                self.engine.submit(ticket, self.job.pack(parcel.units, parcel.fresh))
            if not any(self._counts(unit) for parcel in self.out.values() for unit in parcel.units):
                return  # what waits has been taken out, as far as it counts
            # A refusal last: what else is here by then has been kept.
            for ended in sorted(self.engine.wait(None), key=lambda one: one.refusal is not None):
                self._ended(ended)

    def drop(self, grace: float) -> None:
        """Let what is still out go: nobody needs it. Some seconds' grace first, because to stop a worker costs one."""
        end = time.monotonic() + grace
        while self.out and (left := end - time.monotonic()) > 0:
            for ended in self.engine.wait(left):
                self.out.pop(ended.ticket, None)
        for ticket in list(self.out):
            self.engine.cancel(ticket)
        self.out.clear()

    def counted(self) -> dict[Unit, Outcome]:
        """In the order of the job's units."""
        return {unit: self.done[unit] for unit in self.job.units if self._relevant(unit) and unit in self.done}

    # --- what goes out ---------------------------------------------------------------------------

    def _relevant(self, unit: Unit) -> bool:
        return self.position[unit] <= self.failed.get(unit[0], len(self.position))

    def _counts(self, unit: Unit) -> bool:
        return unit not in self.done and self._relevant(unit)

    def _next(self) -> _Parcel | None:
        while self.again:
            parcel = self.again.popleft()
            units = tuple(unit for unit in parcel.units if self._counts(unit))
            if units == parcel.units:
                return parcel
            if units:
                return _Parcel(units, patience=parcel.patience, fresh=parcel.fresh)
        for group, waiting in list(self.waiting.items()):
            batch: list[Unit] = []
            size = self._size(len(waiting))
            while waiting and len(batch) < size:
                unit = waiting.popleft()
                if self._counts(unit):
                    batch.append(unit)
            if not waiting:
                del self.waiting[group]
            if batch:
                return _Parcel(tuple(batch))
        return None

    def _size(self, waiting: int) -> int:
        if self.job.most is not None:
            return self.job.most
        if not self.owner._seconds:
            return 1
        share = -(-waiting // max(1, self.engine.capacity))
        return max(1, min(int(_BATCH_SECONDS / self.owner._seconds), share, _LARGEST_BATCH))

    # --- what comes back -------------------------------------------------------------------------

    def _ended(self, ended: Ended) -> None:
        parcel = self.out.pop(ended.ticket, None)
        if parcel is None:
            return  # of an earlier call, or a second time
        if ended.refusal is not None:
            raise ended.refusal
        if ended.outcomes:
            self.owner.hosts += Counter({ended.host: len(ended.outcomes)} if ended.host else {})
            took, before = ended.seconds / len(ended.outcomes), self.owner._seconds
            self.owner._seconds = 0.8 * before + 0.2 * took if before else max(took, 1e-6)
        self._take({unit: ended.outcomes[unit] for unit in parcel.units if unit in ended.outcomes})
        left = tuple(unit for unit in parcel.units if unit not in ended.outcomes)
        if ended.failure is Failure.OK:
            if left:
                raise EvometaError(
                    f"a worker answered {len(ended.outcomes)} of {len(parcel.units)} units without a word"
                )
            return
        if ended.failure is Failure.WORKER_LOST:
            self.owner.lost[ended.message] += 1
        if ended.at in left and len(left) > 1:
            # The others had nothing to do with it.
            self.again.append(_Parcel(tuple(unit for unit in left if unit != ended.at), fresh=parcel.fresh))
            left = (ended.at,)  # type: ignore[assignment]
        if len(left) == 1:
            self._alone(left[0], ended)
        elif left:
            self._together(left, parcel, ended)

    def _alone(self, unit: Unit, ended: Ended) -> None:
        """One unit, and it failed: again, or for good."""
        message = ended.message
        if ended.failure is Failure.OUT_OF_MEMORY and not ended.fresh:
            self.again.append(_Parcel((unit,), fresh=True))  # what others left behind may have filled it
            return
        if ended.failure is Failure.WORKER_LOST:
            self.losses[unit] += 1
            if self.losses[unit] < self.owner.attempts:
                self.again.append(_Parcel((unit,)))
                return
            message = f"worker lost: {message} ({self.owner.attempts} attempts)"
        self._take({unit: self.job.failed(unit, ended.failure, message)})

    def _together(self, units: tuple[Unit, ...], parcel: _Parcel, ended: Ended) -> None:
        """Several units, and one of them failed: nobody knows which."""
        losses = parcel.losses + 1
        if ended.failure is Failure.WORKER_LOST and losses < parcel.patience:
            self.again.append(_Parcel(units, losses, parcel.patience))
            return
        half = len(units) // 2
        self.again.extend(_Parcel(part, patience=1) for part in (units[:half], units[half:]))

    def _take(self, outcomes: Mapping[Unit, Outcome]) -> None:
        fresh = {unit: outcome for unit, outcome in outcomes.items() if self._counts(unit)}
        for unit, outcome in fresh.items():
            self._note(unit, outcome)
        counting = {unit: outcome for unit, outcome in fresh.items() if self._relevant(unit)}
        self.done |= counting
        if counting:
            self.keep(counting)

    def _note(self, unit: Unit, outcome: Outcome) -> None:
        if outcome["failure"] != Failure.OK:
            candidate, position = unit[0], self.position[unit]
            self.failed[candidate] = min(position, self.failed.get(candidate, position))

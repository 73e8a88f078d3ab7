"""An engine with its dispatcher and its journal, started when it is first needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from evometa.backends.dispatch import NO_LIMITS, Dispatcher, Engine, Job, Limits, Outcome, Unit


class Diary(Protocol):
    """Where finished units are kept; see archives/cells.py."""

    def get(self, generation: int, unit: Unit) -> Outcome | None:
        """What the unit came to, where it was finished before."""
        ...

    def put(self, generation: int, unit: Unit, outcome: Outcome) -> None:
        """Keep what the unit came to."""
        ...

    def put_all(self, generation: int, outcomes: Mapping[Unit, Outcome]) -> None:
        """Keep what several units came to."""
        ...


def say(text: str) -> None:
    """To whoever started this process."""
    print(text, file=sys.stderr, flush=True)


class Pool:
    """Workers that compute for one session. `open_engine` makes the engine; `scope` tells its works from others'.

    `note` hears what an engine has to say, of nodes that come and go; by default it is printed on standard error.
    """

    def __init__(self, open_engine: Callable[[], Engine], scope: str, limits: Limits = NO_LIMITS) -> None:
        self.scope, self.limits = scope, limits
        self.note: Callable[[str], None] = say
        self._open = open_engine
        self.dispatcher: Dispatcher | None = None

    def gather(self, job: Job, generation: int, journal: Diary | None) -> dict[Unit, Outcome]:
        """The outcomes of a job's units; those of the journal are not computed again, new ones are written there."""
        done: dict[Unit, Outcome] = {}
        if journal is not None:
            found = ((unit, journal.get(generation, unit)) for unit in job.units)
            done = {unit: outcome for unit, outcome in found if outcome is not None}

        def keep(outcomes: Mapping[Unit, Outcome]) -> None:
            if journal is not None:
                journal.put_all(generation, outcomes)

        if self.dispatcher is None:
            self.dispatcher = Dispatcher(self._open())
        return self.dispatcher.gather(job, done, keep)

    def close(self) -> None:
        """End the workers. Another `gather` starts new ones."""
        dispatcher, self.dispatcher = self.dispatcher, None
        if dispatcher is not None:
            dispatcher.engine.close()

    def hosts(self) -> dict[str, int]:
        """How many units came from which machine since this was asked last."""
        found: dict[str, int] = {}
        if self.dispatcher is not None:
            found = dict(sorted(self.dispatcher.hosts.items()))
            self.dispatcher.hosts.clear()
        return found

    @property
    def lost(self) -> dict[str, int]:
        """How many workers were lost and replaced, by what is known of each."""
        return dict(self.dispatcher.lost) if self.dispatcher is not None else {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

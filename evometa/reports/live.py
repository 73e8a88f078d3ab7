"""A run as it goes: a live table in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from evometa.keys import Stream
from evometa.printable import printable
from evometa.session import Session
from evometa.types import Block, Failure, State

_PLAIN_SECONDS = 5.0  # between two lines where there is no terminal
_LOOK_SECONDS = 3.0  # between two looks at the validation domains
_LOOK_SHARE = 0.05  # and they may take this share of the time


class Live:
    """Watches a run: generation, best and median fitness, validation, gap, speed, time left.

    The validation column judges the strategy's recommendation now and then, with keys of its own; it is
    for the eye only and changes nothing. `gap` is validation minus the train fitness of the same moment.
    """

    def __init__(self, stream: TextIO | None = None, title: str = "") -> None:
        self.stream = stream or sys.stderr
        self.title = title
        self.terminal = self.stream.isatty()
        self._progress: Any = None

    def begin(self, session: Session, path: Path, generation: int, until: int) -> None:
        """Open the view."""
        self.session, self.until, self.first = session, until, generation
        self.started = self.line_at = self.look_at = time.monotonic()
        self.looked, self.validation, self.failed, self.stopped = 0.0, float("nan"), 0, 0
        self.name = printable(self.title or path.name, lines=False)
        task = session.task
        note = "  (one function: nothing held out by construction)" if task.black_box else ""
        begun = f"at generation {generation} " if generation else ""
        self.note(
            f"{path.name}: {task.name} with {session.strategy.name}, population {session.strategy.population},"
            f" {len(task.split.train)} train domains, {begun}to {until}{note}"
        )
        if not self.terminal:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[words]}"),
        ]
        self._progress = Progress(*columns, console=Console(file=self.stream), transient=False, refresh_per_second=4)
        self._bar = self._progress.add_task(self.name, total=until, completed=generation, words="compiling ...")
        self._progress.start()

    def block(self, block: Block, state: State, seconds: float) -> None:
        """Show a finished block."""
        del seconds
        now = time.monotonic()
        generation = block.first + block.generations
        fitness = np.asarray(block.scores.fitness)[-1, :, 0]
        finite = fitness[np.isfinite(fitness)]
        failure = np.asarray(block.scores.failure)
        stopped = int((failure == Failure.SKIPPED).sum())  # at a hurdle, which is no fault of theirs
        self.stopped += stopped
        self.failed += int((failure != Failure.OK).sum()) - stopped
        self._look(state, now)
        words = self._words(generation, finite, time.monotonic())
        if self._progress is not None:
            self._progress.update(self._bar, completed=generation, words=words)
        elif now - self.line_at >= _PLAIN_SECONDS or generation >= self.until or block.first == self.first:
            self.line_at = now
            print(f"{self.name} generation {generation}/{self.until}  {words}", file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Say something beside the numbers."""
        if self._progress is not None:
            self._progress.console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), file=self.stream, flush=True)

    def end(self) -> None:
        """Close the view; what it last showed stays."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _words(self, generation: int, finite: np.ndarray, now: float) -> str:
        parts = [
            f"fitness {finite.min():.4f} median {np.median(finite):.4f}" if len(finite) else "fitness -- (all failed)"
        ]
        if np.isfinite(self.validation):
            parts.append(f"validation {self.validation:.4f}")
            if len(finite):
                parts.append(f"gap {self.validation - np.median(finite):+.4f}")
        if self.failed:
            parts.append(f"failed {self.failed}")
        if self.stopped:
            parts.append(f"stopped at the hurdle {self.stopped}")
        spent, done = now - self.started, generation - self.first
        if spent > 0:
            parts.append(f"{done * self.session.strategy.population / spent:.4g}/s")
        left = (self.until - generation) * spent / done
        parts.append(f"{_clock(left)} left" if generation < self.until else f"{_clock(spent)} in all")
        return "  ".join(parts)

    def _look(self, state: State, now: float) -> None:
        """Judge the recommendation on the validation domains, where that is cheap enough."""
        task = self.session.task
        # Only compiled tasks: a slow task's time belongs to the search.
        if not self.session.compiled or not task.split.validation:
            return
        due = now - self.look_at >= _LOOK_SECONDS and self.looked <= _LOOK_SHARE * (now - self.started)
        if not due:
            return
        began, first = time.monotonic(), not np.isfinite(self.validation)
        genome = np.asarray(self.session.strategy.recommend(state), np.float32)[None]
        judged = self.session.validation().judge(genome, 1, self.session.spec.seed, Stream.CHECK, 0)
        self.validation = float(judged.losses(task.objectives[0].query).mean())
        self.look_at = time.monotonic()
        # The first look compiles: that would use up the share for minutes.
        self.looked += 0.0 if first else self.look_at - began


def _clock(seconds: float) -> str:
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    return (
        f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    )

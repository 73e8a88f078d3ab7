"""One cell of a plain-Python task: call `fit`, then `judge` on every query, within the time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evometa.contract import Task
from evometa.errors import UsageError
from evometa.evaluate.data import Loaded
from evometa.space import Candidate


class TimeLimit(BaseException):
    """The cell's time is up. A BaseException, so that a task's own `except Exception` does not swallow it."""


def run_cell(
    task: Task, candidate: Candidate, fit_key: int, judge_keys: Mapping[str, int], domain: Loaded
) -> dict[str, Any]:
    """Whatever `judge` returns, by query name; exceptions pass through, `TimeoutError` when time is up."""
    try:
        with _alarm(task.time_limit):
            return _train_and_judge(task, candidate, fit_key, judge_keys, domain)
    except TimeLimit:
        raise TimeoutError(f"took longer than {task.time_limit:g} s") from None


def _train_and_judge(
    task: Task, candidate: Candidate, fit_key: int, judge_keys: Mapping[str, int], domain: Loaded
) -> dict[str, Any]:
    if task.fit is not None:
        learned = task.fit(fit_key, candidate, domain.support)
        return {q: task.judge(judge_keys[q], learned, data) for q, data in domain.queries.items()}
    assert task.init is not None and task.step is not None
    learner = task.init(fit_key, candidate, domain.support)
    judged: dict[str, Any] = {}
    for number in range(task.marks[-1]):
        # Consecutive keys are independent seeds for numpy's generator, which hashes them.
        learner = task.step(fit_key + 1 + number, candidate, learner, domain.support)
        if number + 1 in task.marks:
            suffix = "" if number + 1 == task.marks[-1] else f"@{number + 1}"
            judged |= {f"{q}{suffix}": task.judge(judge_keys[q], learner, data) for q, data in domain.queries.items()}
    return judged


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise UsageError(
            "a time limit for Python cells works in the main thread only."
            " Set time_limit=None, or run from the main thread"
        )

    def ring(*_: Any) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

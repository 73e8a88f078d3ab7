"""One cell of a plain-Python task: call `fit`, then `judge` on every query, within the time limit."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Mapping
from typing import Any

from evometa.contract import Task
from evometa.errors import UsageError
from evometa.evaluate.data import Loaded
from evometa.space import Candidate

_AGAIN = 0.1  # seconds between rings: a task's bare `except:` swallows one, and goes on until the next


class TimeLimit(BaseException):
    """The cell's time is up. A BaseException, so that a task's own `except Exception` does not swallow it."""


def run_cell(
    task: Task, candidate: Candidate, fit_key: int, judge_keys: Mapping[str, int], domain: Loaded
) -> dict[str, Any]:
    """Whatever `judge` returns, by query name; exceptions pass through, `TimeoutError` when time is up.

    A cell that ran out of time is late whatever it then did: swallow the exception and return, or raise another.
    """
    if task.time_limit is None:
        return _train_and_judge(task, candidate, fit_key, judge_keys, domain)
    if threading.current_thread() is not threading.main_thread():
        raise UsageError(
            "a time limit for Python cells works in the main thread only."
            " Set time_limit=None, or run from the main thread"
        )
    rang = False

    def ring(_: int, frame: types.FrameType | None) -> None:
        nonlocal rang
        rang = True
        # Raised within the cell alone: a last ring between its end and the disarming must not escape from here.
        while frame is not None:
            if frame.f_code is _train_and_judge.__code__:
                raise TimeLimit
            frame = frame.f_back

    judged: dict[str, Any] = {}
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, task.time_limit, _AGAIN)
        judged = _train_and_judge(task, candidate, fit_key, judge_keys, domain)
    except (Exception, SystemExit, TimeLimit):
        if not rang:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if rang:
        raise TimeoutError(f"took longer than {task.time_limit:g} s")
    return judged


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

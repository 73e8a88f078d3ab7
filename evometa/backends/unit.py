"""One unit of a Python or command task: train once, judge on every query, and name whatever goes wrong.

Needs no JAX: a worker process that computes nothing else starts without it.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from evometa.backends import command, python
from evometa.contract import Task
from evometa.errors import EvometaError
from evometa.evaluate.data import Loaded
from evometa.fingerprint import without_addresses
from evometa.types import Failure

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_RESERVED = ("loss", "support_loss", "inner_steps")
_CELL_FOLDER = re.compile(r"[^\s'\"]*evometa-cell-[^/\s'\"]+")  # a temporary folder's name is random
_MESSAGE = 500
Outcome = dict[str, Any]


def run_unit(
    task: Task,
    candidate: Any,
    fit_key: int,
    judge_keys: Mapping[str, int],
    domain: Loaded,
    output_mb: float | None = None,
) -> Outcome:
    """Train and judge once: `{"failure": code, "message": text, "metrics": {query: {name: float}}}`.

    `output_mb`: the most that a command of a command task may write to its standard output and error.

    Everything that the task does wrong is caught and named here; Ctrl-C and evometa's own errors pass.
    Messages are stored with the lineage, so they hold nothing that differs from one equal run to the next.
    """
    outcome = _run_unit(task, candidate, fit_key, judge_keys, domain, output_mb)
    # Cut before the search, which would be slow on a text of megabytes, and after it, to the length kept.
    text = _CELL_FOLDER.sub("CELL", without_addresses(outcome["message"][: 8 * _MESSAGE]))
    return {**outcome, "message": text[:_MESSAGE]}


def _run_unit(
    task: Task,
    candidate: Any,
    fit_key: int,
    judge_keys: Mapping[str, int],
    domain: Loaded,
    output_mb: float | None,
) -> Outcome:
    where = f"domain {domain.name}"
    try:
        if task.runs == "command":
            judged = command.run_cell(task, candidate, fit_key, judge_keys, domain, output_mb)
        else:
            judged = python.run_cell(task, candidate, fit_key, judge_keys, domain)
    except EvometaError:
        raise
    except TimeoutError as error:
        return {"failure": int(Failure.TIMEOUT), "message": f"{where}: {error}", "metrics": {}}
    except MemoryError as error:
        return {
            "failure": int(Failure.OUT_OF_MEMORY),
            "message": f"{where}: out of memory {error}".strip(),
            "metrics": {},
        }
    except (Exception, SystemExit) as error:
        text = f"{where}: {type(error).__name__}: {error}"
        return {"failure": int(Failure.ERROR), "message": text, "metrics": {}}
    metrics: dict[str, dict[str, float]] = {}
    for query, values in judged.items():
        failure, message = _wrong(values, task)
        if failure is not Failure.OK:
            return {"failure": int(failure), "message": f"{where}, judge on {query}: {message}", "metrics": {}}
        metrics[query] = {name: float(value) for name, value in values.items()}
    return {"failure": int(Failure.OK), "message": "", "metrics": metrics}


def _wrong(values: Any, task: Task) -> tuple[Failure, str]:
    """What is wrong with a judge's answer, if anything."""
    if not isinstance(values, Mapping):
        return Failure.ERROR, f"expected a dict with a 'loss', got {type(values).__name__} {values!r}"
    if "loss" not in values:
        return Failure.ERROR, f"expected a 'loss', got the names {sorted(map(str, values))}"
    for name, value in values.items():
        if name not in (*_RESERVED, *task.metrics):
            return Failure.ERROR, f"metric {name!r} is not declared; add metrics=({name!r},) to the task"
        if hasattr(value, "shape") and value.shape == () and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            return Failure.ERROR, f"{name!r} expected a real number, got {type(value).__name__} {value!r}"
        try:
            number = float(value)
        except OverflowError:  # a Python int beyond float64
            return Failure.NONFINITE, f"{name!r} expected a finite float32, got a whole number too large for it"
        if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
            return Failure.NONFINITE, f"{name!r} expected a finite float32, got {value!r}"
    return Failure.OK, ""

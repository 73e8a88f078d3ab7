"""Plain-Python and command tasks in a simple loop; every finished cell is durable at once.

A unit of work is one training (candidate x domain x replicate) with its judgements on every query. What
goes wrong in one is recorded as that candidate's failure, never as a number, and its remaining trainings
are skipped: they could not save it.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from evometa.backends import command, python
from evometa.contract import Task
from evometa.errors import EvometaError
from evometa.evaluate.compiled import layout
from evometa.evaluate.data import Loaded
from evometa.evaluate.settle import Raw
from evometa.fingerprint import without_addresses
from evometa.keys import as_int, cell_keys, fit_and_judge_keys
from evometa.types import Failure

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_RESERVED = ("loss", "support_loss", "inner_steps")
_CELL_FOLDER = re.compile(r"[^\s'\"]*evometa-cell-[^/\s'\"]+")  # a temporary folder's name is random
_MESSAGE = 500
# (candidate, domain, replicate) -> outcome; see `run_unit`.
Outcome = dict[str, Any]


class Journal(Protocol):
    """Where finished units of an unfinished generation are kept."""

    def get(self, generation: int, unit: tuple[int, str, int]) -> Outcome | None:
        """What the unit came to, where it was finished before."""
        ...

    def put(self, generation: int, unit: tuple[int, str, int], outcome: Outcome) -> None:
        """Keep what the unit came to."""
        ...


class HostCells:
    """The cells of some domains of a Python or command task."""

    def __init__(self, task: Task, loaded: Sequence[Loaded], replicates: int, journal: Journal | None = None) -> None:
        self.task, self.loaded, self.replicates, self.journal = task, tuple(loaded), replicates, journal
        self.names = tuple(domain.name for domain in loaded)
        self.cells = layout(task, loaded, replicates)
        self.metrics = tuple(sorted({"support_loss", "inner_steps", *task.metrics}))
        self._column = {cell[:2] + (cell.replicate,): i for i, cell in enumerate(self.cells)}

    def host(self, generation: int, key: Any, genomes: np.ndarray) -> tuple[Raw, dict[int, str]]:
        """Raw cells of genomes `[P, D]`, and what the failed ones said."""
        keys = cell_keys(key, self.names, self.replicates)
        integers = [
            [_integer_keys(keys[d, r], self.task.query_names) for r in range(self.replicates)]
            for d in range(len(self.names))
        ]
        shape = (len(genomes), len(self.cells))
        loss = np.full(shape, np.nan, np.float32)
        metrics = {name: np.full(shape, np.nan, np.float32) for name in self.metrics}
        failure = np.zeros(len(genomes), np.int8)
        messages: dict[int, str] = {}
        for index, genome in enumerate(genomes):
            candidate = self.task.space.decode_host(genome)
            for d, domain in enumerate(self.loaded):
                for r in range(self.replicates):
                    if failure[index] == Failure.OK:
                        outcome = self._unit(generation, (index, domain.name, r), candidate, integers[d][r], domain)
                        self._fill(index, domain.name, r, outcome, loss, metrics)
                        if outcome["failure"] != Failure.OK:
                            failure[index], messages[index] = outcome["failure"], outcome["message"]
        evaluated = ~np.isnan(loss)
        # NaN in a metric means that the judge did not return it; a NaN that it returned failed above.
        return Raw(loss, metrics, evaluated, failure), messages

    def _unit(
        self,
        generation: int,
        unit: tuple[int, str, int],
        candidate: Any,
        keys: tuple[int, dict[str, int]],
        domain: Loaded,
    ) -> Outcome:
        if self.journal is not None and (done := self.journal.get(generation, unit)) is not None:
            return done
        outcome = run_unit(self.task, candidate, *keys, domain)
        if self.journal is not None:
            self.journal.put(generation, unit, outcome)
        return outcome

    def _fill(self, index: int, domain: str, replicate: int, outcome: Outcome, loss: np.ndarray, metrics: Any) -> None:
        for query, values in outcome["metrics"].items():
            column = self._column[domain, query, replicate]
            loss[index, column] = values["loss"]
            for name in self.metrics:
                metrics[name][index, column] = values.get(name, math.nan)


def run_unit(task: Task, candidate: Any, fit_key: int, judge_keys: dict[str, int], domain: Loaded) -> Outcome:
    """Train and judge once: `{"failure": code, "message": text, "metrics": {query: {name: float}}}`.

    Everything that the task does wrong is caught and named here; Ctrl-C and evometa's own errors pass.
    Messages are stored with the lineage, so they hold nothing that differs from one equal run to the next.
    """
    outcome = _run_unit(task, candidate, fit_key, judge_keys, domain)
    # Cut before the search, which would be slow on a text of megabytes, and after it, to the length kept.
    text = _CELL_FOLDER.sub("CELL", without_addresses(outcome["message"][: 8 * _MESSAGE]))
    return {**outcome, "message": text[:_MESSAGE]}


def _run_unit(task: Task, candidate: Any, fit_key: int, judge_keys: dict[str, int], domain: Loaded) -> Outcome:
    run: Callable[..., dict[str, Any]] = command.run_cell if task.runs == "command" else python.run_cell
    where = f"domain {domain.name}"
    try:
        judged = run(task, candidate, fit_key, judge_keys, domain)
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


def _integer_keys(key: Any, queries: tuple[str, ...]) -> tuple[int, dict[str, int]]:
    fit_key, judge_keys = fit_and_judge_keys(key, queries)
    return as_int(fit_key), {query: as_int(value) for query, value in judge_keys.items()}

"""The task of a spec: found by its name or made of its `[task]` table, then as the spec wants it. Needs no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evometa.contract import Objective, Split, Task, command_task
from evometa.errors import ConfigError, did_you_mean
from evometa.names import load_task
from evometa.space import Column, Space
from evometa.spec import Spec, check_task_table


def task_from_table(table: Mapping[str, Any]) -> Task:
    """A command task from a spec's `[task]` table: `fit`, `judge`, `space`, `domains` and fields of `Task`.

    Raises `ConfigError` for what the table gets wrong.
    """
    checked = check_task_table(table)
    # Columns keep the numbers as written: `low = 1` stays a whole number.
    columns = {
        name: Column(**{**column, "choices": tuple(column.get("choices", ())), "shape": tuple(column.get("shape", ()))})
        for name, column in table["space"].items()
    }
    fields = checked.model_dump(exclude={"space", "split", "metrics"})
    split = None if checked.split is None else Split(**checked.split.model_dump())
    return command_task(space=Space(columns), split=split, metrics=tuple(checked.metrics), **fields)


def task_of(spec: Spec, base: Path) -> Task:
    """The task that a spec searches: its split, objective, held columns and levels applied; loads no data."""
    task = load_task(spec.task, spec.task_options, base) if isinstance(spec.task, str) else task_from_table(spec.task)
    if task.runs == "command":
        # Where the run was started, as far as that folder is still there: a project may have been moved.
        task = task.with_(folder=str((base if base.is_dir() else Path()).absolute()))
    if spec.split is not None:
        task = task.with_(split=Split(tuple(spec.split.train), tuple(spec.split.validation), tuple(spec.split.test)))
    if spec.objective is not None:
        texts = [spec.objective] if isinstance(spec.objective, str) else spec.objective
        objectives = tuple(Objective.parse(text) for text in texts)
        known = task.query_names
        for objective in objectives:
            if objective.query not in known:
                close = did_you_mean(objective.query, known)
                raise ConfigError(
                    f"task {task.name!r} has no query {objective.query!r}.{close} It has {', '.join(known)}"
                )
        task = task.with_(objective=objectives[0] if len(objectives) == 1 else objectives)
    if spec.replicates is not None:
        task = task.with_(replicates=spec.replicates)
    if spec.fixed:
        task = task.with_(space=task.space.hold(dict(sorted(spec.fixed.items()))))  # in the order of run.json
    if spec.limits.seconds is not None and task.runs != "jax":
        task = task.with_(time_limit=spec.limits.seconds)
    if spec.levels < 2:
        return task
    from evometa.levels import leveled  # brings JAX

    return leveled(task, spec, base)

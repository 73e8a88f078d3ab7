"""A command task that is written into the spec: its `[task]` table becomes a `Task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evometa.contract import Split, Task, command_task
from evometa.space import Column, Space
from evometa.spec import check_task_table


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

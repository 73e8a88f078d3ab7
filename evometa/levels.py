"""The number of levels in a spec, made into tasks: K levels are K - 1 nests, and one number says how many.

Level 1 searches the task's own space. Each level above it searches what `[nest]` leaves open of the search below
(its strategy's hyperparameters, its start, slots of the learner), and is scored on domains that no lower level
used (S0-7): the train domains are dealt out to the levels in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evometa.contract import Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.names import load_strategy
from evometa.nest import World, nest
from evometa.nest_search import Lower
from evometa.space import Column, Space
from evometa.spec import NestSpec, Spec
from evometa.strategies import CATALOGUE
from evometa.types import Strategy


def leveled(task: Task, spec: Spec, base: Path = Path()) -> Task:
    """The task that the top level of a spec searches: `task` itself for 0 or 1 levels, else nests of it.

    Raises `ConfigError` where a level would have no domains left.
    """
    if spec.levels < 2:
        return task
    if len(spec.nest) not in (1, spec.levels - 1):
        raise ConfigError(
            f"nest: expected one table for all levels below the top, or {spec.levels - 1} for {spec.levels} levels,"
            f" got {len(spec.nest)}"
        )
    if spec.below(1).judged_on is not None:
        return _by_query(task, spec, base)
    dealt = deal(task.split.train, spec.levels)
    top = task
    for level in range(2, spec.levels + 1):
        above = [name for names in dealt[level - 1 :] for name in names]
        everybody = (*above, *task.split.validation, *task.split.test)
        worlds = {name: World(dealt[level - 2], (name,)) for name in everybody}
        split = Split(dealt[level - 1], task.split.validation, task.split.test)
        below = spec.below(level - 1)
        slots = tuple(below.slots) if level == 2 else ()
        lower = _lower(below, slots, base)
        top = nest(top, lower, worlds, split, name=f"{task.name}-level{level}")
    return top


def _by_query(task: Task, spec: Spec, base: Path) -> Task:
    """Two levels that share their domains and keep their exams apart: the way to tune a strategy on problems."""
    below = spec.below(1)
    if spec.levels > 2:
        raise ConfigError(f"nest.judged_on: expected 2 levels, got {spec.levels}: one query can separate only two")
    known = task.query_names
    if below.judged_on not in known:
        raise ConfigError(
            f"nest.judged_on: task {task.name!r} has no query {below.judged_on!r}."
            f"{did_you_mean(str(below.judged_on), known)} It has {', '.join(known)}"
        )
    split = task.split
    worlds = {name: World((name,)) for name in (*split.train, *split.validation, *split.test)}
    lower = _lower(below, tuple(below.slots), base)
    return nest(task, lower, worlds, split, name=f"{task.name}-level2", judged_on=below.judged_on)


def deal(names: Sequence[str], levels: int) -> list[tuple[str, ...]]:
    """The train domains of each level, dealt out in turn: every level gets some of every stretch of the list."""
    if len(names) < levels:
        raise ConfigError(
            f"levels: expected at least {levels} train domains for {levels} levels, got {len(names)}"
            f" ({', '.join(names)}): a level would have no domains left"
        )
    return [tuple(names[level::levels]) for level in range(levels)]


def _lower(spec: NestSpec, slots: tuple[str, ...], base: Path) -> Lower:
    tunes = {
        name: Column(**{**table.model_dump(), "choices": tuple(table.choices), "shape": tuple(table.shape)})
        # In the order of their names, as run.json keeps them: a run that is opened again has the same space.
        for name, table in sorted(spec.tunes.items())
    }
    known: Mapping[str, Any] = CATALOGUE[spec.strategy].defaults if spec.strategy in CATALOGUE else {}
    tuned = {}
    for name, column in tunes.items():
        value = spec.strategy_options.get(name, known.get(name))
        if value is None:
            raise ConfigError(
                f"nest: strategy {spec.strategy!r} has no hyperparameter {name!r} to tune.{did_you_mean(name, known)}"
                f" It has {', '.join(known) or 'none'}. Or give its value in nest.strategy_options.{name}"
            )
        if column.kind in ("real", "log") and not column.low <= value <= column.high:
            raise ConfigError(
                f"nest.tunes.{name}: expected a range around its value today, {value:g};"
                f" got {column.low:g} .. {column.high:g}"
            )
        tuned[name] = value

    def make(space: Space, **given: Any) -> Strategy:
        return load_strategy(spec.strategy, space, spec.population, {**spec.strategy_options, **given}, base)

    return Lower(make, spec.generations, tunes, tuned, spec.prior, slots)


def start_genome(spec: Spec, task: Task) -> np.ndarray:
    """Where the top level's search starts: the baseline, or the genome that the spec gives: `[D]` float32."""
    if isinstance(spec.start, str):
        return task.space.encode(task.baseline)
    return task.space.check(spec.start, "start")

"""A search as an inner training: the verb that makes one level out of the level below.

`nest(task, ...)` returns a task whose `fit` is a whole search of `task` over some lower domains, with the
candidate of the level above held fixed, and whose `judge` trains what that search recommends on *other* lower
domains and judges it there. Source: the procedure of nested generalization training (S0-1 to S0-8), and, with a
strategy's own hyperparameters as the outer space, meta-black-box optimization (Lange et al. 2023).

Nothing but scores passes between levels (S0-3): the lower search sees the outer candidate as constants, the outer
search sees the loss. Where the lower strategy and task are traceable, all levels are one compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from evometa.contract import Domain, Split, Task
from evometa.errors import ConfigError, EvometaError, did_you_mean
from evometa.evaluate import data as datasets
from evometa.evaluate.data import Loaded
from evometa.keys import name_word
from evometa.nest_search import SLOTS, START, TUNES, CompiledSearch, HostSearch, Lower
from evometa.space import Column, Space, flatten, real, unflatten, weights


class World(NamedTuple):
    """A domain of the level above: lower domains to search on, and others to judge on.

    Without `query`, what the search found is judged on the support's own domains, by a query that the lower search
    is not scored on (`judged_on` of `nest`).
    """

    support: tuple[str, ...]
    query: tuple[str, ...] = ()


def nest(
    task: Task,
    lower: Lower,
    worlds: Mapping[str, World],
    split: Split,
    *,
    name: str | None = None,
    judged_on: str | None = None,
) -> Task:
    """A task one level up. Its domains are `worlds`, by name, its roles `split`, its space what `lower` leaves open.

    `judged_on`: the query of `task` that the outer level is scored on, by default the lower objective's. Every
    other query of the task is judged as well and recorded. The loss of a world is the mean over its lower domains;
    `inner_steps` counts the lower search's too.

    Raises `ConfigError` for a lower domain that is unknown or used by two levels, a level without domains, a task
    with several objectives, and an outer space without columns.
    """
    objective, *more = task.objectives
    if more:
        raise ConfigError(f"nest: expected a task with one objective, {task.name!r} has {len(task.objectives)}")
    if task.runs == "command":
        raise ConfigError(f"nest: expected a JAX or Python task, {task.name!r} is made of commands")
    scored = objective.query.split("@")[0]
    query = judged_on or scored
    check_worlds(task, worlds, split, separate_query=query != scored)
    if not (lower.tunes or lower.prior or lower.slots):
        raise ConfigError("nest: the level above moves nothing. Give tunes, slots, or prior=True")
    free = task.space.hold(_baseline_values(task, lower.slots)) if lower.slots else task.space
    columns, baseline = _outer(task, free, lower)
    host = task.runs == "python" or not lower.make(free, **lower.tuned).traceable
    if host and task.runs == "jax":
        raise ConfigError(f"nest: {task.name!r} is compiled, so its lower strategy must be traceable; use cma_es")
    search = HostSearch(task, lower, free) if host else CompiledSearch(task, lower, free)
    return Task(
        name=name or f"{task.name}-nested",
        space=Space(columns),
        domains=tuple(_domain(task, label, world, host) for label, world in worlds.items()),
        fit=search.fit,
        judge=search.judge,
        objective=type(objective)(query, objective.reduction, objective.fraction),
        baseline=baseline,
        split=split,
        runs="python" if host else "jax",
        metrics=task.metrics,
        black_box=task.black_box,
        source=task.source,
    )


def search_of(task: Task) -> CompiledSearch | HostSearch:
    """The search that a nested task's `fit` runs. Raises `ConfigError` for any other task."""
    search = getattr(task.fit, "__self__", None)
    if not isinstance(search, CompiledSearch | HostSearch):
        raise ConfigError(f"task {task.name!r} is no search of searches: its candidates have no search below them")
    return search


# --- the outer space ---------------------------------------------------------------------------------


def _outer(task: Task, free: Space, lower: Lower) -> tuple[dict[str, Column], dict[str, Any]]:
    """Columns of the level above and their baseline: what a careful user has today."""
    columns: dict[str, Column] = {f"{TUNES}.{name}": column for name, column in lower.tunes.items()}
    values: dict[str, Any] = {f"{TUNES}.{name}": lower.tuned[name] for name in lower.tunes}
    if lower.prior:
        genome = free.encode(task.baseline)
        for column, part in zip(free.columns, free.slices, strict=True):
            # In the genome's own coordinates: a start is a genome, whatever kinds of column it has.
            where = f"{START}.{column.name}"
            unbounded = column.kind == "weights"
            columns[where] = weights(column.shape) if unbounded else real(0.0, 1.0)
            values[where] = genome[part].reshape(column.shape) if unbounded else float(np.clip(genome[part][0], 0, 1))
    known = {column.name: column for column in task.space.columns}
    for name, value in _baseline_values(task, lower.slots).items():
        columns[f"{SLOTS}.{name}"] = known[name]
        values[f"{SLOTS}.{name}"] = value
    return columns, unflatten(values)


def _baseline_values(task: Task, names: Sequence[str]) -> dict[str, Any]:
    flat = flatten(task.baseline, {column.name for column in task.space.columns})
    for name in names:
        if name not in flat:
            raise ConfigError(f"nest: the task has no column {name!r} for a slot.{did_you_mean(name, flat)}")
    return {name: flat[name] for name in names}


# --- domains -----------------------------------------------------------------------------------------


def check_worlds(task: Task, worlds: Mapping[str, World], split: Split, separate_query: bool = False) -> None:
    """Raise `ConfigError` unless every lower domain has one level: searched on, or judged on, never both (S0-7)."""
    if not worlds:
        raise ConfigError("nest: expected at least one world (support and query domains), got none")
    for role in ("train", "validation", "test"):
        for label in getattr(split, role):
            if label not in worlds:
                raise ConfigError(
                    f"nest: the split names a world {label!r} that is not there.{did_you_mean(label, worlds)}"
                )
    below: dict[str, str] = {}
    for label, world in worlds.items():
        if not world.support:
            raise ConfigError(
                f"nest: world {label!r} has no domains left for the lower search. Give it support domains"
            )
        if not world.query and not separate_query:
            raise ConfigError(
                f"nest: world {label!r} has no domains left to be judged on. Give it query domains,"
                " or judged_on=QUERY, a query that the lower search is not scored on"
            )
        for name in (*world.support, *world.query):
            task.domain(name)
        below |= {name: label for name in world.support}
    for label, world in worlds.items():
        for name in world.query:
            if name in below:
                raise ConfigError(
                    f"nest: domain {name!r} is used by two levels: the lower search of world {below[name]!r} is scored"
                    f" on it, and so is the level above in world {label!r}"
                )
    scored = {name: role for role in ("train", "validation") for w in getattr(split, role) for name in worlds[w].query}
    for label in split.test:
        for name in worlds[label].query:
            if name in scored:
                raise ConfigError(f"nest: domain {name!r} is judged on in {scored[name]} and sealed in test")


def _domain(task: Task, label: str, world: World, host: bool) -> Domain:
    judged = world.query or world.support
    tags = {"support": ",".join(world.support), "query": ",".join(judged)}
    if len(judged) == 1:
        tags = {**task.domain(judged[0]).tags, **tags}
    everybody = [task.domain(name) for name in dict.fromkeys((*world.support, *judged))]
    copies = [domain.tags["copy_of"] for domain in everybody if "copy_of" in domain.tags]
    tags |= {"copy_of": ",".join(dict.fromkeys(copies))} if copies else {}
    sealed = any(domain.sealed for domain in everybody)
    names = list(dict.fromkeys(query for name in judged for query in task.domain(name).queries))
    if host:
        queries = {query: partial(_host_query, task, query, judged) for query in names}
        return Domain(label, partial(_host_support, task, world.support), queries, tags, sealed)
    queries = {query: partial(_query, task, label, query, judged) for query in names}
    return Domain(label, partial(_support, task, label, world.support), queries, tags, sealed)


def _load(task: Task, name: str) -> Loaded:
    # The outer domain's own role says whether it may be loaded; below it, roles mean nothing.
    return datasets.read(task, task.domain(name), "train")


def _words(names: Sequence[str]) -> Any:
    return np.array([name_word(name) for name in names], np.uint32)


def _support(task: Task, label: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a lower search sees of its domains: their support, and the query that it is scored on."""
    base = task.objectives[0].query.split("@")[0]
    loaded = [_load(task, name) for name in names]
    return {
        "words": _words(names),
        "support": _stack(label, [domain.support for domain in loaded]),
        "queries": {base: _stack(label, [domain.queries[base] for domain in loaded])},
    }


def _query(task: Task, label: str, query: str, names: tuple[str, ...]) -> dict[str, Any]:
    loaded = [_load(task, name) for name in names]
    return {
        "words": _words(names),
        "support": _stack(label, [domain.support for domain in loaded]),
        "query": _stack(label, [domain.queries[query] for domain in loaded]),
    }


def _host_support(task: Task, names: tuple[str, ...]) -> tuple[Loaded, ...]:
    base = task.objectives[0].query.split("@")[0]
    loaded = [_load(task, name) for name in names]
    return tuple(Loaded(d.name, "train", d.support, {base: d.queries[base]}) for d in loaded)


def _host_query(task: Task, query: str, names: tuple[str, ...]) -> tuple[str, tuple[Loaded, ...]]:
    return query, tuple(_load(task, name) for name in names)


def _stack(label: str, trees: Sequence[Any]) -> Any:
    try:
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)
    except (ValueError, TypeError) as error:
        raise EvometaError(
            f"nest: the lower domains of world {label!r} expected arrays of equal shapes, got {error}."
            " Pad them in the task, or give the world one domain"
        ) from None

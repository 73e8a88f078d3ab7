"""Control arms by one word each: what a word changes in the spec of a run, for any task.

`random-search`: the same budget without a method. `placebo`: every candidate is told another's scores, so that
nothing can be learned. `walk`: the search is told random numbers that no score has touched; where a baseline is poor,
walking about finds something, and a placebo is to find no more. `home`: the same search, scored on the home query.
`static`: no search. Others are the task's own (`Task.controls`): `regularizer`, `oracle`, `no-separation` ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evometa.contract import Task
from evometa.errors import ConfigError, did_you_mean
from evometa.study_spec import merge

HOME = "home"
ORACLE = "oracle"
GENERAL = ("random-search", "placebo", "walk", HOME, "static")


def changes(word: str, task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run's spec that a control word sets, over `values`; tables replace whole tables.

    Raises `ConfigError` for a word that neither evometa nor the task has, with what there is.
    """
    if word == "random-search":
        return {"strategy": "random_search", "strategy_options": {}}
    if word == "placebo":
        return {"placebo": True}
    if word == "walk":
        return {"placebo": "noise"}
    if word == "static":
        return {"strategy": "static", "strategy_options": {}, "population": 1, "generations": 1}
    if word == HOME:
        return {"objective": _home(task, values.get("objective"))}
    if word in task.controls:
        return {"task_options": merge(values.get("task_options", {}), task.controls[word])}
    known = [*GENERAL, *(name for name in task.controls if name not in GENERAL)]
    raise ConfigError(
        f"no control is called {word!r}.{did_you_mean(word, known)} Task {task.name!r} has {', '.join(known)}"
    )


def _home(task: Task, objective: Any) -> str:
    """The home query with the reduction of the search that it is a control of."""
    if HOME not in task.query_names:
        raise ConfigError(
            f"control 'home' needs a query called 'home', and task {task.name!r} has {', '.join(task.query_names)}"
        )
    text = objective[0] if isinstance(objective, list) else objective or str(task.objectives[0])
    _, colon, reduction = text.partition(":")
    return f"{HOME}{colon}{reduction}"

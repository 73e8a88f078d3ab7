"""One cell of a JAX task: train once, judge on every query; traceable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from evometa.contract import Task
from evometa.keys import fit_and_judge_keys


def train_and_judge(
    task: Task, candidate: Any, key: Any, support: Any, queries: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """What `judge` returns, by query name; a mark that is not the last is `away@50`."""
    fit_key, judge_keys = fit_and_judge_keys(key, tuple(queries))
    judged: dict[str, Any] = {}
    for suffix, learned in trained(task, candidate, fit_key, support):
        judged |= {f"{q}{suffix}": task.judge(judge_keys[q], learned, data) for q, data in queries.items()}
    return judged


def trained(task: Task, candidate: Any, fit_key: Any, support: Any) -> Iterator[tuple[str, Any]]:
    """What is learned at every mark, with the mark's suffix (`@50`; none for the last); traceable."""
    if task.fit is not None:
        yield "", task.fit(fit_key, candidate, support)
        return
    assert task.init is not None and task.step is not None

    def one(learner: Any, number: Any) -> tuple[Any, None]:
        step_key = jax.random.fold_in(jax.random.fold_in(fit_key, 1), number)
        return task.step(step_key, candidate, learner, support), None  # type: ignore[misc]

    learner = task.init(jax.random.fold_in(fit_key, 0), candidate, support)
    for start, mark in pairwise((0, *task.marks)):
        learner, _ = jax.lax.scan(one, learner, jnp.arange(start, mark))
        yield "" if mark == task.marks[-1] else f"@{mark}", learner

"""Update rules of the usual optimizers with their numbers as columns: what a search for programs is compared with.

A rule's step is in units of `lr`, as a program's is: weights += lr * step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from evometa.space import Candidate, log, real


class Now(NamedTuple):
    """What a rule sees at a step."""

    w: Any  # [N] weights
    g: Any  # [N] gradient
    t: Any  # [] number of the step, from 1
    progress: Any  # [] t / number of steps


class Rule(NamedTuple):
    """A rule: its numbers, and `step(candidate, memory [2, N], now) -> step [N], memory`."""

    columns: dict[str, Any]
    baseline: Candidate
    step: Callable[[Candidate, Any, Now], tuple[Any, Any]]


def _sgd(candidate: Candidate, memory: Any, now: Now) -> tuple[Any, Any]:
    return -now.g, memory


def _momentum(candidate: Candidate, memory: Any, now: Now) -> tuple[Any, Any]:
    speed = (1.0 - candidate["forget1"]) * memory[0] + now.g
    # 1 - momentum: the rate then means the same at any momentum.
    return -candidate["forget1"] * speed, memory.at[0].set(speed)


def _adam(candidate: Candidate, memory: Any, now: Now) -> tuple[Any, Any]:
    """Kingma and Ba 2015, algorithm 1; decoupled decay (Loshchilov and Hutter 2019) where there is a `decay`."""
    keep1, keep2 = 1.0 - candidate["forget1"], 1.0 - candidate["forget2"]
    m = keep1 * memory[0] + candidate["forget1"] * now.g
    v = keep2 * memory[1] + candidate["forget2"] * now.g**2
    first, second = m / (1.0 - keep1**now.t), v / (1.0 - keep2**now.t)
    step = -first / (jnp.sqrt(second) + candidate["epsilon"])
    if "decay" in candidate:
        step = step - candidate["decay"] * now.w
    return step, jnp.stack([m, v])


def _nadamw(candidate: Candidate, memory: Any, now: Now) -> tuple[Any, Any]:
    """Adam with Nesterov's momentum (Dozat 2016), decoupled decay and a falling rate: what VeLO is compared with."""
    keep1, keep2 = 1.0 - candidate["forget1"], 1.0 - candidate["forget2"]
    m = keep1 * memory[0] + candidate["forget1"] * now.g
    v = keep2 * memory[1] + candidate["forget2"] * now.g**2
    ahead = keep1 * m / (1.0 - keep1 ** (now.t + 1.0)) + candidate["forget1"] * now.g / (1.0 - keep1**now.t)
    step = -ahead / (jnp.sqrt(v / (1.0 - keep2**now.t)) + candidate["epsilon"]) - candidate["decay"] * now.w
    return _left(now) ** candidate["anneal"] * step, jnp.stack([m, v])


def _left(now: Now) -> Any:
    """1 at the first step, 1 / steps at the last."""
    return 1.0 - now.progress + now.progress / now.t


def _annealed(candidate: Candidate, memory: Any, now: Now) -> tuple[Any, Any]:
    step, memory = _adam(candidate, memory, now)
    return _left(now) ** candidate["anneal"] * step, memory


# 1 - momentum and 1 - beta in the logarithm: 0.9 and 0.99 differ as much as 0.99 and 0.999.
_FORGET = {"forget1": log(1e-2, 1.0)}
_MOMENTS = {**_FORGET, "forget2": log(1e-4, 1.0), "epsilon": log(1e-10, 1e-1)}
_USUAL = {"forget1": 0.1, "forget2": 1e-3, "epsilon": 1e-8}
_RATE = log(1e-4, 10.0)
_ALL = {"lr": _RATE, **_MOMENTS, "decay": log(1e-5, 10.0), "anneal": real(0.0, 3.0)}

RULES: dict[str, Rule] = {
    "sgd": Rule({"lr": _RATE}, {"lr": 0.3}, _sgd),
    "momentum": Rule({"lr": _RATE, **_FORGET}, {"lr": 0.3, "forget1": 0.1}, _momentum),
    "adam": Rule({"lr": _RATE, **_MOMENTS}, {"lr": 0.03, **_USUAL}, _adam),
    "adamw": Rule({"lr": _RATE, **_MOMENTS, "decay": log(1e-5, 10.0)}, {"lr": 0.03, **_USUAL, "decay": 0.01}, _adam),
    "annealed": Rule(_ALL, {"lr": 0.03, **_USUAL, "decay": 0.01, "anneal": 1.0}, _annealed),
    "nadamw": Rule(_ALL, {"lr": 0.03, **_USUAL, "decay": 0.01, "anneal": 0.0}, _nadamw),
}

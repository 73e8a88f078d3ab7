"""Is a loss the squared TD error? Its derivative is compared with the error on values that a learner could hold."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.code import Code, Program, assemble
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vocabularies import LOSS

PROBES = 256  # transitions at each scale
SCALES = (0.1, 1.0, 10.0)  # of rewards and values
CHOICES = 4


def probes() -> dict[str, np.ndarray]:
    """Made-up transitions `[PROBES * len(SCALES)]`, the same at every call, that obey what defines the inputs.

    The table and its copy differ, so that `next_max` and `next_online` do; every fourth transition ends its episode.
    """
    luck = np.random.default_rng(20210108)
    parts = []
    for scale in SCALES:
        here, after, copy = (scale * luck.normal(size=(PROBES, CHOICES)) for _ in range(3))
        going_on = np.arange(PROBES) % 4 > 0
        parts.append(
            {
                "q": here[:, 0],
                "q_max": here.max(axis=1),
                "q_mean": here.mean(axis=1),
                "next_max": copy.max(axis=1),
                "next_online": copy[np.arange(PROBES), after.argmax(axis=1)],
                "next_mean": copy.mean(axis=1),
                "reward": scale * luck.normal(size=PROBES),
                "discount": luck.uniform(0.5, 1.0, PROBES) * going_on,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}


@lru_cache(maxsize=1)
def _slope() -> Any:
    """`tokens, constants -> derivative by q` on the probes, compiled once."""
    machine, inputs = Machine(LOSS, (PROBES * len(SCALES),)), probes()
    return jax.jit(lambda *code: machine.derivative(prepare(LOSS, Code(*code)), inputs, "q")[1])


def error(code: Any, following: str) -> float:
    """How far the derivative by `q` is from a positive multiple of q - (reward + discount * `following`).

    The length of what is left after the best multiple is taken away, over the derivative's own, the worst over
    scales: 0 for the squared TD error, 1 for what has nothing to do with it; inf for a derivative that is zero or
    not finite, or points the wrong way.
    """
    code = assemble(code) if isinstance(code, Program) else code
    inputs = probes()
    found = np.asarray(
        _slope()(jnp.asarray(code.tokens, jnp.int32), jnp.asarray(code.constants, jnp.float32)), np.float64
    )
    wanted = np.asarray(inputs["q"] - (inputs["reward"] + inputs["discount"] * inputs[following]), np.float64)
    if not np.all(np.isfinite(found)):
        return float("inf")
    multiple = found @ wanted / (wanted @ wanted)
    if multiple <= 0.0:
        return float("inf")
    rows = [slice(i * PROBES, (i + 1) * PROBES) for i in range(len(SCALES))]
    # Each scale by itself: at the largest alone, what is wrong with small errors would not show.
    left = [np.linalg.norm(found[r] - multiple * wanted[r]) / (multiple * np.linalg.norm(wanted[r])) for r in rows]
    return float(min(max(left), 1e9))

"""Operations that read each layer as a list: rows `[lists, length]` in, rows of the same shape out (JAX).

Short rows are worked out column by column: of a list of six numbers that is several times faster than a compiled sort
or scan, and the order of a sum is always from the left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

SHORT = 16  # rows up to this length go column by column


def ascending(rows: Any) -> Any:
    """Each row sorted, the smallest first."""
    count = rows.shape[1]
    if count > SHORT:
        return jnp.sort(rows, axis=1)
    columns = [rows[:, i] for i in range(count)]
    for turn in range(count):  # odd-even transposition: as many turns as there are columns
        for i in range(turn % 2, count - 1, 2):
            low, high = jnp.minimum(columns[i], columns[i + 1]), jnp.maximum(columns[i], columns[i + 1])
            columns[i], columns[i + 1] = low, high
    return jnp.stack(columns, axis=1)


def running(combine: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A function of rows: every element combined with all before it in its row."""

    def change(rows: Any) -> Any:
        if rows.shape[1] > SHORT:
            return lax.associative_scan(combine, rows, axis=1)
        columns = [rows[:, 0]]
        for i in range(1, rows.shape[1]):
            columns.append(combine(columns[-1], rows[:, i]))
        return jnp.stack(columns, axis=1)

    return change


def before(rows: Any) -> Any:
    """Each row moved to the right by one; zero enters."""
    return jnp.pad(rows, ((0, 0), (1, 0)))[:, :-1]

"""Who breeds with whom in `linear_gp`: tournaments, within islands where there are some; traceable.

Islands (demes; Tanese 1989, "Distributed genetic algorithms") are shares of the population that breed apart, but for a
few children. What is best for a while takes over its island and not the others, which may come further another way.
Children belong to the islands in turn, by their row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.types import Array


class Drawn(NamedTuple):
    """What a generation is bred from. Leading axis P: the rows asked next."""

    home: Array  # [P] int32: island of each row
    first: Array  # [P] int32: the winner of a tournament, a row of the ordered generation
    second: Array  # [P] int32: of another one
    paired: Array  # [P] bool: does the row have both as parents? Else the first alone
    there: Array  # [P] bool: has the island of its parents anybody that may breed?


def draw(key: Any, islands: Array, breeders: Array, tournament: int, crossover: float, migration: float) -> Drawn:
    """Parents for every row of the next generation.

    `islands` [P] int32: the island of each row of a generation that is ordered by island, and within an island those
    that may breed first, best first. `breeders` [I] int32: how many of each may. `migration`: the probability that a
    row has its parents on an island drawn at random.
    """
    count, number = islands.shape[0], breeders.shape[0]
    keys = jax.random.split(key, 2)
    home = jnp.arange(count, dtype=jnp.int32) % number
    away = home
    if number > 1:
        luck = jax.random.uniform(jax.random.fold_in(key, 2), (2, count))
        away = jnp.where(luck[0] < migration, jnp.floor(luck[1] * number).astype(jnp.int32), home)
    limit = jnp.maximum(breeders[away], 1)
    drawn = jnp.floor(jax.random.uniform(keys[0], (2, tournament, count)) * limit[None, None]).astype(jnp.int32)
    best = jnp.min(jnp.minimum(drawn, limit[None, None] - 1), axis=1)
    begins = jnp.searchsorted(islands, away).astype(jnp.int32)
    first, second = jnp.minimum(begins[None] + best, count - 1)
    paired = jax.random.uniform(keys[1], (count,)) < crossover
    return Drawn(home, first, second, paired & (first != second), breeders[away] > 0)


def alone(ids: Array) -> Array:
    """`ids` [N, 2] as parents `[N, 2, 2]`: each the only one."""
    return jnp.stack([ids, jnp.full_like(ids, -1)], axis=1)


def put(made: tuple[Array, ...], at: slice, there: Array, rows: tuple[Array, ...]) -> tuple[Array, ...]:
    """Genomes, parents, strengths and islands `made`, with other rows at `at`, where they are `there` [N]."""
    return tuple(
        old.at[at].set(jnp.where(there.reshape(-1, *[1] * (old.ndim - 1)), new, old[at]))
        for old, new in zip(made, rows, strict=True)
    )

"""Who breeds with whom in `linear_gp`: tournaments, within islands where there are some; traceable.

Islands (demes; Tanese 1989, "Distributed genetic algorithms") are shares of the population that breed apart, but for a
few children. What is best for a while takes over its island and not the others, which may come further another way.
Children belong to the islands in turn, by their row.

A tournament is won by the best fitness, a mean over train domains, or with `cases` by the losses on a few cells drawn
at random ("batch tournament selection": de Melo, Vargas and Banzhaf 2019, after lexicase selection: Spector 2012). Then
who is best at something has children, though others are better on average: a program that gains on two domains what
it loses on a third is a step that the mean never takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.types import Array

STANDINGS = 64  # draws of cells per generation


class Drawn(NamedTuple):
    """What a generation is bred from. Leading axis P: the rows asked next."""

    home: Array  # [P] int32: island of each row
    first: Array  # [P] int32: the winner of a tournament, a row of the ordered generation
    second: Array  # [P] int32: of another one
    paired: Array  # [P] bool: does the row have both as parents? Else the first alone
    there: Array  # [P] bool: has the island of its parents anybody that may breed?


def standings(key: Any, loss: Array, ok: Array, lengths: Array, parsimony: float, cases: int) -> Array:
    """`[STANDINGS, P]` int32: the order of rows by the ranks of their losses on `cases` random cells, once per draw.

    `loss` [P, C], `ok` [P] bool: rows that did not fail; `lengths` [P]: effective instructions, as a share of the most.
    Each cell has the penalty of parsimony in units of its own median absolute deviation.
    """
    held = jnp.where(ok[:, None], loss, jnp.nan)
    # Rounded apart: fused to one operation, or not, the sum would differ in its last bit.
    penalty = jax.lax.optimization_barrier(parsimony * deviation(held)[None] * lengths[:, None])
    ranks = _order(jnp.where(jnp.isnan(held), jnp.inf, held + penalty))

    def by_some(own: Any) -> Array:
        some = jax.random.permutation(own, loss.shape[1])[:cases]
        return _order(jnp.sum(ranks[:, some], axis=1, keepdims=True))[:, 0]

    return jax.vmap(by_some)(jax.random.split(key, STANDINGS))


def deviation(values: Array) -> Array:
    """Median absolute deviation of `values` [P] or, of each column, [P, C]; NaN are left out."""
    middle = jnp.nanmedian(values, axis=0, keepdims=True)
    return jnp.nan_to_num(jnp.nanmedian(jnp.abs(values - middle), axis=0))


def _order(values: Array) -> Array:
    """`[P, C]` int32: the rank of each row in each column; of equal ones the earlier row is first."""
    return jnp.argsort(jnp.argsort(values, axis=0, stable=True), axis=0, stable=True).astype(jnp.int32)


def draw(
    key: Any, islands: Array, breeders: Array, standing: Array, tournament: int, crossover: float, migration: float
) -> Drawn:
    """Parents for every row of the next generation.

    `islands` [P] int32: the island of each row of a generation that is ordered by island, and within an island those
    that may breed first, best first. `breeders` [I] int32: how many of each may. `migration`: the probability that a
    row has its parents on an island drawn at random. `standing` [S, P] int32: other orders of the same rows, one of
    which, drawn at random, decides each tournament; none where S is 0: then the order of the rows does.
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
    begins = jnp.searchsorted(islands, away).astype(jnp.int32)
    # [2, tournament, P]: rows of the ordered generation
    rivals = jnp.minimum(begins[None, None] + jnp.minimum(drawn, limit[None, None] - 1), count - 1)
    if standing.shape[0]:
        which = jax.random.randint(jax.random.fold_in(key, 3), (2, 1, count), 0, standing.shape[0])
        won = jnp.argmin(standing[which, rivals], axis=1)
        first, second = jnp.take_along_axis(rivals, won[:, None], axis=1)[:, 0]
    else:
        first, second = jnp.min(rivals, axis=1)
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

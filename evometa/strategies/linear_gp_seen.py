"""Which behaviours `linear_gp` has evaluated: a ring of hashes, and of a child's variants the first that is new."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evometa.programs.behaviour import REFUSED
from evometa.types import Array

UNKNOWN = REFUSED[0]  # both words of a hash that stands for nothing; what is refused has it too


def first_new(hashes: Array, seen: Array, others: Array, exempt: Array) -> tuple[Array, Array]:
    """Of each row the first variant whose behaviour is new, else the last.

    `hashes` [tries, P, 2] uint32 of the variants; `seen` [remembered, 2] what was evaluated before; `exempt` [P] bool:
    rows that are something else, the first E of them `others` [E, 2]. A row is new against `seen`, `others` and the
    rows before it. Returns the hashes [P, 2] and the numbers of the variants [P] int32.
    """
    tries, count = hashes.shape[:2]

    def known(hash_: Array) -> Array:
        return jnp.any((seen[:, 0] == hash_[0]) & (seen[:, 1] == hash_[1]))

    old = jax.lax.map(lambda rows: jax.vmap(known)(rows), hashes)

    def row(taken: Array, at: Array) -> tuple[Array, Array]:
        mine = hashes[:, at]
        twice = jnp.any(jnp.all(taken[None] == mine[:, None], axis=-1), axis=1)
        fresh = ~old[:, at] & ~twice
        pick = jnp.where(jnp.any(fresh), jnp.argmax(fresh), tries - 1)
        return taken.at[at].set(jnp.where(exempt[at], taken[at], mine[pick])), pick

    taken = jnp.full((count, 2), UNKNOWN, jnp.uint32).at[: others.shape[0]].set(others)
    return jax.lax.scan(row, taken, jnp.arange(count))


def remember(seen: Array, end: Array, hashes: Array, evaluated: Array) -> tuple[Array, Array]:
    """The ring [remembered, 2] and where it goes on, with the `hashes` [P, 2] of rows that were `evaluated` [P].

    Where the ring is full, they go over the oldest; of a generation larger than the ring its last rows stay.
    """
    new = evaluated & jnp.any(hashes != jnp.uint32(UNKNOWN), axis=1)
    size = seen.shape[0]
    place = jnp.mod(end + jnp.cumsum(new) - 1, size)
    late = jnp.cumsum(new) > jnp.sum(new) - size
    seen = seen.at[jnp.where(new & late, place, size)].set(hashes, mode="drop")
    return seen, jnp.mod(end + jnp.sum(new), size).astype(jnp.int32)

"""Who becomes a parent: the parent rules of `open_ended`, each a weight or a draw per member; traceable.

A member's *share* is the part of the repertoire that it is better than (members of equal loss count half): 1/2 for
the median, near 1 for the best. It stands where a source has an accuracy in 0 .. 1: losses have no natural scale, and
a share needs none. Members are drawn by the largest of `log(weight) + Gumbel noise`, which needs no sum of weights.

| rule | weight of member i | source |
|---|---|---|
| `dgm` | sigmoid(10 (share_i / 2 - 1/2)) / (1 + children_i) | Zhang et al. 2025, Darwin Godel Machine, 2505.22954 |
| `shinka` | sigmoid(10 (median - loss_i) / max(MAD, 1e-6)) / (1 + children_i) | Lange et al. 2025, 2509.19349 |
| `clade` | largest draw of Beta(1 + S_i, 1 + F_i), pooled over descendants | Wang et al. 2025, 2510.21614 |
| `novelty` | mean distance to the nearest members in behaviour | Lehman & Stanley 2011, Evol. Comp. 19:189 |
| `uniform` | 1 | |
| `best-only` | 1 for the lowest loss of its island, 0 for all others | the ablation |

Numbers with a point are those of arXiv.

`dgm`: the source's best agents solved about half of their problems, so the whole archive lay on the steep lower half
of the sigmoid. Half a share puts the best member there too; a whole one would hardly tell the better half apart.

`clade`: S_i sums the shares of member i and its descendants in the repertoire, F_i what they lack to 1. A child that
was not viable adds 1 to F of its mother, a member that left adds its share and its lack, at that time, to hers. Every
candidate is judged on all cells at once, so of the source's two decisions (expand or evaluate) only the first one
is made.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from evometa.types import Array

RULES = ("dgm", "shinka", "clade", "novelty", "uniform", "best-only")
STEEP = 10.0  # slope of both sigmoids, as in both sources
LEAST_MAD = 1e-6
UNIT = 256  # evidence is counted in 256ths of a candidate: whole numbers


class View(NamedTuple):
    """What a parent rule sees of the members; leading axis N, islands one after another."""

    held: Array  # [N] bool: is there a member in this slot?
    loss: Array  # [N] float32: its mean loss; +inf where there is none
    children: Array  # [N] int32: its viable children
    mother: Array  # [N] int32: slot of its first parent or nearest held ancestor; -1 for none
    gone: Array  # [N, 2] int32: evidence for and against its clade, of those that are not held, in 256ths
    behaviour: Array  # [N, B] float32


def shares(held: Array, loss: Array) -> tuple[Array, Array]:
    """`([N] int32, [] int32)`: twice the members that each is better than, ties counted half; and twice their number.

    Their quotient is the share.
    """
    ordered = jnp.sort(jnp.where(held, loss, jnp.inf))
    count = jnp.sum(held).astype(jnp.int32)
    less = jnp.searchsorted(ordered, loss, side="left")
    up_to = jnp.minimum(jnp.searchsorted(ordered, loss, side="right"), count)
    twice = 2 * count - less - up_to
    return jnp.where(held, twice, 0).astype(jnp.int32), 2 * jnp.maximum(count, 1)


def evidence(view: View) -> Array:
    """`[N, 2]` int32: each member's share and what it lacks to 1, in 256ths; 0 in empty slots."""
    twice, most = shares(view.held, view.loss)
    won = (twice * UNIT) // most
    return jnp.where(view.held[:, None], jnp.stack([won, UNIT - won], axis=1), 0)


def clades(view: View) -> Array:
    """`[N, 2]` int32: evidence pooled over every member's clade (it, its descendants, and those not held any more).

    By pointer doubling: after k rounds a sum reaches 2^k generations down.
    """
    total = evidence(view) + view.gone
    size = total.shape[0]
    above = jnp.where(view.held & (view.mother >= 0), view.mother, size)

    def doubled(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, above = carry
        total = total.at[above].add(total, mode="drop")
        return total, jnp.append(above, size)[above]

    return jax.lax.fori_loop(0, max(1, size.bit_length()), doubled, (total, above))[0]


def novelty(view: View, neighbours: int) -> Array:
    """`[N]` float32: mean distance in behaviour to the nearest `neighbours` members; 0 in empty slots."""
    gaps = distances(view.behaviour, view.held)
    near = -jax.lax.top_k(-gaps, min(neighbours, gaps.shape[0] - 1))[0]
    there = jnp.isfinite(near)
    mean = jnp.sum(jnp.where(there, near, 0.0), axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    return jnp.where(view.held, mean, 0.0)


def distances(behaviour: Array, held: Array) -> Array:
    """`[N, N]` float32 Euclidean distances; +inf to oneself and where a slot is empty."""
    size = behaviour.shape[0]

    def row(one: Array) -> Array:
        return jnp.sqrt(jnp.sum((behaviour - one[None]) ** 2, axis=1))

    gaps = jax.lax.map(row, behaviour, batch_size=min(size, 64))
    pairs = held[:, None] & held[None, :] & ~jnp.eye(size, dtype=bool)
    return jnp.where(pairs, gaps, jnp.inf)


def weights(rule: str, view: View, islands: int = 1, neighbours: int = 5) -> Array:
    """`[N]` float32 weights of all rules but `clade`; 0 in empty slots, at least one above 0 where anyone is held."""
    if rule == "dgm":
        twice, most = shares(view.held, view.loss)
        found = jax.nn.sigmoid(STEEP * (0.5 * twice / most - 0.5)) / (1 + view.children)
    elif rule == "shinka":
        loss = jnp.where(view.held, view.loss, jnp.nan)
        middle = jnp.nanmedian(loss)
        spread = jnp.maximum(jnp.nanmedian(jnp.abs(loss - middle)), LEAST_MAD)
        found = jax.nn.sigmoid(STEEP * (middle - view.loss) / spread) / (1 + view.children)
    elif rule == "novelty":
        found = novelty(view, neighbours)
        found = jnp.where(jnp.any(found > 0), found, 1.0)
    elif rule == "best-only":
        rows = _by_island(jnp.where(view.held, view.loss, jnp.inf), islands)
        best = jnp.argmin(rows, axis=1)[:, None] == jnp.arange(rows.shape[1])[None]
        found = best.reshape(-1).astype(jnp.float32)
    else:
        found = jnp.ones(view.held.shape)
    return jnp.where(view.held, found, 0.0).astype(jnp.float32)


def draw(rule: str, key: jax.Array, view: View, homes: Array, islands: int = 1, neighbours: int = 5) -> Array:
    """`[P]` int32: for every row the slot of a parent out of island `homes[row]`; -1 where that island is empty."""
    per_island = view.held.shape[0] // islands
    alive = jnp.any(_by_island(view.held, islands), axis=1)[homes]
    if rule == "clade":
        held = _by_island(view.held, islands)
        pooled = 1.0 + clades(view).reshape(islands, per_island, 2)[homes] / UNIT
        theta = jax.random.beta(key, pooled[..., 0], pooled[..., 1])
        place = jnp.argmax(jnp.where(held[homes], theta, -1.0), axis=1)
    else:
        found = jnp.log(weights(rule, view, islands, neighbours))
        place = jax.random.categorical(key, _by_island(found, islands)[homes], axis=1)
    return jnp.where(alive, homes * per_island + place, -1).astype(jnp.int32)


def _by_island(values: Array, islands: int) -> Array:
    return values.reshape(islands, -1)

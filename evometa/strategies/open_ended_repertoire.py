"""The repertoire of `open_ended`: who gets a place, who makes room where it is full, and who inherits; traceable.

Every viable candidate gets a place while there is one. Where an island is full, its members and the newcomers compete
for its places, as `when_full` says:

| `when_full` | who leaves |
|---|---|
| `crowded` | of the two that are most alike in behaviour the worse, again and again |
| `oldest` | who was found first |
| `worst` | who has the highest mean loss |
| `reject` | nobody: the best newcomers take the places that are left |

The champion never leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from evometa.strategies.open_ended_parents import UNIT, distances, shares
from evometa.types import Array, Genomes

WHEN_FULL = {
    "crowded": "the worse of the two most alike makes room",
    "oldest": "the oldest member makes room",
    "worst": "the worst member makes room",
    "reject": "newcomers get no place",
}


class Members(NamedTuple):
    """Candidates with a place, or that want one. Leading axis N slots (islands one after another) or newcomers."""

    held: Array  # bool: is there anybody?
    genomes: Genomes  # [N, D]
    genes: Array  # [N, R] see open_ended_variation.py
    ids: Array  # [N, 2] int32: (generation, index) where it was found
    total: Array  # [N] float32: sum of its losses; of its discovery only as long as there is no other
    looks: Array  # [N] int32: how often it was judged, its discovery included
    children: Array  # [N] int32: viable children
    mother: Array  # [N] int32: slot of its first parent, or of the nearest ancestor still there; -1 for none
    gone: Array  # [N, 2] int32: evidence of its clade's members that are not there any more
    behaviour: Array  # [N, B]
    hashes: Array  # [N, 2] uint32: what programs do


def mean(members: Members) -> Array:
    """Mean loss; without that of the discovery, where luck had its part, once there are others. 0 in empty slots."""
    return members.total / jnp.maximum(members.looks - 1, 1)


def champion(members: Members) -> Array:
    """Slot of the lowest mean loss among those that were asked again; among all where there are none."""
    confirmed = members.held & (members.looks > 1)
    among = jnp.where(jnp.any(confirmed), confirmed, members.held)
    return jnp.argmin(jnp.where(among, mean(members), jnp.inf))


def migrants(members: Members, islands: int, count: int, due: Array) -> Members:
    """`[islands, count]`: for each island the best of the island before it, where migration is `due`.

    Who is there already stays away; a migrant begins a clade of its own.
    """
    by_island = jax.tree.map(lambda leaf: leaf.reshape(islands, -1, *leaf.shape[1:]), members)
    loss = jnp.where(by_island.held, mean(by_island), jnp.inf)
    best = jnp.argsort(loss, axis=1)[:, :count]
    travel = jax.tree.map(lambda leaf: jnp.roll(jax.vmap(lambda one, at: one[at])(leaf, best), 1, axis=0), by_island)
    known = jnp.all(travel.ids[:, :, None] == by_island.ids[:, None], axis=-1) & by_island.held[:, None]
    return travel._replace(
        held=travel.held & due & ~jnp.any(known, axis=-1), mother=jnp.full_like(travel.mother, -1),
        children=jnp.zeros_like(travel.children), gone=jnp.zeros_like(travel.gone),
    )  # fmt: skip


def joined(one: Members, two: Members) -> Members:
    """Both, island by island."""
    return jax.tree.map(lambda left, right: jnp.concatenate([left, right], axis=1), one, two)


def admitted(members: Members, newcomers: Members, islands: int, rule: str) -> tuple[Members, Array, Array]:
    """The repertoire with its `newcomers` `[islands, R]`; how many members made room, how many were refused."""
    size = members.held.shape[0]
    places, slots = size // islands, jnp.arange(size)
    by_island = jax.tree.map(lambda leaf: leaf.reshape(islands, places, *leaf.shape[1:]), members)
    everyone = joined(by_island, newcomers)
    loss = jnp.where(everyone.held, mean(everyone), jnp.inf)
    lowest = jnp.argmin(jnp.where(members.held, mean(members), jnp.inf))
    safe = members.held & ((slots == champion(members)) | (slots == lowest))
    # A newcomer better than everybody has a place, though it is most like the champion, who keeps its own.
    record = (jnp.arange(loss.size) == jnp.argmin(loss)).reshape(loss.shape)[:, places:] & newcomers.held
    record = record if rule == "crowded" else jnp.zeros_like(record)
    safe = jnp.concatenate([safe.reshape(islands, places), record], axis=1)
    member = jnp.arange(everyone.held.shape[1]) < places

    def one_island(held: Array, loss: Array, born: Array, safe: Array, behaviour: Array) -> Array:
        return stay(rule, places, held, loss, born, member, safe, behaviour)

    given = (everyone.held, loss, everyone.ids[..., 0], safe, everyone.behaviour)
    # Not fused with what stands around it: that could change the last bit of a distance.
    stays = jax.lax.optimization_barrier(jax.vmap(one_island)(*jax.lax.optimization_barrier(given)))
    kept, comes = stays[:, :places].reshape(-1), stays[:, places:]
    left = members.held & ~kept
    local = jax.vmap(places_of)(kept.reshape(islands, places), comes)
    goal = jnp.where(local < places, local + places * jnp.arange(islands)[:, None], size).reshape(-1)

    # Whoever goes leaves the evidence that it was to the nearest ancestor that stays.
    arrivals = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), newcomers)
    won, most = shares(everyone.held.reshape(-1), loss.reshape(-1))
    won = ((won * UNIT) // most).reshape(islands, -1)
    both = jnp.stack([won, UNIT - won], axis=-1)
    heir = heirs(members.mother, members.held, left)
    legacy = both[:, :places].reshape(size, 2) + members.gone
    gone = members.gone.at[jnp.where(left & (heir >= 0), heir, size)].add(legacy, mode="drop")
    moved = jnp.append(jnp.where(left, heir, slots), -1).astype(jnp.int32)  # where a mother's slot leads now
    refused, aunt = arrivals.held & (goal == size), moved[arrivals.mother]
    lost = both[:, places:].reshape(-1, 2)
    gone = gone.at[jnp.where(refused & (aunt >= 0), aunt, size)].add(lost, mode="drop")
    after = members._replace(held=members.held & kept, mother=heir, gone=gone)
    arrivals = arrivals._replace(mother=aunt)
    after = jax.tree.map(lambda old, new: old.at[goal].set(new, mode="drop"), after, arrivals)
    return after, jnp.sum(left), jnp.sum(refused)


def stay(
    rule: str, places: int, there: Array, loss: Array, born: Array, member: Array, safe: Array, behaviour: Array
) -> Array:
    """`[M]` bool, at most `places` of them: which of the members and newcomers of one island have a place.

    `there` says which rows hold anybody; `born` `[M]` int32 orders them by age; `member` who had a place; `safe`
    who must keep it; `behaviour` is `[M, B]`.
    """
    if rule == "crowded":
        return _uncrowded(places, there, loss, safe, behaviour)
    keys = {"oldest": (loss, -born), "worst": (born, loss), "reject": (loss, ~member)}[rule]
    order = jnp.lexsort((*keys, ~safe, ~there))
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.shape[0], dtype=jnp.int32))
    return there & (rank < places)


def _uncrowded(places: int, there: Array, loss: Array, safe: Array, behaviour: Array) -> Array:
    surplus = jnp.maximum(jnp.sum(there) - places, 0)

    def without(held: Array) -> Array:
        gaps = jnp.where(safe[:, None] & safe[None, :], jnp.inf, distances(behaviour, held))
        strength = jnp.where(safe, -jnp.inf, loss)

        def one(_: int, held: Array) -> Array:
            pairs = jnp.where(held[:, None] & held[None, :], gaps, jnp.inf)
            nearest = jnp.min(pairs, axis=1)
            first = jnp.argmin(jnp.where(held, nearest, jnp.inf))
            second = jnp.argmin(pairs[first])
            return held.at[jnp.where(strength[second] > strength[first], second, first)].set(False)

        return jax.lax.fori_loop(0, surplus, one, held)

    return jax.lax.cond(surplus > 0, without, lambda held: held, there)


def places_of(members: Array, comes: Array) -> Array:
    """`[R]` int32: the slot that each newcomer takes; the number of slots for those that do not come.

    `members` `[S]` bool: slots that stay taken; `comes` `[R]` bool. Free slots are taken in order.
    """
    size = members.shape[0]
    free = jnp.argsort(members, stable=True)  # free slots first
    turn = jnp.cumsum(comes) - 1
    return jnp.where(comes, free[jnp.clip(turn, 0, size - 1)], size).astype(jnp.int32)


def heirs(mother: Array, held: Array, left: Array) -> Array:
    """`[N]` int32: the nearest ancestor of each slot that did not leave; -1 for none. `left` `[N]`: who leaves."""
    size = mother.shape[0]
    # Towards the root in doubling steps; whoever stays points to itself, and slot `size` stands for nobody.
    above = jnp.append(jnp.where(held & (mother >= 0), mother, size), size)
    settled = jnp.append(~left, True)
    jump = jnp.where(settled, jnp.arange(size + 1), above)
    jump = jax.lax.fori_loop(0, max(1, size.bit_length()), lambda _, jump: jump[jump], jump)
    found = jump[above[:size]]
    return jnp.where(found == size, -1, found).astype(jnp.int32)

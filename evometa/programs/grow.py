"""Growth of programs: a new instruction between a reader and what it reads; traceable, and typed.

Tree-based genetic programming inserts a node above a subtree (O'Reilly & Oppacher 1994, "Program search with a
variable length hierarchical representation"); here the same in a linear program: what an instruction reads goes
through a new instruction first. `a - b` becomes `a - b * c` in one step. `vary.mutate` needs two or three, of which the
first alone does nothing, or harm.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from evometa.programs.interpret import effective
from evometa.programs.vary import draw_instruction, join, kit, pack, pick, surroundings, unpack
from evometa.programs.vocabulary import Vocabulary


def grow(vocabulary: Vocabulary, key: Any, numbers: Any) -> Any:
    """One instruction more in a program `[size]`: `y = f(a)` becomes `x = g(a, b); y = f(x)`; traceable.

    The reader is an effective instruction; the new one writes memory that nothing else uses where there is some. A
    program whose section is full, or that has no effective instruction, or whose memory is too narrow for the operand,
    comes back as it is.
    """
    k, luck = kit(vocabulary), jax.random.uniform(key, (9,))
    tokens, constants = unpack(vocabulary, numbers)
    live, there = effective(vocabulary, tokens), tokens[:, 0] > 0
    rows, number = jnp.arange(vocabulary.length), jnp.arange(len(k.width))
    width, memory, arity = jnp.asarray(k.width), jnp.asarray(k.memory), jnp.asarray(k.arity)
    section = jnp.asarray(k.section)
    reader = pick(luck[0], jnp.where(there & live, 1.0, 0.0))
    early = ~section[reader]
    slot = jnp.floor(luck[1] * arity[tokens[reader, 0]]).astype(jnp.int32)
    operand = tokens[reader, 2 + slot]

    # The destination: memory as wide as the operand, or as wide as the reader's own result may be; rather one that
    # nothing uses, so that no other value is lost.
    takes = (there & live)[:, None] & (jnp.arange(3)[None, :] < arity[tokens[:, 0]][:, None])
    busy = jnp.any(takes[:, :, None] & (tokens[:, 2:, None] == number[None, None, :]), axis=(0, 1))
    busy = busy | jnp.any((there & live)[:, None] & (tokens[:, 1][:, None] == number[None, :]), axis=0)
    widest = jnp.where(jnp.asarray(k.reduces)[tokens[reader, 0]] < 0, width[tokens[reader, 1]], width[operand])
    wide = (width >= width[operand]) & (width <= jnp.maximum(widest, width[operand]))
    places = jnp.where(memory & wide & (~early | jnp.asarray(k.early)), 1.0, 0.0)
    place = pick(luck[2], places * jnp.where(busy, 0.02, 1.0))

    reads, _ = surroundings(vocabulary, k, tokens, live, reader)
    drawn = draw_instruction(k, luck[3:8], early, reads, jnp.where(number == place, 1.0, 0.0))
    through = jnp.floor(luck[8] * arity[drawn[0]]).astype(jnp.int32)
    drawn = drawn.at[2 + through].set(operand)
    reaches = jnp.where(jnp.arange(3) < arity[drawn[0]], width[drawn[2:]], 0).max()
    result = jnp.asarray(k.reduces)[drawn[0]]
    fits = (drawn[1] == place) & (jnp.where(result >= 0, result, reaches) <= width[place])
    # A reduction may stand only where what is read is wider than what comes out.
    fits = fits & ((result < 0) | (width[operand] > result)) & (places[place] > 0)

    held = jnp.sum(there & (section == section[reader]))
    room = held < jnp.where(early, vocabulary.setup, vocabulary.update)
    behind = (section == section[reader]) & (rows > reader)
    shifted = jnp.where(behind[:, None], tokens[jnp.maximum(rows - 1, 0)], tokens)
    grown = shifted.at[reader].set(drawn).at[jnp.minimum(reader + 1, vocabulary.length - 1), 2 + slot].set(place)
    possible = room & fits & jnp.any(there & live)
    return join(pack(vocabulary, jnp.where(possible, grown, tokens)), constants)

"""Variation of programs: random ones, mutation, crossover; traceable, and typed: valid programs give valid programs.

Linear genetic programming after Brameier & Banzhaf 2007 ("Linear Genetic Programming"): instructions are exchanged,
inserted, deleted and recombined in segments. Random programs are drawn backwards from the outputs, so that most of
their instructions bear on one; operands lean towards inputs and what is written elsewhere, for most instructions that
read memory nobody writes do nothing.

All functions work on genome numbers (see `code.py`): `[size]` float32, vmapped by whoever has many.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.code import FARTHEST, REACH, SMALL, split, tables
from evometa.programs.interpret import effective
from evometa.programs.operations import OPERATIONS
from evometa.programs.vocabulary import FIELDS, Vocabulary

KINDS = ("replace", "operation", "operand", "insert", "delete", "swap", "constant", "strip")
OFTEN = (2.0, 2.0, 3.0, 2.5, 1.5, 0.5, 2.0, 0.5)  # how often each kind is drawn, where it is possible

# What update rules are mostly made of is drawn more often; every other operation has weight 1.
_OPERATIONS = {"mul": 3.0, "add": 2.0, "sub": 2.0, "lerp": 2.0, "copy": 0.3, "neg": 0.5}
_CONSTANTS = {("lerp", 2): 6.0, ("clip", 1): 4.0, ("mul", 1): 2.0}  # operands that like to be constants
_ROUND = (1.0, 2.0, 0.5, 0.1, 0.9, 0.99, 0.999, 0.01, 0.001)  # values that half of all constants start from
_UNLIKELY = 1e-6  # keeps every valid choice possible


class Kit(NamedTuple):
    """A vocabulary as the arrays that variation reads (NumPy)."""

    arity: Any  # [operations] int32
    reduces: Any  # [operations] int32, see `code.Tables`
    width: Any  # [registers] int32
    early: Any  # [registers] bool
    often: Any  # [operations] float32: weight of each operation, 0 for nop and what cannot be written anywhere
    likes: Any  # [operations, 3] float32: how much likelier a constant is as that operand
    terminal: Any  # [registers] float32: weight of inputs and constants as operands; they sum to 1
    constant: Any  # [registers] bool
    memory: Any  # [registers] bool
    output: Any  # [registers] bool
    section: Any  # [length] bool: is the row in `update`?


@lru_cache(maxsize=64)
def kit(vocabulary: Vocabulary) -> Kit:
    """The arrays of a vocabulary; kept."""
    table = tables(vocabulary)
    names = vocabulary.operations
    number = np.arange(len(vocabulary.registers))
    writable = number >= vocabulary.first_memory
    widest = table.width[writable].max()
    often = np.array([_OPERATIONS.get(name, 1.0) for name in names], np.float32)
    often = np.where((table.reduces <= widest) & (np.arange(len(names)) > 0), often, 0.0)
    likes = np.ones((len(names), 3), np.float32)
    for row, name in enumerate(names):
        if OPERATIONS[name].arity == 1:
            likes[row, 0] = 0.1  # a function of a constant is a constant
        for slot in range(3):
            likes[row, slot] *= _CONSTANTS.get((name, slot), 1.0)
    inputs, constant = number < vocabulary.first_constant, (number >= vocabulary.first_constant) & ~writable
    terminal = np.where(inputs, np.where(table.width == table.width.max(), 1.0, 0.5), 0.0)
    terminal = 0.75 * terminal / terminal.sum() + 0.25 * constant / max(1, constant.sum())
    return Kit(
        table.arity, table.reduces, table.width, table.early, often.astype(np.float32), likes,
        (terminal / terminal.sum()).astype(np.float32), constant, writable & (number < vocabulary.first_output),
        number >= vocabulary.first_output, np.arange(vocabulary.length) >= vocabulary.setup,
    )  # fmt: skip


def random_programs(vocabulary: Vocabulary, key: Any, count: int) -> Any:
    """`[count, size]` float32 genome numbers of valid programs of varied lengths; traceable.

    `update` has 1 to `vocabulary.update` instructions, all lengths equally often; `setup` is empty in seven of ten.
    Half of the constants are round values, half log-uniform in 1e-4 .. 10; one in five is negative.
    """
    luck = jax.random.uniform(key, (count, 3 + 5 * vocabulary.length + 4 * vocabulary.constants))
    return jax.vmap(lambda own: _random_program(vocabulary, own))(luck)


def mutate(vocabulary: Vocabulary, key: Any, numbers: Any, strength: Any) -> tuple[Any, Any]:
    """One change to a program: `(numbers [size], kind)`, `kind` a number of `KINDS`; traceable.

    `strength`: standard deviation of a moved constant, in its coordinate. A kind that is impossible (deletion from a
    program of one instruction) is not drawn. The result is packed: no `nop` before an instruction.
    """
    k, luck = kit(vocabulary), jax.random.uniform(key, (16,))
    normal = jax.random.normal(jax.random.fold_in(key, 1))
    tokens, constants = unpack(vocabulary, numbers)
    live = effective(vocabulary, tokens)
    there = tokens[:, 0] > 0
    section = jnp.asarray(k.section)
    counts = _counts(vocabulary, there)
    rows = jnp.arange(vocabulary.length)
    place = jnp.where(section, rows - vocabulary.setup, rows)
    held = jnp.where(section, counts[1], counts[0])
    room = held < jnp.where(section, vocabulary.update, vocabulary.setup)
    follows = there & (place + 1 < held)
    total = counts[0] + counts[1]

    some = total > 0
    possible = jnp.stack([
        some, some, some, jnp.any(room), total > 1, jnp.any(follows),
        some & (vocabulary.constants > 0), jnp.any(there & ~live),
    ])  # fmt: skip
    kind = pick(luck[0], jnp.where(possible, jnp.asarray(OFTEN), 0.0))
    # Where: an instruction that matters rather than one that does not; a gap for insertions; a pair for swaps.
    spots = jnp.where(there, jnp.where(live, 1.0, 0.2), 0.0)
    gaps = jnp.where(room & (place <= held), jnp.where(section, 1.0, 0.3), 0.0)
    at = pick(
        luck[1], jnp.where(kind == 3, gaps, jnp.where((kind == 5) & follows, 1.0, jnp.where(kind == 5, 0.0, spots)))
    )

    reads, writes = surroundings(vocabulary, k, tokens, live, at)
    drawn = draw_instruction(k, luck[2:7], ~section[at], reads, writes)
    row = tokens[at]
    early = ~section[at]
    other = _other_operation(k, luck[7:11], row, early, reads, drawn)
    operand = _other_operand(k, luck[11:15], row, early, reads, writes)
    row = jnp.where(kind == 1, other, jnp.where(kind == 2, operand, drawn))
    # Insertion: from `at` on, every row of the section comes from the one before.
    shifted = jnp.where(((section == section[at]) & (rows > at))[:, None], tokens[jnp.maximum(rows - 1, 0)], tokens)
    set_row = jnp.where(kind == 3, shifted, tokens).at[at].set(row)
    partner = jnp.minimum(at + 1, vocabulary.length - 1)
    swapped = tokens.at[at].set(tokens[partner]).at[partner].set(tokens[at])
    changed = jnp.select(
        [kind == 4, kind == 5, kind == 6, kind == 7],
        [tokens.at[at].set(0), swapped, tokens, jnp.where(live[:, None], tokens, 0)],
        set_row,
    )
    if vocabulary.constants:
        used = constants_used(vocabulary, jnp.where(live[:, None], tokens, 0))
        which = pick(luck[15], jnp.where(used, 1.0, 0.02))
        # Rounded apart: fused to one operation, or not, the sum would differ in its last bit.
        moved = constants.at[which].add(jax.lax.optimization_barrier(strength * normal))
        constants = jnp.where(kind == 6, jnp.clip(moved, -FARTHEST, FARTHEST), constants)
    return join(pack(vocabulary, changed), constants), kind.astype(jnp.int32)


def crossover(vocabulary: Vocabulary, key: Any, one: Any, two: Any) -> Any:
    """`one` with a segment of `two` in the place of a segment of its own: `[size]`; traceable.

    Both segments lie in the same section; what would be too long is cut from the segment taken. The constants that
    it reads come along: in their own place where nothing else in the child reads it, else in a free one (and the
    segment is renamed), else a coin decides whose value stays.
    """
    luck = jax.random.uniform(key, (6 + vocabulary.constants,))
    ours, constants = unpack(vocabulary, one)
    theirs, other = unpack(vocabulary, two)
    mine, yours = _counts(vocabulary, ours[:, 0] > 0), _counts(vocabulary, theirs[:, 0] > 0)
    rows = jnp.arange(vocabulary.length)
    # Instructions of setup are few: the section is that of a random instruction of the second program.
    early = luck[0] * (yours[0] + yours[1]) < yours[0]
    start = jnp.where(early, 0, vocabulary.setup)
    most = jnp.where(early, vocabulary.setup, vocabulary.update)
    have, give = jnp.where(early, mine[0], mine[1]), jnp.where(early, yours[0], yours[1])

    taken, first = _segment(luck[1:3], give)
    lost, at = _segment(luck[3:5], have, luck[5] < 0.9)
    taken = jnp.minimum(taken, most - (have - lost))
    # The child's section: ours up to `at`, the segment, ours from `at + lost` on.
    place = rows - start
    inside = (place >= 0) & (place < most)
    segment = inside & (place >= at) & (place < at + taken)
    from_theirs = jnp.clip(start + first + place - at, 0, vocabulary.length - 1)
    behind = place - taken + lost
    from_ours = jnp.where(inside, start + jnp.where(place < at, place, behind), rows)
    gone = inside & (place >= at) & (behind >= have)
    kept = jnp.where(gone[:, None], 0, ours[jnp.clip(from_ours, 0, vocabulary.length - 1)])
    rest = jnp.where(segment[:, None], 0, kept)
    segments = jnp.where(segment[:, None], theirs[from_theirs], 0)
    if not vocabulary.constants:
        return join(pack(vocabulary, rest + segments), constants)

    busy, wanted = constants_used(vocabulary, rest), constants_used(vocabulary, segments)
    clash, free = busy & wanted & (constants != other), ~busy & ~wanted
    # The n-th clash moves to the n-th free place, while there are some.
    turn = jnp.cumsum(clash) - 1
    places = jnp.argsort(~free, stable=True)
    fits = clash & (turn < jnp.sum(free))
    numbers = jnp.arange(vocabulary.constants)
    goal = jnp.where(fits, places[jnp.clip(turn, 0, vocabulary.constants - 1)], numbers)
    coin = luck[6:] < 0.5
    comes = wanted & (~clash | fits | coin)
    merged = jnp.where(comes & ~fits, other, constants)
    merged = merged.at[jnp.where(fits, goal, vocabulary.constants)].set(other, mode="drop")
    registers = jnp.arange(len(vocabulary.registers))
    renamed = registers.at[vocabulary.first_constant + numbers].set(vocabulary.first_constant + goal)
    operands = _clear(vocabulary, segments.at[:, 2:].set(renamed[segments[:, 2:]]))
    return join(pack(vocabulary, rest + operands), merged)


def unpack(vocabulary: Vocabulary, numbers: Any) -> tuple[Any, Any]:
    """`(tokens [length, 5] int32, coordinates of constants)` of a valid program: packed, what is not read set to 0."""
    tokens = pack(vocabulary, split(vocabulary, numbers).tokens)
    return tokens, jnp.clip(numbers[FIELDS * vocabulary.length :], -FARTHEST, FARTHEST)


def constants_used(vocabulary: Vocabulary, tokens: Any) -> Any:
    """`[constants]` bool: which constants the instructions read."""
    takes = jnp.arange(3)[None, :] < jnp.asarray(kit(vocabulary).arity)[tokens[:, 0]][:, None]
    numbers = vocabulary.first_constant + jnp.arange(vocabulary.constants)
    return jnp.any((tokens[:, 2:, None] == numbers[None, None, :]) & takes[:, :, None], axis=(0, 1))


# --- drawing -----------------------------------------------------------------------------------------


def pick(luck: Any, weights: Any) -> Any:
    """A number drawn by weight; `luck` is uniform in 0 .. 1. What weighs nothing is never drawn where anything weighs.

    In whole numbers, whose sums no order of summation can change: float sums that differ in their last bit would
    now and then draw another program.
    """
    whole = jnp.where(weights > 0, jnp.ceil(weights * 2.0**17), 0.0).astype(jnp.int32)
    ends = jnp.cumsum(whole)
    drawn = jnp.minimum((luck * ends[-1].astype(jnp.float32)).astype(jnp.int32), ends[-1] - 1)
    return jnp.argmax(ends > drawn).astype(jnp.int32)


def _allowed(k: Kit, operation: Any, destination: Any, early: Any) -> Any:
    """`[registers]` float32: which registers may be operands; a reduction of what is narrow already is unlikely."""
    width, result = jnp.asarray(k.width), jnp.asarray(k.reduces)[operation]
    fits = jnp.where(
        result >= 0, jnp.where(width > result, 1.0, 1e-3), jnp.where(width <= width[destination], 1.0, 0.0)
    )
    return jnp.where(early & ~jnp.asarray(k.early), 0.0, fits)


def _operand(
    k: Kit, luck: Any, slot: int, operation: Any, destination: Any, early: Any, reads: Any, not_this: Any
) -> Any:
    """One operand; `not_this`: a register that it had better not be (-1 for none)."""
    number = jnp.arange(len(k.width))
    likes = jnp.where(jnp.asarray(k.constant), jnp.asarray(k.likes)[operation, slot], 1.0)
    # Memory that reads itself keeps a running value: momentum, traces.
    own = jnp.where((number == destination) & jnp.asarray(k.memory), 0.25, 0.0)
    weight = (reads + own) * likes * jnp.where(number == not_this, 0.02, 1.0) + _UNLIKELY
    return pick(luck, weight * _allowed(k, operation, destination, early))


def draw_instruction(k: Kit, luck: Any, early: Any, reads: Any, writes: Any) -> Any:
    """A random instruction `[5]`; `reads`, `writes` `[registers]` are weights, `early` says that it is in `setup`."""
    operation = pick(luck[0], jnp.asarray(k.often)) if k.often.any() else jnp.int32(0)
    writable = jnp.asarray(k.memory | k.output)
    wide = jnp.asarray(k.width) >= jnp.asarray(k.reduces)[operation]
    destination = pick(luck[1], jnp.where(writable & wide, writes + _UNLIKELY, 0.0))
    operands, last = [], jnp.int32(-1)
    for slot in range(3):
        last = _operand(k, luck[2 + slot], slot, operation, destination, early, reads, last)
        operands.append(last)
    return _clear_row(k, jnp.stack([operation, destination, *operands]).astype(jnp.int32))


def _other_operation(k: Kit, luck: Any, row: Any, early: Any, reads: Any, drawn: Any) -> Any:
    """The row with another operation that its destination and operands allow; `drawn` where there is none."""
    width, reduces = jnp.asarray(k.width), jnp.asarray(k.reduces)
    number = jnp.arange(len(k.arity))
    takes = jnp.arange(3) < jnp.asarray(k.arity)[row[0]]
    widest = jnp.max(jnp.where(takes, width[row[2:]], 0))
    fits = jnp.where(reduces >= 0, reduces, widest) <= width[row[1]]
    weights = jnp.where(fits & (number != row[0]), jnp.asarray(k.often), 0.0)
    operation = pick(luck[0], weights)
    fresh = [_operand(k, luck[1 + slot], slot, operation, row[1], early, reads, row[2]) for slot in range(3)]
    operands = jnp.where(takes, row[2:], jnp.stack(fresh))
    changed = _clear_row(k, jnp.concatenate([jnp.stack([operation, row[1]]), operands]).astype(jnp.int32))
    return jnp.where(jnp.any(weights > 0), changed, drawn)


def _other_operand(k: Kit, luck: Any, row: Any, early: Any, reads: Any, writes: Any) -> Any:
    """The row with another operand, or in one of five with another destination."""
    number, width = jnp.arange(len(k.width)), jnp.asarray(k.width)
    arity = jnp.asarray(k.arity)[row[0]]
    takes = jnp.arange(3) < arity
    slot = jnp.floor(luck[0] * arity).astype(jnp.int32)
    likes = jnp.where(jnp.asarray(k.constant), jnp.asarray(k.likes)[row[0], slot], 1.0)
    new = jnp.where(number == row[2 + slot], 0.0, reads * likes + _UNLIKELY) * _allowed(k, row[0], row[1], early)
    operand = jnp.where(jnp.any(new > 0), pick(luck[1], new), row[2 + slot])

    widest = jnp.max(jnp.where(takes, width[row[2:]], 0))
    result = jnp.where(jnp.asarray(k.reduces)[row[0]] >= 0, jnp.asarray(k.reduces)[row[0]], widest)
    places = jnp.where(
        jnp.asarray(k.memory | k.output) & (width >= result) & (number != row[1]), writes + _UNLIKELY, 0.0
    )
    elsewhere = (luck[2] < 0.2) & jnp.any(places > 0)
    place = jnp.where(elsewhere, pick(luck[3], places), row[1])
    operands = jnp.where(~elsewhere & (jnp.arange(3) == slot), operand, row[2:])
    return _clear_row(k, jnp.concatenate([jnp.stack([row[0], place]), operands]).astype(jnp.int32))


def surroundings(vocabulary: Vocabulary, k: Kit, tokens: Any, live: Any, at: Any) -> tuple[Any, Any]:
    """Weights `[registers]` of what an instruction at row `at` should read and write, in the program as it is."""
    rows, number = jnp.arange(vocabulary.length), jnp.arange(len(k.width))
    there, section = tokens[:, 0] > 0, jnp.asarray(k.section)
    by = there[:, None] & (tokens[:, 1][:, None] == number[None, :])  # [length, registers] who writes what
    before = by & ((rows < at) & (section[at] | ~section))[:, None]
    last = jnp.max(jnp.where(before, rows[:, None] + 1, 0), axis=0)
    # The latest values first; memory keeps what later rows of the step before wrote.
    near = jnp.where(last > 0, jnp.exp2(-(at - last).astype(jnp.float32) / 4.0), 0.0)
    kept = jnp.where(section[at] & jnp.asarray(k.memory) & jnp.any(by, axis=0), 0.3, 0.0)
    reads = jnp.asarray(k.terminal) + 0.4 * jnp.maximum(near, kept)
    takes = (live[:, None] & (jnp.arange(3)[None, :] < jnp.asarray(k.arity)[tokens[:, 0]][:, None]))[:, :, None]
    wanted = jnp.any(takes & (tokens[:, 2:, None] == number[None, None, :]), axis=(0, 1))
    output = jnp.asarray(k.output)
    writes = jnp.where(output, 1.0, jnp.where(jnp.asarray(k.memory), jnp.where(wanted, 1.0, 0.15), 0.0))
    writes = jnp.where(~section[at] & output, 0.05, writes)  # outputs are cleared after setup
    return reads.astype(jnp.float32), writes.astype(jnp.float32)


def _random_program(vocabulary: Vocabulary, luck: Any) -> Any:
    k, begin = kit(vocabulary), 3 + 5 * vocabulary.length
    update = 1 + jnp.floor(luck[0] * vocabulary.update)
    setup = jnp.where(luck[1] < 0.3, 1 + jnp.floor(luck[2] * vocabulary.setup), 0)
    rows = np.arange(vocabulary.length)
    place = jnp.asarray(np.where(k.section, rows - vocabulary.setup, rows))
    active = place < jnp.where(jnp.asarray(k.section), update, setup)
    number, memory, output = jnp.arange(len(k.width)), jnp.asarray(k.memory), jnp.asarray(k.output)

    def back(live: Any, row: Any) -> tuple[Any, Any]:
        own, at, is_active, early = row
        # What is read must be written by an earlier row: some of it always, not too much, and nothing before the first.
        waiting = jnp.sum(live & memory)
        share = jnp.where(at > 0, jnp.where(waiting > 1, 0.4, jnp.where(waiting > 0, 1.0, 3.0)), 0.1)
        held = jnp.where(live & (memory | output), 3.0, jnp.where(memory, 1.0, jnp.where(output, 0.05, 0.0)))
        reads = jnp.asarray(k.terminal) + share * held / jnp.maximum(jnp.sum(held), 1.0)
        writes = jnp.where(live, jnp.where(output, 2.0, 1.0), jnp.where(memory, 0.03, 0.0))
        drawn = draw_instruction(k, own, early, reads, writes)
        drawn = jnp.where(is_active, drawn, 0)
        takes = jnp.arange(3) < jnp.asarray(k.arity)[drawn[0]]
        read = jnp.zeros(len(k.width), bool).at[drawn[2:]].max(takes)
        return jnp.where(is_active, (live & (number != drawn[1])) | read, live), drawn

    own = luck[3:begin].reshape(vocabulary.length, 5)
    rows_of = (own, place, active, ~jnp.asarray(k.section))
    late = jax.tree.map(lambda leaf: leaf[vocabulary.setup :], rows_of)
    live, tokens = jax.lax.scan(back, output, late, reverse=True)
    if vocabulary.setup:
        soon = jax.tree.map(lambda leaf: leaf[: vocabulary.setup], rows_of)
        _, begun = jax.lax.scan(back, live & memory, soon, reverse=True)
        tokens = jnp.concatenate([begun, tokens])
    return join(tokens, _random_constants(luck[begin:].reshape(4, vocabulary.constants)))


def _random_constants(luck: Any) -> Any:
    """`[constants]` coordinates, from `luck` `[4, constants]`."""
    plain = jnp.asarray(np.arcsinh(np.array(_ROUND) / SMALL) / REACH, jnp.float32)
    chosen = plain[jnp.floor(luck[0] * len(_ROUND)).astype(jnp.int32)]
    size = jnp.where(luck[1] < 0.5, chosen, 0.09 + jax.lax.optimization_barrier(1.14 * luck[2]))  # 1e-4 .. 10
    return jnp.where(luck[3] < 0.2, -size, size)


def _segment(luck: Any, count: Any, some: Any = True) -> tuple[Any, Any]:
    """Length and start of a random segment of `count` instructions; empty where there are none or not `some`."""
    # Lengths 1 .. count, short ones more often: the square of a uniform number.
    length = 1 + jnp.floor(luck[0] ** 2 * count).astype(jnp.int32)
    length = jnp.where(some, jnp.minimum(length, count), 0)
    start = jnp.floor(luck[1] * (count - length + 1)).astype(jnp.int32)
    return length, jnp.clip(start, 0, count - length)


# --- form --------------------------------------------------------------------------------------------


def _counts(vocabulary: Vocabulary, there: Any) -> Any:
    return jnp.stack([jnp.sum(there[: vocabulary.setup]), jnp.sum(there[vocabulary.setup :])]).astype(jnp.int32)


def _clear_row(k: Kit, row: Any) -> Any:
    takes = jnp.arange(3) < jnp.asarray(k.arity)[row[0]]
    kept = jnp.concatenate([jnp.ones(2, bool), takes])
    return jnp.where(kept & (row[0] > 0), row, 0)


def _clear(vocabulary: Vocabulary, tokens: Any) -> Any:
    """Operands that are not read, and all of a `nop`, as 0."""
    k = kit(vocabulary)
    return jax.vmap(lambda row: _clear_row(k, row))(tokens)


def pack(vocabulary: Vocabulary, tokens: Any) -> Any:
    """Every section's instructions at its front, in their order."""
    tokens = _clear(vocabulary, tokens)
    order = jnp.argsort(2 * jnp.asarray(kit(vocabulary).section).astype(jnp.int32) + (tokens[:, 0] == 0), stable=True)
    return tokens[order]


def join(tokens: Any, constants: Any) -> Any:
    """Tokens and coordinates of constants as genome numbers `[size]`."""
    return jnp.concatenate([tokens.astype(jnp.float32).reshape(-1), constants.astype(jnp.float32)])

"""The lifetime of an agent on one problem: a bounded search for a program, driven by the agent's mutation program.

The agent starts from its solver program. In each of some rounds its mutation program runs once and weighs every
choice there is: which kind of edit, which instruction, which operation, which operands, which register to write. A
few trial programs are drawn by these weights, each one edit away (or two, where `more` says so), and run on the
examples shown. The best of them takes the place of the present program where its error is no larger (or no more than
`heat` larger). What the lifetime ends with is the best program it saw.

The mutation program works on vectors over all choices, in five layers, so it fits any dialect: it knows a choice by
what became of it and by a few properties, never by name. Its memory is kept from round to round.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.code import tables
from evometa.programs.interpret import Machine, Ready
from evometa.programs.vocabulary import Register, Vocabulary
from evometa.tasks.parts.synthesis import effect, run

KINDS = ("insert", "delete", "operation", "operand", "target")
INSERT, DELETE, OPERATION, OPERAND, TARGET = range(len(KINDS))
LAYERS = ("kinds", "slots", "operations", "operands", "targets")
EDITS = 2  # the most edits between a program and a trial of it
STEEPEST = 8.0  # log-weights are cut here
COARSE = 10.0  # a number that is this far off is half as wrong as a number can be

MUTATION = Vocabulary(
    "mutation",
    inputs=(
        Register("tried", "tensor", "positive", text="how often the choice was made in this lifetime"),
        Register("won", "tensor", "positive", text="how often a trial with it was better than the present program"),
        Register("used", "tensor", "positive", text="how many instructions of the present program hold it"),
        Register("written", "tensor", "positive", text="of registers: how many instructions write it"),
        Register("place", "tensor", "unit", text="its number among its like, from 0 to 1: first to last"),
        Register("arity", "tensor", "unit", text="of operations: operands / 3"),
        Register("folds", "tensor", "unit", text="of operations: 1 where a list becomes one number"),
        Register("orders", "tensor", "unit", text="of operations: 1 where a list is rearranged or summed up"),
        *(Register(name, "layer", "unit", text=f"1 for choices among {name}, else 0") for name in LAYERS),
        Register("progress", "scalar", "unit", text="share of the lifetime that is over"),
        Register("stale", "scalar", "unit", text="share of the lifetime since the program was last improved"),
        Register("error", "scalar", "unit", text="of the present program on the examples shown, 0 to 1"),
        Register("length", "scalar", "unit", text="of the present program, as a share of the room there is"),
    ),
    memory=(*(Register(name) for name in ("m", "u", "v")), Register("l", "layer"), Register("s", "scalar")),
    outputs=(
        Register("weight", text="log-weight of each choice, cut at -8 and 8"),
        Register("more", "scalar", text="how probable a second edit is"),
        Register("heat", "scalar", text="how much larger an error is still accepted"),
    ),
    operations=(
        "copy", "add", "sub", "mul", "div", "neg", "abs", "exp", "log", "tanh", "max", "min", "where", "less", "equal",
        "layer_mean", "layer_sum", "layer_max",
    ),
    constants=4, setup=0, update=12,
)  # fmt: skip

# The same with a second use: `open_ended` reads these outputs by their names whenever the agent has a child. In a
# lifetime nobody reads them and the agent's standing is 0; where a child is made everything that a lifetime shows is 0.
BREEDING = replace(
    MUTATION,
    name="breeding",
    inputs=(
        *MUTATION.inputs,
        Register("share", "scalar", "unit", text="where a child is made: share of the kept agents it is better than"),
        Register("children", "scalar", "positive", text="where a child is made: log(1 + its children)"),
    ),
    outputs=(
        *MUTATION.outputs,
        Register("changes", "scalar", text="where a child is made: more or fewer changes to its programs"),
        Register("crossover", "scalar", text="where a child is made: a second parent is more or less probable"),
        Register("step", "scalar", text="where a child is made: larger or smaller steps of constants"),
    ),
)


class Choices(NamedTuple):
    """The choices of a dialect as NumPy arrays; N choices in five layers."""

    sizes: tuple[int, ...]  # of the layers
    fixed: dict[str, np.ndarray]  # inputs of the mutation program that never change
    arity: np.ndarray  # [operations] int32
    first_target: int  # number of the first register that can be written


class Life(NamedTuple):
    """What a lifetime carries from round to round."""

    program: Any  # [length, 5] int32, instructions at the front
    error: Any  # []
    best: Any  # [length, 5]
    least: Any  # []: the error of the best
    memory: Any  # of the mutation program
    tried: Any  # [N]
    won: Any  # [N]
    improved: Any  # [] int32: the last round that found a better program


@lru_cache(maxsize=8)
def choices(vocabulary: Vocabulary) -> Choices:
    """The choices that an edit of this dialect's programs has."""
    table, registers = tables(vocabulary), len(vocabulary.registers)
    first = vocabulary.first_memory
    sizes = (len(KINDS), vocabulary.update, len(vocabulary.operations) - 1, registers, registers - first)
    start = len(KINDS) + vocabulary.update
    operations = slice(start, start + sizes[2])
    blank = np.zeros(sum(sizes), np.float32)
    fixed = {name: blank.copy() for name in ("arity", "folds", "orders")}
    fixed["arity"][operations] = table.arity[1:] / 3.0
    fixed["folds"][operations] = table.reduces[1:] == 1
    fixed["orders"][operations] = table.reduces[1:] == 2
    fixed["place"] = np.concatenate([np.arange(n) / max(1, n - 1) for n in sizes]).astype(np.float32)
    fixed |= {name: np.eye(len(LAYERS), dtype=np.float32)[i] for i, name in enumerate(LAYERS)}
    return Choices(sizes, fixed, table.arity, first)


def wrongness(found: Any, wanted: Any) -> Any:
    """How wrong answers `[examples, LENGTH]` are, 0 to 1: half for not being equal, half for how far off; `[]`."""
    far = jnp.abs(found - wanted)
    far = jnp.where(jnp.isfinite(far), far / (far + COARSE), 1.0)
    return jnp.mean(0.5 * (found != wanted) + 0.5 * far)


def live(
    vocabulary: Vocabulary, key: Any, start: Any, mutation: Ready, shown: dict[str, Any], rounds: int, trials: int,
    words: Vocabulary = MUTATION,
) -> tuple[Any, Any]:  # fmt: skip
    """`(program [length, 5], error [])`: the best program of a lifetime of `rounds` times `trials` programs.

    `start` `[length, 5]`: the solver program, instructions at the front. `shown`: lists `x`, `y` and answers `out`,
    each `[examples, LENGTH]`. `words`: what `mutation` is written in. Traceable.
    """
    what = choices(vocabulary)
    machine = Machine(words, what.sizes)
    silent = {register.name: 0.0 for register in words.inputs[len(MUTATION.inputs) :]}

    def error_of(program: Any) -> Any:
        return wrongness(run(vocabulary, program, shown["x"], shown["y"]), shown["out"])

    def one(life: Life, number: Any) -> tuple[Life, None]:
        inputs = silent | what.fixed | _seen(vocabulary, what, life, number, rounds)
        outputs, memory = machine.step(mutation, life.memory, inputs)
        # Round -1 runs the solver program itself, by the same compiled machine.
        first = number < 0
        luck = jax.random.uniform(jax.random.fold_in(key, number), (trials, EDITS, 9))
        more = jnp.nan_to_num(outputs["more"][0])
        made, marks = jax.vmap(lambda own: trial(vocabulary, what, own, life.program, outputs["weight"], more))(luck)
        made, marks = jnp.where(first, start[None], made), jnp.where(first, 0.0, marks)
        errors = jax.vmap(error_of)(made)
        least = jnp.argmin(errors)
        program, error = made[least], errors[least]
        accepted = error <= life.error + jnp.clip(jnp.nan_to_num(outputs["heat"][0]), 0.0, 1.0)
        better = errors < life.error
        best = error < life.least
        return Life(
            jnp.where(accepted, program, life.program),
            jnp.where(accepted, error, life.error),
            jnp.where(best, program, life.best),
            jnp.where(best, error, life.least),
            jnp.where(first, life.memory, memory),
            life.tried + jnp.sum(marks, axis=0),
            life.won + jnp.sum(jnp.where(better[:, None], marks, 0.0), axis=0),
            jnp.where(jnp.any(better), jnp.maximum(number, 0), life.improved),
        ), None

    nothing, most = jnp.zeros(sum(what.sizes), jnp.float32), jnp.float32(2.0)  # errors are at most 1
    life = Life(start, most, start, most, machine.start(mutation, {}), nothing, nothing, jnp.int32(0))
    life, _ = jax.lax.scan(one, life, jnp.arange(-1, rounds, dtype=jnp.int32))
    return life.best, life.least


def _seen(vocabulary: Vocabulary, what: Choices, life: Life, number: Any, rounds: int) -> dict[str, Any]:
    """The inputs of the mutation program that change."""
    program = life.program
    there = program[:, 0] > 0
    count = jnp.sum(there)
    registers = jnp.arange(len(vocabulary.registers))
    takes = (jnp.arange(3)[None] < jnp.asarray(what.arity)[program[:, 0]][:, None]) & there[:, None]
    holds = jnp.sum(program[:, 0, None] == jnp.arange(1, len(vocabulary.operations))[None], axis=0)
    reads = jnp.sum((program[:, 2:, None] == registers[None, None]) & takes[:, :, None], axis=(0, 1))
    writes = jnp.sum((program[:, 1, None] == registers[None]) & there[:, None], axis=0)
    kinds, slots = jnp.zeros(len(KINDS)), effect(vocabulary, program)
    targets = slice(what.first_target, None)
    used = [kinds, slots, holds, reads, reads[targets]]
    written = [kinds, jnp.zeros(slots.shape), jnp.zeros(holds.shape), writes, writes[targets]]
    return {
        "tried": life.tried,
        "won": life.won,
        "used": jnp.concatenate([part.astype(jnp.float32) for part in used]),
        "written": jnp.concatenate([part.astype(jnp.float32) for part in written]),
        "progress": number / rounds,
        "stale": (number - life.improved) / rounds,
        "error": life.error,
        "length": count / vocabulary.update,
    }


def trial(vocabulary: Vocabulary, what: Choices, luck: Any, program: Any, weight: Any, more: Any) -> tuple[Any, Any]:
    """A program one or two edits away, and `[N]` how often each choice was made; `luck` `[EDITS, 9]`."""
    marks = jnp.zeros(sum(what.sizes))
    weight = jnp.exp(jnp.clip(jnp.nan_to_num(weight), -STEEPEST, STEEPEST))
    for number in range(EDITS):
        edited, made = _edit(vocabulary, what, luck[number], program, weight)
        goes = (luck[number, 8] < more) | (number == 0)
        program, marks = jnp.where(goes, edited, program), marks + jnp.where(goes, made, 0.0)
    return program, marks


def _edit(vocabulary: Vocabulary, what: Choices, luck: Any, program: Any, weight: Any) -> tuple[Any, Any]:
    rows = jnp.arange(program.shape[0])
    count = jnp.sum(program[:, 0] > 0)
    ends = np.cumsum(what.sizes)
    kinds, slots, operations, operands, targets = jnp.split(weight, ends[:-1])

    numbers = np.arange(len(KINDS))
    possible = jnp.where(numbers == INSERT, count < program.shape[0], count > 0)
    kind = _pick(luck[0], kinds * possible)
    slot = _pick(luck[1], slots * (rows < count + (kind == INSERT)))
    operation = 1 + _pick(luck[2], operations)
    sources = jnp.stack([_pick(luck[3 + i], operands) for i in range(3)])
    target = _pick(luck[6], targets)
    row = program[slot]
    which = jnp.floor(luck[7] * jnp.asarray(what.arity)[row[0]])  # which operand is exchanged

    drawn = jnp.concatenate([jnp.stack([operation, what.first_target + target]), sources])
    fields = jnp.arange(5)
    hit = jnp.where(kind == OPERATION, fields == 0, jnp.where(kind == TARGET, fields == 1, fields == 2 + which))
    row = jnp.where((kind == INSERT) | hit, drawn, row)
    # Rows behind an insertion come from the row before, those behind a deletion from the row after.
    source = rows - ((kind == INSERT) & (rows > slot)) + ((kind == DELETE) & (rows >= slot))
    moved = jnp.where((source < program.shape[0])[:, None], program[jnp.minimum(source, program.shape[0] - 1)], 0)
    edited = jnp.where(((rows == slot) & (kind != DELETE))[:, None], row[None], moved)

    new = kind == INSERT
    takes = jnp.where(
        new, jnp.arange(3) < jnp.asarray(what.arity)[operation], (kind == OPERAND) & (jnp.arange(3) == which)
    )
    read = jnp.sum((sources[:, None] == jnp.arange(what.sizes[3])[None]) & takes[:, None], axis=0)
    marks = [
        jnp.arange(what.sizes[0]) == kind,
        jnp.arange(what.sizes[1]) == slot,
        (jnp.arange(what.sizes[2]) == operation - 1) & (new | (kind == OPERATION)),
        read,
        (jnp.arange(what.sizes[4]) == target) & (new | (kind == TARGET)),
    ]
    return edited, jnp.concatenate([part.astype(jnp.float32) for part in marks])


def _pick(luck: Any, weights: Any) -> Any:
    """A number drawn by weight, with `luck` uniform in 0 .. 1; 0 where nothing weighs."""
    ends = jnp.cumsum(weights)
    drawn = jnp.minimum(luck, 1.0 - 1e-6) * ends[-1]  # short of the end, so that what weighs nothing is not drawn
    return jnp.argmax(ends > drawn).astype(jnp.int32)

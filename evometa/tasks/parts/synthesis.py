"""Two small languages of functions on lists of numbers, and a machine that runs many short programs at once.

`LISTS` and `TERSE` are vocabularies of the house's programs (programs/vocabulary.py), so their programs are read,
written, mutated and exported like any other: registers hold lists of whole numbers, one number is a list that
repeats it. `TERSE` is a second dialect: other operations, one register of scratch in the place of two.

`run` is the machine of programs/interpret.py with a layer for each example. Of some dozens of numbers it works out
an instruction in half a microsecond, and instructions without effect are left out; working out all operations for
many programs at once and keeping one was five times slower.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from evometa.programs.code import tables
from evometa.programs.interpret import Machine, Ready
from evometa.programs.vocabulary import Register, Vocabulary

LENGTH = 6  # numbers in a list

LISTS = Vocabulary(
    "lists",
    inputs=(
        Register("x", text="a list"),
        Register("y", text="another list"),
        Register("one", "scalar", "positive", text="1"),
    ),
    memory=tuple(Register(name) for name in ("p", "q")),
    outputs=(Register("out", text="the answer"),),
    operations=(
        "add", "sub", "mul", "abs", "max", "min", "where", "reverse", "sort", "cumsum", "shift", "layer_sum",
        "layer_max", "layer_min",
    ),
    constants=0, setup=0, update=8,
)  # fmt: skip

TERSE = Vocabulary(
    "terse",
    inputs=(
        Register("x", text="a list"),
        Register("y", text="another list"),
        Register("two", "scalar", "positive", text="2"),
    ),
    memory=(Register("p"),),
    outputs=(Register("out", text="the answer"),),
    operations=(
        "add", "sub", "square", "relu", "half", "mod", "less", "equal", "rotate", "descend", "delta", "cummax",
        "layer_sum", "layer_first",
    ),
    constants=0, setup=0, update=8,
)  # fmt: skip

DIALECTS = {"lists": LISTS, "terse": TERSE}


def given(x: Any, y: Any) -> dict[str, Any]:
    """Every input by name, for lists `x`, `y` `[examples, LENGTH]`: `[examples * LENGTH]`, or `[]` for a number."""
    return {"x": x.reshape(-1), "y": y.reshape(-1), "one": 1.0, "two": 2.0}


def run(vocabulary: Vocabulary, tokens: Any, x: Any, y: Any) -> Any:
    """What a valid program `tokens` `[length, 5]` puts out on lists `[examples, LENGTH]`: the same shape; traceable."""
    machine, (packed, _) = Machine(vocabulary, (LENGTH,) * x.shape[0]), pack(tokens, effect(vocabulary, tokens))
    count = jnp.sum(packed[:, 0] > 0, dtype=jnp.int32)
    nothing = jnp.zeros(0, jnp.float32)
    ready = Ready(tokens[:0], packed, jnp.stack([jnp.int32(0), count]), nothing, jnp.bool_(False))
    inputs = {name: value for name, value in given(x, y).items() if name in {r.name for r in vocabulary.inputs}}
    outputs, _ = machine.step(ready, machine.start(ready, {}), inputs)
    return outputs["out"].reshape(x.shape)


def effect(vocabulary: Vocabulary, tokens: Any) -> Any:
    """`[length]` bool: which instructions bear on the answer. One pass from the end, for memory is empty at first."""
    arity = jnp.asarray(tables(vocabulary).arity)
    numbers = jnp.arange(len(vocabulary.registers))
    live, found = numbers >= vocabulary.first_output, []
    for row in reversed(range(tokens.shape[0])):
        operation, place = tokens[row, 0], tokens[row, 1]
        used = jnp.any(live & (numbers == place)) & (operation > 0)
        takes = jnp.arange(3) < arity[operation]
        read = jnp.any((tokens[row, 2:, None] == numbers[None]) & takes[:, None], axis=0)
        live = jnp.where(used, (live & (numbers != place)) | read, live)
        found.append(used)
    return jnp.stack(found[::-1])


def pack(tokens: Any, kept: Any) -> tuple[Any, Any]:
    """The instructions that are `kept` `[length]` at the front, zeros behind; and how many there are."""
    goal = jnp.where(kept, jnp.cumsum(kept) - 1, tokens.shape[0])
    moved = (goal[None, :] == jnp.arange(tokens.shape[0])[:, None]).astype(jnp.int32)
    return moved @ tokens, jnp.sum(kept, dtype=jnp.int32)


@lru_cache(maxsize=8)
def _dictionary(source: Vocabulary, target: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of operations and registers in the other vocabulary, -1 for those it lacks."""
    names = [register.name for register in target.registers]
    operations = [target.operations.index(o) if o in target.operations else -1 for o in source.operations]
    registers = [names.index(r.name) if r.name in names else -1 for r in source.registers]
    return np.array(operations, np.int32), np.array(registers, np.int32)


def translate(source: Vocabulary, target: Vocabulary, tokens: Any, arity: Any) -> Any:
    """A program `[length, 5]` in another dialect of equal length; instructions without a translation become `nop`.

    `arity` `[operations]`: how many operands each operation of `source` takes. Traceable.
    """
    operations, registers = _dictionary(source, target)
    operation = jnp.asarray(operations)[tokens[:, 0]]
    places = jnp.asarray(registers)[tokens[:, 1:]]
    needed = jnp.arange(4)[None] <= jnp.asarray(arity)[tokens[:, 0]][:, None]
    lost = (operation <= 0) | jnp.any(needed & (places < 0), axis=1)
    made = jnp.concatenate([operation[:, None], jnp.where(needed, places, 0)], axis=1)
    return jnp.where(lost[:, None], 0, made).astype(jnp.int32)

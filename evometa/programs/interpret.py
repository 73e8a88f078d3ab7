"""The machine that runs programs: tokens are data, so one compiled call runs a population of different programs.

How it is fast: a vmapped branch would compute every operation for every element and select one. Instead the batch of
programs is walked one by one (`sequential_vmap`), so the branch is a true branch and each program costs as
many steps as it has effective instructions; what is vectorized is the N elements that a program works on.

Every register is stored as `[N]`, a scalar or a layer's number repeated: one kind of storage, one table of
operations, and the types are checked before anything runs. A refused program gives NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Code, Refusal, check, normalize, tables
from evometa.programs.operations import arithmetic
from evometa.programs.vocabulary import FIELDS, Register, Vocabulary


class Ready(NamedTuple):
    """A program made ready to run: instructions without effect removed, the rest packed to the front."""

    setup: Any  # [setup, 5] int32
    update: Any  # [update, 5] int32
    counts: Any  # [2] int32: how many instructions of each section run
    constants: Any  # [constants] float32
    refused: Any  # [] bool


def prepare(vocabulary: Vocabulary, code: Code) -> Ready:
    """Check a program and strip what has no effect on its outputs; traceable. Work it out once per candidate.

    What is no program is `refused`. Raises `ConfigError` for JAX arrays of another shape than the vocabulary's.
    """
    if not any(isinstance(part, jax.Array) for part in code):
        found = normalize(vocabulary, code)
        if isinstance(found, Refusal):
            found = Code(np.full((vocabulary.length, FIELDS), -1, np.int32), np.zeros(vocabulary.constants, np.float32))
        return _prepare(vocabulary, found)
    shapes, wanted = [jnp.shape(part) for part in code], [(vocabulary.length, FIELDS), (vocabulary.constants,)]
    if shapes != wanted:
        raise ConfigError(
            f"machine: vocabulary {vocabulary.name!r} expected tokens {wanted[0]} and constants {wanted[1]},"
            f" got {shapes[0]} and {shapes[1]}"
        )
    return _prepare(vocabulary, code)


@partial(jax.jit, static_argnums=0)
def _prepare(vocabulary: Vocabulary, code: Code) -> Ready:
    raw = jnp.asarray(code.tokens)
    tokens = raw.astype(jnp.int32)
    constants = jnp.asarray(code.constants, jnp.float32)
    refused = jnp.any(check(vocabulary, tokens, jnp) > 0) | ~jnp.all(jnp.isfinite(constants))
    refused |= jnp.any(tokens != raw)  # fractions, and what is no number
    tokens = jnp.where(refused, 0, tokens)
    live = effective(vocabulary, tokens)
    sections, counts = [], []
    for part in (slice(0, vocabulary.setup), slice(vocabulary.setup, None)):
        order = jnp.argsort(~live[part], stable=True)
        counts.append(jnp.sum(live[part], dtype=jnp.int32))
        sections.append(tokens[part][order])
    return Ready(sections[0], sections[1], jnp.stack(counts), constants, refused)


@partial(jax.jit, static_argnums=0)
def effective(vocabulary: Vocabulary, tokens: Any) -> Any:
    """`[length]` bool: which instructions of a valid program bear on an output at some step; traceable.

    Registers are live backwards from the outputs; what is live at the start of `update` is live at its end,
    for memory is kept, so the passes repeat until nothing is added.
    """
    arity = jnp.asarray(tables(vocabulary).arity)
    count = len(vocabulary.registers)
    number = jnp.arange(count)
    memory = (number >= vocabulary.first_memory) & (number < vocabulary.first_output)
    outputs = number >= vocabulary.first_output

    def back(live: Any, row: Any) -> tuple[Any, Any]:
        used = live[row[1]] & (row[0] > 0)
        takes = jnp.arange(3) < arity[row[0]]
        read = jnp.zeros(count, bool).at[row[2:]].max(takes)
        return jnp.where(used, (live & (number != row[1])) | read, live), used

    def update_pass(live: Any) -> tuple[Any, Any]:
        return jax.lax.scan(back, live, tokens[vocabulary.setup :], reverse=True)

    # Each further pass adds at least one memory register or is the last.
    live_end = jax.lax.fori_loop(
        0, len(vocabulary.memory) + 1, lambda _, live: live | (update_pass(live)[0] & memory), outputs
    )
    live_start, used = update_pass(live_end)
    # Outputs are cleared before every update, so setup matters through memory alone.
    _, early = jax.lax.scan(back, live_start & memory, tokens[: vocabulary.setup], reverse=True)
    return jnp.concatenate([early, used])


@jax.tree_util.register_pytree_with_keys_class
class Outputs(dict[str, Any]):
    """Outputs by name; one that the vocabulary does not have is told as what it is."""

    vocabulary = ""

    def __missing__(self, name: str) -> Any:
        raise ConfigError(
            f"machine: vocabulary {self.vocabulary!r} has no output {name!r}; it has {', '.join(self)}."
            f"{did_you_mean(name, self)}"
        )

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """As a dict's, and whose outputs they are."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], (names, self.vocabulary)

    @classmethod
    def tree_unflatten(cls, what: Any, parts: Any) -> Outputs:
        """The outputs again."""
        outputs = cls(zip(what[0], parts, strict=True))
        outputs.vocabulary = what[1]
        return outputs


class Machine:
    """Runs programs of a vocabulary on arrays of N elements, which consist of `layers` of these sizes.

    `machine.start(ready, inputs)` gives memory; `machine.step(ready, memory, inputs)` gives outputs and memory;
    `machine.derivative(ready, inputs, wrt)` differentiates a program without memory. All are traceable and made to be
    vmapped. `inputs` maps names to arrays: `[]` for a scalar, `[layers]` for a layer, `[N]` for a tensor register, or
    `[]` for any. Raises `ConfigError` where an input is missing or has another shape.
    """

    def __init__(self, vocabulary: Vocabulary, layers: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.layers = tuple(int(size) for size in layers)
        self.size = sum(self.layers)
        self._run = _runner(vocabulary.operations, self.layers)
        self._run_with_tangent = _tangent_runner(vocabulary.operations, self.layers)

    def start(self, ready: Ready, inputs: Mapping[str, Any]) -> Any:
        """Memory `[memory, N]` after `setup`; inputs that `setup` may not read can be left out."""
        empty = jnp.zeros((len(self.vocabulary.memory), self.size), jnp.float32)
        if not self.vocabulary.setup:
            return empty
        late = {register.name: 0.0 for register in self.vocabulary.inputs if not register.setup}
        registers = self._registers(ready, {**late, **inputs}, empty)
        registers = self._run(ready.setup, ready.counts[0], registers)
        return registers[self.vocabulary.first_memory : self.vocabulary.first_output]

    def step(self, ready: Ready, memory: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """One `update`: outputs by name, each `[N]`, and the new memory."""
        registers = self._run(ready.update, ready.counts[1], self._registers(ready, inputs, memory))
        first = self.vocabulary.first_output
        outputs = Outputs(
            (register.name, jnp.where(ready.refused, jnp.nan, registers[first + i]))
            for i, register in enumerate(self.vocabulary.outputs)
        )
        outputs.vocabulary = self.vocabulary.name
        return outputs, registers[self.vocabulary.first_memory : first]

    def derivative(self, ready: Ready, inputs: Mapping[str, Any], wrt: str) -> tuple[Any, Any]:
        """First output `[N]` of one `update` from empty memory, and its derivative `[N]` by the input `wrt`.

        Element by element: for vocabularies of `map` operations alone, where element i of the output depends on
        element i of the inputs only.
        """
        memory = jnp.zeros((len(self.vocabulary.memory), self.size), jnp.float32)
        registers = self._registers(ready, inputs, memory)
        number = [register.name for register in self.vocabulary.inputs].index(wrt)
        direction = jnp.zeros_like(registers).at[number].set(1.0)
        value, slope = self._run_with_tangent(ready.update, ready.counts[1], registers, direction)
        first = self.vocabulary.first_output
        return jnp.where(ready.refused, jnp.nan, value[first]), jnp.where(ready.refused, jnp.nan, slope[first])

    def _registers(self, ready: Ready, inputs: Mapping[str, Any], memory: Any) -> Any:
        """`[registers, N]` at the start of a section."""
        self.vocabulary.require("machine", tuple(inputs), ())
        rows = [self._wide(register, inputs[register.name]) for register in self.vocabulary.inputs]
        constants = jnp.broadcast_to(ready.constants[:, None], (self.vocabulary.constants, self.size))
        outputs = jnp.zeros((len(self.vocabulary.outputs), self.size), jnp.float32)
        return jnp.concatenate([jnp.stack(rows), constants, memory, outputs])

    def _wide(self, register: Register, value: Any) -> Any:
        value = jnp.asarray(value, jnp.float32)
        fits = {"scalar": (), "layer": (len(self.layers),), "tensor": (self.size,)}[register.type]
        if value.shape not in ((), fits):
            raise ConfigError(
                f"machine: input {register.name!r} is a {register.type} and expected shape {fits} or (),"
                f" got {value.shape}"
            )
        if register.type == "layer" and value.ndim:
            value = value[np.repeat(np.arange(len(self.layers)), self.layers)]
        return jnp.broadcast_to(value, (self.size,))


@lru_cache(maxsize=64)
def _loop(operations: tuple[str, ...], layers: tuple[int, ...]) -> Any:
    functions = [arithmetic(name) for name in operations]
    branches = [lambda a, b, c, f=f: f(a, b, c, layers).astype(jnp.float32) for f in functions]

    def run(instructions: Any, count: Any, registers: Any) -> Any:
        def one(i: Any, held: Any) -> Any:
            operation, place, a, b, c = instructions[i]
            return held.at[place].set(jax.lax.switch(operation, branches, held[a], held[b], held[c]))

        return jax.lax.fori_loop(0, count, one, registers)

    return run


@lru_cache(maxsize=64)
def _runner(operations: tuple[str, ...], layers: tuple[int, ...]) -> Any:
    return sequential_vmap(_loop(operations, layers))


@lru_cache(maxsize=64)
def _tangent_runner(operations: tuple[str, ...], layers: tuple[int, ...]) -> Any:
    run = _loop(operations, layers)

    @sequential_vmap
    def both(instructions: Any, count: Any, registers: Any, direction: Any) -> Any:
        return jax.jvp(lambda held: run(instructions, count, held), (registers,), (direction,))

    return both

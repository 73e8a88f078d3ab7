"""What a program does, as 64 bits: programs that compute the same hash equal, however they are written.

A program runs `STEPS` steps on fixed probe inputs, drawn once for every vocabulary as its registers say (`probe`).
Of each output the hash holds the scale and four sums of its values with fixed random signs, all rounded to about four
significant digits: sums, because fifty values rounded one by one would now and then fall on both sides of an edge
through float noise alone (measured: about one program in a thousand does still). Sums are of whole numbers, so that
their order cannot change them.

Values that are not finite keep their places and kinds in the hash and count as 0 in the sums. Refused programs all
have the hash `REFUSED`. Constants that differ in the fifth digit are one behaviour; so are programs that differ
where no probe leads. A hash is for leaving out duplicates, not a proof.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.code import Code, split
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vocabulary import Register, Vocabulary

LAYERS = (4, 4, 4)  # sizes of the probe layers
STEPS = 4
REFUSED = (0xFFFFFFFF, 0xFFFFFFFF)
_SUMS = 4
_GRID = 2.0**20  # whole numbers per unit of an output's compressed value
_FARTHEST = 40.0  # compressed values are cut here: 48 of them fit int32 on the grid
_BIN = 3600  # of the grid: 0.0005 times the root of 48
_SEED = 20260


def answers(vocabulary: Vocabulary, code: Code) -> tuple[Any, Any]:
    """What a program puts out on the probe inputs, `[STEPS, outputs, N]`, and whether it is refused; traceable.

    Where a vocabulary has a `slope`, the derivative in the place of the output: losses that differ by what does not
    depend on that input teach the same.
    """
    ready = prepare(vocabulary, code)
    machine = Machine(vocabulary, LAYERS)
    first, steps = probes(vocabulary)
    if vocabulary.slope:
        slopes = [
            machine.derivative(ready, {k: v[i] for k, v in steps.items()}, vocabulary.slope) for i in range(STEPS)
        ]
        return jnp.stack([slope for _, slope in slopes])[:, None], ready.refused

    def step(memory: Any, inputs: Any) -> tuple[Any, Any]:
        outputs, memory = machine.step(ready, memory, inputs)
        return memory, jnp.stack([outputs[register.name] for register in vocabulary.outputs])

    return jax.lax.scan(step, machine.start(ready, first), steps)[1], ready.refused


def behaviour(vocabulary: Vocabulary, code: Code) -> Any:
    """`uint32 [2]`, a hash of what a program puts out on the probe inputs; traceable, and made to be vmapped."""
    values, is_refused = answers(vocabulary, code)
    words = jnp.concatenate([_words(values[:, i].reshape(-1)) for i in range(len(vocabulary.outputs))])
    refused = jnp.asarray(REFUSED, jnp.uint32)
    return jnp.where(is_refused, refused, _mix(words))


def fingerprints(vocabulary: Vocabulary, numbers: Any) -> Any:
    """`uint32 [P, 2]`: the behaviour of genome numbers `[P, size]`; traceable. Programs run one after another."""
    return jax.vmap(lambda row: behaviour(vocabulary, split(vocabulary, row)))(numbers)


@lru_cache(maxsize=64)
def probes(vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Probe inputs of `setup` and, with a leading `[STEPS]`, of `update`: always the same.

    `normal`: standard normal; `positive`: its exponential; `unit`: uniform in 0 .. 1; `sign`: -1 or 1; `count`: the
    number of the step. What `setup` knows does not change between steps.
    """
    draw = np.random.default_rng(_SEED)
    steps = {register.name: _probe(draw, register) for register in vocabulary.inputs}
    return {register.name: steps[register.name][0] for register in vocabulary.inputs if register.setup}, steps


def _probe(draw: np.random.Generator, register: Register) -> np.ndarray:
    shape = (STEPS, *{"scalar": (), "layer": (len(LAYERS),), "tensor": (sum(LAYERS),)}[register.type])
    if register.probe == "count":
        values = np.broadcast_to(np.arange(1.0, STEPS + 1).reshape((STEPS,) + (1,) * (len(shape) - 1)), shape)
    elif register.probe == "unit":
        values = draw.uniform(size=shape)
    elif register.probe == "sign":
        values = np.where(draw.uniform(size=shape) < 0.5, -1.0, 1.0)
    else:
        values = draw.normal(size=shape)
        values = np.exp(values) if register.probe == "positive" else values
    if register.setup and register.probe != "count":
        values = np.broadcast_to(values[:1], shape)
    return np.ascontiguousarray(values, np.float32)


def _words(values: Any) -> Any:
    """`uint32 [_SUMS + 3]` of one output's values `[STEPS * N]`."""
    count = values.shape[0]
    draw = np.random.default_rng(_SEED + 1)
    signs = draw.choice(np.array([-1, 1], np.int32), size=(_SUMS, count))
    places = draw.integers(1, 2**32, size=(2, count), dtype=np.uint32)

    finite = jnp.isfinite(values)
    held = jnp.where(finite, values, 0.0)
    size = jnp.sort(jnp.abs(held))
    # The middle size is the scale; where half of the values are zero, the largest.
    scale = jnp.where(size[count // 2] > 0, size[count // 2], size[-1])
    scale = jnp.where(scale > 0, scale, 1.0)
    pressed = jnp.clip(jnp.arcsinh(held / scale), -_FARTHEST, _FARTHEST)
    whole = jnp.round(pressed * _GRID).astype(jnp.int32)
    sums = jnp.sum(jnp.asarray(signs) * whole[None, :], axis=1)
    # Half a bin off, so that the sum of an output that is zero or symmetric lies in the middle of a bin.
    rough = (sums + _BIN // 2) // _BIN
    magnitude = jnp.round(jnp.log(scale) * 2000.0).astype(jnp.int32)
    kinds = jnp.where(finite, 0, jnp.where(jnp.isnan(values), 1, jnp.where(values > 0, 2, 3))).astype(jnp.uint32)
    broken = jnp.sum(jnp.asarray(places) * kinds[None, :], axis=1, dtype=jnp.uint32)
    return jnp.concatenate([rough.astype(jnp.uint32), magnitude[None].astype(jnp.uint32), broken])


def _mix(words: Any) -> Any:
    """Two hashes of the words, by the finalizer of MurmurHash3 (Appleby, public domain)."""
    state = jnp.asarray([0x9E3779B9, 0x85EBCA6B], jnp.uint32)
    for number in range(words.shape[0]):
        state = (state ^ words[number]) * jnp.asarray([0x85EBCA6B, 0xC2B2AE35], jnp.uint32)
        state = state ^ (state >> 15)
        state = state * jnp.uint32(0x27D4EB2F) + jnp.uint32(number + 1)
        state = state ^ (state >> 13)
    return state

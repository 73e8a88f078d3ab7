"""A million arrays, over the vocabularies of all built-in tasks: a program or a refusal each, within time and memory."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.programs.behaviour import LAYERS, probes
from evometa.programs.code import split
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vary import random_programs
from evometa.programs.vocabularies import VOCABULARIES
from evometa.programs.vocabulary import Vocabulary
from evometa.tasks.parts import lifetime, synthesis

FOUND = [one for part in (lifetime, synthesis) for one in vars(part).values() if isinstance(one, Vocabulary)]
EVERY = VOCABULARIES | {words.name: words for words in FOUND}
BATCH, WAVES = 14_000, 3  # of each of three kinds, in each vocabulary
MB = 2**20


def test_it_is_a_million():
    assert {"lists", "terse", "mutation", *VOCABULARIES} <= set(EVERY)
    assert len(EVERY) * WAVES * 3 * BATCH >= 10**6


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_million_arrays_run_within_bounds(name):
    """Valid programs, such with two numbers replaced on average, and rows of numbers that were never a program."""
    words = EVERY[name]
    machine = Machine(words, LAYERS)
    early, steps = probes(words)
    inputs = {key: value[0] for key, value in steps.items()}

    def outcome(numbers):
        ready = prepare(words, split(words, numbers))
        memory = machine.start(ready, early)
        said = []
        for _ in range(2):
            outputs, memory = machine.step(ready, memory, inputs)
            said += list(outputs.values())
        if name == "loss":  # differentiated, as its task does
            said += machine.derivative(ready, inputs, "q")
        return ready.refused, jnp.isnan(jnp.stack(said)).all()

    def wave(key):
        keys = jax.random.split(key, 7)
        size = (BATCH, words.size)
        valid = random_programs(words, keys[0], BATCH)
        # Whole numbers about as large as those of programs, and any float there is: infinite, no number, tiny.
        near = jax.random.randint(keys[1], size, -1, len(words.registers) + 1).astype(jnp.float32)
        wild = jax.lax.bitcast_convert_type(jax.random.bits(keys[2], size), jnp.float32)
        hit = jnp.where(jax.random.bernoulli(keys[3], 0.5, size), near, wild)
        broken = jnp.where(jax.random.bernoulli(keys[4], 2.0 / words.size, size), hit, valid)
        rows = jnp.where(jax.random.bernoulli(keys[5], 0.5, (BATCH, 1)), near, wild)
        # Half of the rows without a number beside the other: instructions in reach, four in five of them `nop`.
        idle = jax.random.bernoulli(keys[6], 0.8, (BATCH, words.length)).repeat(5, axis=1)
        idle = jnp.pad(idle, ((0, 0), (0, words.constants)))
        anything = jnp.where(idle & (jnp.arange(BATCH) % 2 == 0)[:, None], 0.0, rows)
        refused, silent = jax.vmap(outcome)(jnp.concatenate([valid, broken, anything]))
        return refused.reshape(3, BATCH), silent.reshape(3, BATCH)

    wave = jax.jit(wave).lower(jax.random.key(0)).compile()
    needed = wave.memory_analysis().temp_size_in_bytes
    assert needed < 500 * MB
    refused, held = np.zeros(3), []
    for number in range(WAVES):
        flags, silent = map(np.asarray, wave(jax.random.key(number)))
        assert not flags[0].any(), "a random program was refused"
        assert (silent | ~flags).all(), "a refused program spoke"
        refused += flags.mean(axis=1) / WAVES
        held.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert held[-1] - held[0] < 200 * 1024  # kilobytes
    assert 0.2 < refused[1] < 0.95 and refused[2] > 0.5

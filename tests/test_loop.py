"""One generation, a one-way street: blocks, single steps, hosts and retelling are the same function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa import Failure, Objective, Space, real
from evometa.api import strategy as make_strategy
from evometa.evaluate.settle import Raw
from evometa.keys import Stream, stream_key
from evometa.loop import CompiledLoop, HostLoop
from evometa.types import Cell

SPACE = Space({"x": real(0, 1), "y": real(0, 1)})
CELLS = (Cell("a", "away", "train", 0), Cell("b", "away", "train", 0))
OBJECTIVES = (Objective(),)


def evaluate(key, genomes, data):
    """Squared distance from `data`, with luck that every candidate shares; one corner fails."""
    luck = 0.01 * jax.random.normal(key, (1, 2))
    distance = jnp.sum((genomes - jnp.broadcast_to(data, genomes.shape)) ** 2, axis=1, keepdims=True)
    loss = jnp.broadcast_to(distance, (len(genomes), 2)) + jnp.broadcast_to(luck, (len(genomes), 2))
    loss = jnp.where(genomes[:, :1] > 0.95, jnp.nan, loss)
    return Raw(
        loss,
        {"luck": jnp.broadcast_to(luck, loss.shape)},
        jnp.ones(loss.shape, bool),
        jnp.zeros(len(genomes), jnp.int8),
    )


TARGET = jnp.array([0.3, 0.6])


def loops(name, seed=1, block=4):
    strategy = make_strategy(name, SPACE, population=8)
    compiled = CompiledLoop(strategy, evaluate, TARGET, CELLS, OBJECTIVES, seed, block)
    jitted = jax.jit(evaluate)
    messages = {3: "unlucky"}

    def on_host(generation, key, genomes):
        return jax.tree.map(np.asarray, jitted(key, genomes, TARGET)), messages

    return strategy, compiled, HostLoop(strategy, on_host, CELLS, OBJECTIVES, seed)


def start(strategy, seed=1):
    return strategy.init(stream_key(seed, 0, Stream.INIT), None)


def run(loop, state, generations, step, first=0):
    blocks = []
    for number in range(first, first + generations, step):
        state, block = loop.advance(state, number, min(step, first + generations - number))
        blocks.append(block)
    return state, blocks


def joined(blocks):
    return [
        np.concatenate([np.asarray(leaf) for leaf in leaves])
        for leaves in zip(*[jax.tree.leaves(b[1:4]) for b in blocks], strict=True)
    ]


def equal(one, two):
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


@pytest.mark.parametrize("name", ["cma_es", "genetic"])
def test_blocks_single_steps_and_the_host_give_the_same_bits(name):
    strategy, compiled, host = loops(name)
    state, blocks = run(compiled, start(strategy), 10, 4)
    assert [block.generations for block in blocks] == [4, 4, 2] and [block.first for block in blocks] == [0, 4, 8]
    again, singles = run(compiled, start(strategy), 10, 1)
    assert equal(joined(blocks), joined(singles)) and equal(state, again)
    on_host, host_blocks = run(host, start(strategy), 10, 5)
    assert equal(joined(blocks), joined(host_blocks)) and equal(state, on_host)
    assert host_blocks[0].messages[4, 3] == "unlucky" and blocks[0].messages == {}


@pytest.mark.parametrize("name", ["cma_es", "genetic", "tpe"])
def test_retelling_gives_the_state_and_finds_what_differs(name):
    strategy, _, host = loops(name)
    state, blocks = run(host, start(strategy), 6, 3)
    told = start(strategy)
    for block in blocks:
        told = host.retell(told, block)
    assert equal(told, state)
    forged = blocks[0]._replace(genomes=blocks[0].genomes + np.float32(1e-6))
    with pytest.raises(ValueError, match="generation 0 differs"):
        host.retell(start(strategy), forged)


def test_shapes_and_failures():
    strategy, compiled, _ = loops("random_search")
    _, (block,) = run(compiled, start(strategy), 4, 4)
    assert block.genomes.shape == (4, 8, 2) and block.parents.shape[:2] == (4, 8) and block.parents.shape[3] == 2
    scores = block.scores
    assert scores.loss.shape == (4, 8, 2) and scores.fitness.shape == (4, 8, 1) and scores.failure.shape == (4, 8)
    assert scores.metrics["luck"].shape == (4, 8, 2) and scores.descriptor.shape == (4, 8, 0)
    failed = block.genomes[..., 0] > 0.95
    assert failed.any() and np.array_equal(scores.failure == Failure.NONFINITE, failed)
    assert np.array_equal(np.isinf(scores.fitness[..., 0]), failed)
    assert np.allclose(scores.fitness[..., 0][~failed], scores.loss.mean(axis=2)[~failed])


def test_candidates_of_a_generation_share_their_luck_and_generations_do_not():
    strategy, compiled, _ = loops("random_search")
    _, (block,) = run(compiled, start(strategy), 4, 4)
    luck = block.scores.metrics["luck"]
    assert (luck == luck[:, :1]).all() and len(np.unique(luck[:, 0, 0])) == 4


def test_one_compilation_serves_every_length_and_every_state(monkeypatch):
    """Also a state that comes from NumPy (a block before, a checkpoint) and not from `init`."""
    traced = []
    real_evaluate = evaluate
    monkeypatch.setitem(globals(), "evaluate", lambda *a: traced.append(1) or real_evaluate(*a))
    strategy, compiled, _ = loops("genetic")
    state, _ = compiled.advance(start(strategy), 0, 4)
    once = len(traced)
    for first, count in ((4, 4), (8, 1), (9, 2)):
        state, _ = compiled.advance(state, first, count)
    assert once and len(traced) == once


def test_nothing_depends_on_how_a_run_came_here():
    """Keys are functions of the generation's number: a state and a number are all that a block needs."""
    strategy, compiled, _ = loops("cma_es")
    state, _ = run(compiled, start(strategy), 4, 4)
    _, rest = run(compiled, state, 4, 4, first=4)
    _, again = run(compiled, state, 4, 2, first=4)
    assert equal(joined(rest), joined(again))
    _, other = run(compiled, state, 4, 4, first=5)
    assert not equal(joined(rest), joined(other))


def test_it_searches():
    strategy, compiled, _ = loops("cma_es", block=8)
    state, _ = run(compiled, start(strategy), 40, 8)
    assert np.allclose(np.asarray(strategy.recommend(state)), TARGET, atol=0.02)

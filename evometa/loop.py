"""One generation, a one-way street: ask, execute, settle, tell. Knows no strategy and no task by name.

Nothing flows back up: strategies never see a task, tasks never see a strategy, the archive never feeds
the loop. Where strategy and task are traceable, a whole block of generations is one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Objective
from evometa.evaluate.settle import Raw, settle
from evometa.keys import Stream, root_key, stream_key
from evometa.types import Array, Block, Cell, Genomes, Parents, Scores, State, Strategy

# A traceable evaluation: (key, genomes [P, D], data) -> Raw; data is a pytree of arrays.
Evaluate = Callable[[Any, Any, Any], Raw]
# An evaluation on the host: (generation, key, genomes [P, D]) -> Raw and messages {index: text}.
HostEvaluate = Callable[[int, Any, np.ndarray], tuple[Raw, dict[int, str]]]

Placebo = bool | str  # False, True or "noise"


class Row(NamedTuple):
    """What one generation leaves for the archive. Leading axis P."""

    genomes: Genomes
    parents: Parents
    scores: Scores
    rates: dict[str, Array]  # of `Strategy.rates`; empty where there are none


def generation(
    strategy: Strategy,
    evaluate: Callable[[Any, Genomes], Raw],
    cells: Sequence[Cell],
    objectives: Sequence[Objective],
    root: Any,
    number: Any,
    state: State,
    placebo: Placebo = False,
) -> tuple[State, Row]:
    """Advance `state` through generation `number`; traceable where strategy and evaluate are.

    `root` is the search's seed or key. `placebo`: what the strategy is told instead of the scores (control C5, see
    `misled`); the row keeps everybody's own.
    """
    key = partial(stream_key, root, number)
    genomes, parents, state = strategy.ask(key(Stream.ASK), state)
    rates = strategy.rates(state) if strategy.rates else {}
    scores = settle(evaluate(key(Stream.EVALUATE), genomes), cells, objectives)
    told = misled(key(Stream.PLACEBO), scores, placebo) if placebo else scores
    state = strategy.tell(key(Stream.TELL), state, genomes, told)
    return state, Row(genomes, parents, scores, rates)


def misled(key: Any, scores: Scores, placebo: Placebo) -> Scores:
    """Scores that say nothing of their candidates; traceable.

    True: those of the generation, handed out among its candidates at random. "noise": random numbers, which no
    score has touched: what a search finds that is told these, it finds by walking about.
    """
    if placebo == "noise":
        noise = jax.random.normal(key, scores.fitness.shape)
        return scores._replace(
            fitness=jnp.where(jnp.isfinite(scores.fitness), noise, scores.fitness),
            loss=jnp.where(scores.evaluated, noise[:, :1], scores.loss),
        )
    order = jax.random.permutation(key, scores.fitness.shape[0])
    return jax.tree.map(lambda x: x[order], scores)


class CompiledLoop:
    """Blocks of generations as one compiled program, for a traceable strategy and a JAX task.

    The number of generations is a run-time argument, so one compilation serves every block length up to
    `block`, a single step included: block and step by step are the same program and give the same bits.
    """

    def __init__(
        self,
        strategy: Strategy,
        evaluate: Evaluate,
        data: Any,
        cells: Sequence[Cell],
        objectives: Sequence[Objective],
        seed: int,
        block: int,
        placebo: Placebo = False,
    ) -> None:
        self._data, self._block, self._seed = data, block, seed

        def run(state: State, first: Any, count: Any, seed_key: Any, data: Any) -> tuple[State, Row]:
            # The key is an argument, so that all seeds share one compiled program.
            root = jax.random.wrap_key_data(seed_key)

            def one(number: Any, state: State) -> tuple[State, Row]:
                def cells_of(key: Any, genomes: Genomes) -> Raw:
                    return evaluate(key, genomes, data)

                return generation(strategy, cells_of, cells, objectives, root, number, state, placebo)

            shapes = jax.eval_shape(one, first, state)[1]
            rows = jax.tree.map(lambda x: jnp.zeros((block, *x.shape), x.dtype), shapes)

            def body(i: Any, carry: tuple[State, Row]) -> tuple[State, Row]:
                state, rows = carry
                state, row = one(first + i, state)
                return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), rows, row)

            return jax.lax.fori_loop(0, count, body, (state, rows))

        self._run = jax.jit(run)

    def with_seed(self, seed: int) -> CompiledLoop:
        """The same program from another seed."""
        other = copy(self)
        other._seed = seed
        return other

    def advance(self, state: State, first: int, count: int) -> tuple[State, Block]:
        """Run `count` generations (at most the block length), `first` being the number of the first."""
        seed_key = jax.random.key_data(root_key(self._seed))
        state, rows = self._run(state, jnp.int32(first), jnp.int32(count), seed_key, self._data)
        rows = jax.tree.map(lambda x: np.asarray(x)[:count], rows)
        # Back to the host: a state that lies on the devices would be another input type, and compile again.
        block = Block(first, rows.genomes, rows.parents, rows.scores, {}, rows.rates)
        return jax.tree.map(np.asarray, state), block


# Compiled once for equal cells, however many searches a process makes (a nested one makes thousands).
_settled = jax.jit(settle, static_argnames=("cells", "objectives"))


class HostLoop:
    """One generation after the other on the host: for strategies or tasks that JAX cannot trace."""

    def __init__(
        self,
        strategy: Strategy,
        evaluate: HostEvaluate,
        cells: Sequence[Cell],
        objectives: Sequence[Objective],
        seed: int,
        placebo: Placebo = False,
    ) -> None:
        self._strategy, self._evaluate, self._seed, self._placebo = strategy, evaluate, seed, placebo
        if strategy.traceable:
            self._ask, self._tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
        else:
            self._ask, self._tell = strategy.ask, strategy.tell
        self._settle = partial(_settled, cells=tuple(cells), objectives=tuple(objectives))

    def with_seed(self, seed: int) -> HostLoop:
        """The same loop from another seed."""
        other = copy(self)
        other._seed = seed
        return other

    def advance(self, state: State, first: int, count: int) -> tuple[State, Block]:
        """Run `count` generations, `first` being the number of the first."""
        rows: list[Row] = []
        messages: dict[tuple[int, int], str] = {}
        for number in range(first, first + count):
            key = partial(stream_key, self._seed, number)
            genomes, parents, state = self._ask(key(Stream.ASK), state)
            rates = self._strategy.rates(state) if self._strategy.rates else {}
            raw, said = self._evaluate(number, key(Stream.EVALUATE), np.asarray(genomes))
            scores = self._settle(raw)
            told = misled(key(Stream.PLACEBO), scores, self._placebo) if self._placebo else scores
            state = self._tell(key(Stream.TELL), state, genomes, told)
            rows.append(jax.tree.map(np.asarray, Row(genomes, parents, scores, rates)))
            messages |= {(number, index): text for index, text in said.items()}
        stacked = jax.tree.map(lambda *x: np.stack(x), *rows)
        return state, Block(first, stacked.genomes, stacked.parents, stacked.scores, messages, stacked.rates)

    def retell(self, state: State, block: Block) -> State:
        """Tell a block that is already in the archive; `ValueError` where the genomes asked for differ from it."""
        for i in range(block.generations):
            key = partial(stream_key, self._seed, block.first + i)
            genomes, _, state = self._ask(key(Stream.ASK), state)
            stored, asked = block.genomes[i], np.asarray(genomes)
            # A row of NaN: a large genome that was not stored. Its scores are told all the same.
            there = ~np.isnan(stored).all(axis=1)
            if not np.array_equal(asked[there], stored[there], equal_nan=True):
                raise ValueError(f"generation {block.first + i} differs")
            scores = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), block.scores)
            if self._placebo:
                scores = misled(key(Stream.PLACEBO), scores, self._placebo)
            state = self._tell(key(Stream.TELL), state, genomes, scores)
        return state

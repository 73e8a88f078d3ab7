"""No search: the start is proposed again and again. The arm of a study that nothing was searched for.

A control, not a method: it shows what the same judging says of what a careful user has today.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from evometa.column import KINDS
from evometa.space import Space
from evometa.strategies import parts
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy


class State(NamedTuple):
    """The start, and how often it was asked for."""

    start: Genome  # [D]
    generation: Array  # [] int32


def static(space: Space, population: int = 1, **hyperparameters: Any) -> Strategy:
    """The prior (or the center), `population` times per generation. No hyperparameters.

    Raises `UsageError` for any, `ConfigError` for a population below 1.
    """
    parts.hyperparameters("static", {}, hyperparameters)
    population = parts.check_population("static", population, 1)

    def init(key: Any, prior: Prior | None = None) -> State:
        del key
        return State(parts.start_of(space, prior), jnp.int32(0))

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        del key
        genomes = jnp.broadcast_to(state.start[None], (population, space.dimension))
        return genomes, parts.no_parents(population), state._replace(generation=state.generation + 1)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        del key, genomes, scores
        return state

    def recommend(state: State) -> Genome:
        return state.start

    return Strategy(
        "static", population, init, ask, tell, recommend,
        traceable=True, searches=frozenset(KINDS), operators=("start", "start", "start"),
    )  # fmt: skip

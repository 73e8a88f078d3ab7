"""Blind search: independent uniform samples, and a scrambled Sobol sequence.

Bergstra & Bengio 2012, "Random search for hyper-parameter optimization" (JMLR 13); Sobol 1967, with
Owen's scrambling as in scipy (Owen 1998). Both look at no score, so every sample comes from one fixed
distribution and `recommend` may compare what rows gained on the median of their own generation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import KINDS, PLAIN
from evometa.space import Space
from evometa.strategies import parts
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy

SOBOL_LIMIT = 21201  # dimensions for which scipy has direction numbers


class State(NamedTuple):
    """What blind search remembers."""

    generation: Array  # [] int32: generations asked so far
    start: Genome  # [D]: member 0 of the first generation
    champion: Genome  # [D]: largest gain on its generation's median so far
    gain: Array  # [] float32: that gain, lower is better
    seed: Array  # [2] uint32: scrambling of the sequence; unused by random search


def random_search(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """`population` independent samples per generation; the first member of all is the prior.

    No hyperparameters. Raises `UsageError` for any, `ConfigError` for a population below 1.
    """
    parts.hyperparameters("random_search", {}, hyperparameters)
    population = parts.check_population("random_search", population, 1)

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        genomes = _with_start(state, space.sample(key, population))
        return space.project(genomes), parts.no_parents(population), state._replace(generation=state.generation + 1)

    return Strategy(
        "random_search", population, _initial(space), ask, _tell, _recommend,
        traceable=True, searches=frozenset(KINDS), operators=("random", "random", "random"),
    )  # fmt: skip


def sobol(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """`population` consecutive points of one scrambled Sobol sequence per generation.

    The scrambling comes from the run's key; a generation is found by `fast_forward`, so nothing but
    its number is kept. Balance is best where the population is a power of two. Weights get the normal
    quantile of their point. No hyperparameters; at most 21201 genome numbers (`ConfigError`).
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    parts.hyperparameters("sobol", {}, hyperparameters)
    population = parts.check_population("sobol", population, 1)
    parts.require("sobol", space, frozenset(PLAIN))
    if space.dimension > SOBOL_LIMIT:
        raise parts.ConfigError(
            f"sobol: expected at most {SOBOL_LIMIT} genome numbers, got {space.dimension}. Use random_search"
        )

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        del key
        words = [int(word) for word in np.asarray(state.seed)]
        engine = qmc.Sobol(space.dimension, scramble=True, bits=30, rng=np.random.default_rng(words))
        first = int(state.generation) * population
        if first:
            engine.fast_forward(first)
        # The sequence has 2^30 points; the middle of a cell keeps ndtri finite at 0.
        points = np.clip(_draw(engine, population), 2.0**-31, 1 - 2.0**-31)
        genomes = np.where(space.bounded, points, ndtri(points)).astype(np.float32)
        genomes = _with_start(state, jnp.asarray(genomes))
        return space.project(genomes), parts.no_parents(population), state._replace(generation=state.generation + 1)

    return Strategy(
        "sobol", population, _initial(space), ask, _tell, _recommend,
        traceable=False, searches=frozenset(PLAIN), operators=("sobol", "sobol", "sobol"),
    )  # fmt: skip


def _draw(engine: Any, count: int) -> np.ndarray:
    import warnings

    with warnings.catch_warnings():  # scipy warns that balance needs a power of two; the docstring says so
        warnings.simplefilter("ignore", UserWarning)
        return engine.random(count)


def _initial(space: Space) -> Any:
    def init(key: Any, prior: Prior | None = None) -> State:
        start = parts.start_of(space, prior)
        return State(jnp.int32(0), start, start, jnp.float32(jnp.inf), jax.random.bits(key, (2,), jnp.uint32))

    return init


def _with_start(state: State, genomes: Genomes) -> Genomes:
    first = (state.generation == 0) & (jnp.arange(genomes.shape[0]) == 0)
    return jnp.where(first[:, None], state.start[None], genomes)


def _tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
    del key
    fitness, ok, _ = parts.settle(scores)
    gains = parts.merit(fitness, ok)
    best = jnp.argmin(gains)
    better = gains[best] < state.gain
    return state._replace(
        champion=jnp.where(better, genomes[best], state.champion), gain=jnp.minimum(gains[best], state.gain)
    )


def _recommend(state: State) -> Genome:
    return state.champion

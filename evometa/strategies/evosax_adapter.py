"""The methods of evosax behind one adapter; `evosax_table.py` says which, with which defaults.

evosax: Lange 2022, arXiv 2212.04180. Three rules make one adapter fit all:

* The library searches `y = (genome - center) / sigma`, so its own defaults for unit variance hold in
  [0, 1] coordinates whatever way a method names its first standard deviation.
* What is told is the stored genome (folded into bounds) and a settled fitness: failed rows at the worst
  finite value, nothing told where no row is finite. An update that turns a finite number of the state
  into NaN or infinity is dropped: the method stands where it stood.
* A distribution's mean is held inside the bounds. Methods with a population start from samples of the
  space with the prior as member 0, and are handed their first population when it has been judged.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.errors import ConfigError
from evometa.space import Space
from evometa.strategies import parts
from evometa.strategies.catalogue import NUMBERS
from evometa.strategies.evosax_samples import KEEP, RECOVER
from evometa.strategies.evosax_table import METHODS, Method
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy


class State(NamedTuple):
    """The library's state, and what the lineage needs to know beside it."""

    library: Any  # evosax's own state, in its coordinates
    generation: Array  # [] int32: generations asked so far
    told: Array  # [] bool: has a generation with a finite row been told?
    start: Genome  # [D]: the prior or the center
    ids: Array  # [K, 2] elites (distributions) or [S, 2] the population's slots: (generation, index)
    held: Any  # populations: (genomes [S, D], fitness [S]) that `ids` names, in the library's coordinates


def __getattr__(name: str) -> Callable[..., Strategy]:
    """`cma_es`, `snes`, ...: the factory of every method in the table."""
    if name not in METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    factory = partial(adapt, name)
    factory.__doc__ = METHODS[name].summary  # type: ignore[misc]
    return factory


def adapt(name: str, space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """The strategy called `name` in the table. `sigma` is in genome units; the rest as in evosax.

    Raises `UsageError` for an unknown hyperparameter, `ConfigError` for a population that is too small or
    odd where pairs are needed, and for a space with categorical columns.
    """
    method = METHODS[name]
    given = parts.hyperparameters(name, {"sigma": method.sigma, **method.defaults}, hyperparameters)
    population = parts.check_population(name, population, method.minimum, method.even)
    parts.require(name, space, NUMBERS)
    sigma = given.pop("sigma")
    parts.check_range(name, sigma=(sigma, 1e-6, 1e3))
    algorithm, params = _build(name, method, space, population, given)
    build = _distribution if method.family == "distribution" else _population
    sigma = sigma if parts.is_traced(sigma) else float(sigma)
    init, ask, tell, recommend = build(algorithm, params, method, space, sigma)
    made = "distribution" if method.family == "distribution" else "pool"
    return Strategy(
        name, population, init, ask, tell, recommend,
        traceable=method.traceable, searches=NUMBERS, operators=("initial", made, made),
    )  # fmt: skip


def _build(name: str, method: Method, space: Space, population: int, given: dict[str, Any]) -> tuple[Any, Any]:
    """The evosax object and its parameters. It is built once: evosax compiles per object."""
    import evosax.algorithms
    import optax
    from evosax.core.optimizer import clipup

    for key, value in given.items():
        if not isinstance(value, (int, float)) and not parts.is_traced(value):
            raise ConfigError(f"{name}: expected a number for {key}, got {value!r}")
    build: dict[str, Any] = {}
    if "std" in given:
        # A floor of 1 % of the first spread: an extended run must be able to go on searching.
        std, decay = given.pop("std"), given.pop("decay", 1.0)
        shrinking = optax.exponential_decay(std, 1, decay, end_value=0.01 * std)
        build["std_schedule"] = optax.constant_schedule(std) if decay == 1.0 else shrinking
    if method.optimizer:
        rate = given.pop("learning_rate")
        velocity = {"max_velocity": given.pop("max_velocity")} if method.optimizer == "clipup" else {}
        make = {"sgd": optax.sgd, "adam": optax.adam, "clipup": clipup}[method.optimizer]
        build["optimizer"] = make(rate, **velocity)
    if "num_groups" in given:  # 0: the most groups, about the square root, that divide the population
        groups = given.pop("num_groups")
        build["num_groups"] = groups or max(g for g in range(1, int(population**0.5) + 1) if (population - 1) % g == 0)
    for key in ("subspace_dims", "num_diff"):
        if key in given:
            build[key] = given.pop(key)
    try:
        algorithm = evosax.algorithms.algorithms[method.algorithm](population, jnp.zeros(space.dimension), **build)
    except (AssertionError, ValueError) as error:  # evosax states its needs as assertions
        raise ConfigError(f"{name}: evosax refused population={population}, {build}: {error}") from None
    factors = {key: given.pop(key) for key in list(given) if key.startswith("factor_")}
    if any(parts.is_traced(value) or value != 1.0 for value in factors.values()):
        given |= _scaled(algorithm.default_params, factors)
    if "differential_weight_max" in given:
        given["differential_weight"] = given["differential_weight_max"]
    return algorithm, algorithm.default_params.replace(**given)


def _scaled(params: Any, factors: dict[str, Any]) -> dict[str, Any]:
    """CMA-ES's learning rates and damping times `factors`, kept where the method is defined (rates at most 1)."""
    scaled = {key.removeprefix("factor_"): value for key, value in factors.items()}
    scaled = {name: getattr(params, name) * value for name, value in scaled.items()}
    scaled |= {name: jnp.minimum(scaled[name], 1.0) for name in ("c_std", "c_c", "c_1")}
    return {**scaled, "c_mu": jnp.minimum(scaled["c_mu"], 1.0 - scaled["c_1"])}


def _told(method: Method, key: Any, scores: Scores) -> tuple[Array, Array, Array]:
    fitness, ok, any_ok = parts.settle(scores)
    return (parts.ranks(key, fitness) if method.ranked else fitness), ok, any_ok


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """Inside evosax: it broadcasts `[D]` against `[P, D]` and calls deprecated functions, users may forbid both."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


Functions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _distribution(algorithm: Any, params: Any, method: Method, space: Space, sigma: float) -> Functions:
    center = jnp.asarray(space.center)
    population = algorithm.population_size
    recover = RECOVER.get(method.algorithm, lambda library, rows: library)
    kept = KEEP.get(method.algorithm, ())

    def init(key: Any, prior: Prior | None = None) -> State:
        start = parts.start_of(space, prior)
        with _library():
            library = parts.arrays(algorithm.init(key, (start - center) / sigma, params))
        ids = jnp.full((min(population, parts.ELITES), 2), -1, jnp.int32)
        return State(library, jnp.int32(0), jnp.bool_(False), start, ids, ())

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        with _library():
            wide, library = algorithm.ask(key, state.library, params)
        library = library.replace(**{field: getattr(state.library, field) for field in kept})
        library = parts.keep_if(parts.still_finite(library, state.library), library, state.library)
        genomes = space.project(jnp.nan_to_num(center[None] + sigma * wide))
        parents = parts.shared_parents(state.ids, population)
        return genomes, parents, state._replace(library=library, generation=state.generation + 1)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        rank_key, key = jax.random.split(key)
        fitness, ok, any_ok = _told(method, rank_key, scores)
        rows, told = (genomes - center[None]) / sigma, fitness
        if method.sort:
            order = jnp.argsort(told)
            rows, told = rows[order], told[order]
        with _library():
            library, _ = algorithm.tell(key, rows, told, recover(state.library, rows), params)
        mean = center + sigma * library.mean
        mean = jnp.where(space.bounded, jnp.clip(mean, 0.0, 1.0), mean)
        library = parts.arrays(library.replace(mean=(mean - center) / sigma))
        library = parts.keep_if(any_ok & parts.still_finite(library, state.library), library, state.library)
        ids = parts.elite_ids(state.generation - 1, fitness, ok)
        ids = jnp.where(any_ok, ids, state.ids)
        return state._replace(library=library, told=state.told | any_ok, ids=ids)

    def recommend(state: State) -> Genome:
        return space.project(center + sigma * state.library.mean)

    return init, ask, tell, recommend


def _population(algorithm: Any, params: Any, method: Method, space: Space, sigma: float) -> Functions:
    center = jnp.asarray(space.center)
    population = algorithm.population_size
    # A swarm breeds from the best places its particles saw, not from where they are.
    fields = ("population_best", "fitness_best") if method.algorithm == "PSO" else ("population", "fitness")

    def members(library: Any) -> tuple[Array, Array]:
        return getattr(library, fields[0]), getattr(library, fields[1])

    def init(key: Any, prior: Prior | None = None) -> State:
        start = parts.start_of(space, prior)
        rows = jnp.broadcast_to(((start - center) / sigma)[None], (population, space.dimension))
        with _library():
            library = parts.arrays(algorithm.init(key, rows, jnp.zeros(population), params))
        held = members(library)
        ids = jnp.full((held[1].shape[0], 2), -1, jnp.int32)
        return State(library, jnp.int32(0), jnp.bool_(False), start, ids, held)

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        sample_key, key = jax.random.split(key)
        with _library():
            wide, library = algorithm.ask(key, state.library, params)
        ok = state.told & parts.still_finite(library, state.library)
        library = parts.keep_if(ok, library, state.library)
        fresh = space.sample(sample_key, population).at[0].set(state.start)
        genomes = space.project(jnp.nan_to_num(jnp.where(state.told, center[None] + sigma * wide, fresh)))
        pool = parts.pool_ids(state.ids, state.held[1])
        parents = jnp.where(state.told, parts.shared_parents(pool, population), -1)
        return genomes, parents, state._replace(library=library, generation=state.generation + 1)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        rank_key, init_key, key = jax.random.split(key, 3)
        fitness, _, any_ok = _told(method, rank_key, scores)
        rows = (genomes - center[None]) / sigma
        with _library():
            first = algorithm.init(init_key, rows, fitness, params)
            later, _ = algorithm.tell(key, rows, fitness, state.library, params)
        library = parts.keep_if(state.told, later, parts.keep_if(jnp.bool_(True), first, state.library))
        ok = any_ok & parts.still_finite(library, state.library)
        # GESMR drops members in `ask`: where nothing is told they must come back.
        before = state.library.replace(**dict(zip(fields, state.held, strict=True)))
        library = parts.keep_if(ok, library, before)
        ids = _slot_ids(members(library), state, rows, fitness)
        ids = jnp.where(ok, ids, state.ids)
        return state._replace(library=library, told=state.told | ok, ids=ids, held=members(library))

    def recommend(state: State) -> Genome:
        best = parts.likely_best(state.held[0], state.held[1], jnp.isfinite(state.held[1]))
        return jnp.where(state.told, space.project(center + sigma * best), state.start)

    return init, ask, tell, recommend


def _slot_ids(members: tuple[Array, Array], state: State, rows: Genomes, fitness: Array) -> Array:
    """`[S, 2]` (generation, index) of the members that the library now holds.

    Libraries move members about without saying so; a member is a copy, so its fitness and its first
    numbers tell which told row, or which earlier slot, it is.
    """
    told = jnp.stack([jnp.broadcast_to(state.generation - 1, fitness.shape), jnp.arange(fitness.shape[0])], axis=-1)
    ids = jnp.concatenate([told.astype(jnp.int32), state.ids])
    few = min(8, rows.shape[1])
    known = jnp.concatenate([rows, state.held[0]])[:, :few]
    scores = jnp.concatenate([fitness, state.held[1]])
    same = (members[1][:, None] == scores[None]) & jnp.all(members[0][:, None, :few] == known[None], axis=-1)
    return jnp.where(jnp.any(same, axis=1)[:, None], ids[jnp.argmax(same, axis=1)], -1)

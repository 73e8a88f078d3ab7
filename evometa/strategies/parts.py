"""What every strategy does the same way: checks, failed rows, elites, parents, the likely-best.

All functions over arrays are traceable; those that check arguments are plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from evometa.errors import ConfigError, UsageError, did_you_mean
from evometa.space import Space
from evometa.strategies.catalogue import CATALOGUE
from evometa.types import Array, Failure, Genome, Genomes, Parents, Scores, State

ELITES = 8  # how many elites of a generation are recorded as the parents of the next distribution
POOL = 16  # how many members of a library's hidden population are recorded as possible parents
HUGE = 1e18  # fitness is cut to +-HUGE before a library sees it: its square still fits float32


# --- arguments ---------------------------------------------------------------------------------------


def hyperparameters(name: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` updated by `given`. Raises `UsageError` for a name that `defaults` does not have."""
    for key in given:
        if key not in defaults:
            known = ", ".join(defaults) if defaults else "none"
            raise UsageError(
                f"{name}: unknown hyperparameter {key!r}; expected one of: {known}.{did_you_mean(key, defaults)}"
            )
    return {**defaults, **given}


def check_population(name: str, population: int, minimum: int, even: bool = False) -> int:
    """`population` as an int. Raises `ConfigError` where it is no whole number, too small, or odd for `even`."""
    whole = isinstance(population, int) or (hasattr(population, "__index__") and not isinstance(population, bool))
    if not whole or isinstance(population, bool):
        raise ConfigError(f"{name}: expected a whole number as population, got {population!r}")
    count = int(population)
    if count < minimum:
        raise ConfigError(f"{name}: expected a population of at least {minimum}, got {count}. Try population={minimum}")
    if even and count % 2:
        raise ConfigError(
            f"{name}: expected an even population (it samples in mirrored pairs), got {count}."
            f" Try population={count + 1}"
        )
    return count


def is_traced(value: Any) -> bool:
    """A JAX array in the place of a number: a level above sets it (nest.py), and its value is not to be looked at."""
    return hasattr(value, "aval")


def check_range(name: str, **ranges: tuple[Any, float, float]) -> None:
    """Each `label=(value, low, high)`: raises `ConfigError` unless low <= value <= high (NaN fails)."""
    for label, (value, low, high) in ranges.items():
        if is_traced(value):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ConfigError(f"{name}: expected {label} in {low:g} .. {high:g}, got {value!r}")


def require(name: str, space: Space, searches: frozenset[str]) -> None:
    """Raise `ConfigError`, naming the strategies that can, where `space` has kinds that `name` cannot search."""
    missing = sorted(space.kinds - searches)
    if not missing:
        return
    able = sorted(other for other, entry in CATALOGUE.items() if space.kinds <= entry.searches)
    columns = [column.name for column in space.columns if column.kind in missing]
    advice = f"Use {', '.join(able)}" if able else "No built-in strategy searches all of these kinds together"
    raise ConfigError(
        f"{name}: searches {', '.join(sorted(searches))} columns, got {', '.join(missing)}"
        f" ({', '.join(columns[:4])}{', ...' if len(columns) > 4 else ''}). {advice}"
    )


def start_of(space: Space, prior: Any) -> Genome:
    """`[D]` float32: the prior folded into bounds, or the space's center. Raises `ConfigError` on a bad prior."""
    if prior is None:
        return jnp.asarray(space.center, jnp.float32)
    prior = jnp.asarray(prior, jnp.float32)
    if prior.shape != (space.dimension,):
        raise ConfigError(f"prior: expected a genome of shape ({space.dimension},), got {prior.shape}")
    return space.project(prior)


# --- failed rows -------------------------------------------------------------------------------------


def settle(scores: Scores) -> tuple[Array, Array, Array]:
    """`(fitness [P], ok [P] bool, any_ok bool)` of a single-objective generation.

    Rows that failed or were skipped get the worst finite fitness of the generation: a quarter of
    evosax's algorithms break on NaN or infinity. Where no row is finite, fitness is all zero and
    `any_ok` is False: the caller keeps its state.
    """
    raw = scores.fitness[:, 0]
    ok = jnp.isfinite(raw) & (scores.failure == jnp.int8(Failure.OK))
    cut = jnp.clip(raw, -HUGE, HUGE)
    worst = jnp.max(jnp.where(ok, cut, -HUGE))
    any_ok = jnp.any(ok)
    return jnp.where(ok, cut, jnp.where(any_ok, worst, 0.0)), ok, any_ok


def ranks(key: Any, fitness: Array) -> Array:
    """`[P]` float32 ranks 0 .. P-1, best first, ties broken at random.

    Libraries give tied rows their mean rank, whose recombination weight is about zero: on a plateau
    (an accuracy, a clipped loss) step-size control then shrinks. Random ties leave it unbiased.
    """
    order = jnp.lexsort((jax.random.uniform(key, fitness.shape), fitness))
    return jnp.zeros(fitness.shape, jnp.float32).at[order].set(jnp.arange(fitness.shape[0], dtype=jnp.float32))


def keep_if(flag: Array, new: State, old: State) -> State:
    """`new` where the scalar `flag` is True, else `old`; leaves keep the dtypes of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(flag, jnp.asarray(n, o.dtype), o), new, old)


def still_finite(new: State, old: State) -> Array:
    """False where a number that was finite in `old` no longer is in `new` (a library's update broke down)."""
    flags = [
        jnp.all(jnp.isfinite(n) | ~jnp.isfinite(o))
        for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        if jnp.issubdtype(o.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(flags)) if flags else jnp.bool_(True)


def arrays(state: State) -> State:
    """Every leaf as a strongly typed array (Python scalars and weak types would retrace a scan)."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), state)


# --- parents -----------------------------------------------------------------------------------------


def no_parents(population: int, slots: int = 1) -> Parents:
    """`[P, K, 2]` int32, all -1."""
    return jnp.full((population, slots, 2), -1, jnp.int32)


def shared_parents(ids: Array, population: int) -> Parents:
    """`[P, K, 2]`: the same parents `ids` `[K, 2]` for every child."""
    return jnp.broadcast_to(ids.astype(jnp.int32)[None], (population, *ids.shape))


def pool_ids(ids: Array, fitness: Array, count: int = POOL) -> Array:
    """`[K, 2]`: the ids of the best members of a population, each candidate once; -1 for a repeated one."""
    best = ids[jnp.argsort(fitness)[:count]]
    equal = jnp.all(best[:, None] == best[None], axis=-1)
    repeated = jnp.any(jnp.tril(equal, -1), axis=1)
    return jnp.where(repeated[:, None], -1, best)


def elite_ids(generation: Array, fitness: Array, ok: Array, count: int = ELITES) -> Array:
    """`[K, 2]` int32 (generation, index) of the best finite rows, best first; -1 where there are fewer."""
    best = jnp.argsort(jnp.where(ok, fitness, jnp.inf))[:count].astype(jnp.int32)
    ids = jnp.stack([jnp.broadcast_to(generation, best.shape), best], axis=-1)
    return jnp.where(ok[best][:, None], ids, -1).astype(jnp.int32)


# --- the likely-best ---------------------------------------------------------------------------------


def likely_best(genomes: Genomes, fitness: Array, ok: Array, near: int | None = None) -> Genome:
    """`[D]`: the row whose neighbourhood does best, not the luckiest row.

    A row's own score holds its luck; the mean over its `near` (P/8) nearest finite rows, itself
    included, holds less of it. Nearness is in genome coordinates. Where no row is finite, the first one.
    """
    near = near or max(1, genomes.shape[0] // 8)
    gaps = jnp.sum((genomes[:, None] - genomes[None]) ** 2, axis=-1)
    nearest = jnp.argsort(jnp.where(ok[None, :], gaps, jnp.inf), axis=1)[:, :near]
    return genomes[jnp.argmin(jnp.where(ok, jnp.mean(fitness[nearest], axis=1), jnp.inf))]


def merit(fitness: Array, ok: Array) -> Array:
    """`[P]`: fitness minus the generation's median, +inf for failed rows.

    Evaluation keys change between generations, so only what a row gained on its own generation may be
    compared across generations, and only for strategies whose samples come from one fixed distribution.
    """
    middle = jnp.nanmedian(jnp.where(ok, fitness, jnp.nan))
    return jnp.where(ok, fitness - middle, jnp.inf)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, not fused with what stands around it: that could change the last bit."""
    return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(arguments)))

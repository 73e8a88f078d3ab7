"""Evolution strategies of evosax on the same landscapes at the same budget: what a found update rule is held against.

evosax: Lange 2022, arXiv 2212.04180. Each starts at a uniform place in the box with step size `sigma`; CMA-ES and its
separable form have their usual population of 4 + 3 ln D (Hansen 2016), the learned strategy (Lange et al. 2023, in
evosax's own training of it) that of the domain. Places are folded back into the box and told as they were evaluated.
What is left of the budget after the last whole generation is not used.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.tasks.functions import BOUND, FLOOR
from evometa.tasks.parts.swarm import heights, into_box


class Method(NamedTuple):
    """A strategy of evosax."""

    algorithm: str  # evosax's name for it
    own_population: bool  # 4 + 3 ln D, or the domain's


METHODS = {
    "cma_es": Method("CMA_ES", True),
    "sep_cma_es": Method("Sep_CMA_ES", True),
    "learned_es": Method("LearnedES", False),
}


def search(key: Any, name: str, sigma: Any, landscapes: dict[str, Any], population: int, iterations: int) -> Any:
    """log10(1e-8 + least f seen) `[K]` of the strategy called `name` in at most population x iterations evaluations.

    `sigma` is in units of x. Traceable.
    """
    import evosax.algorithms

    count, size = landscapes["optimum"].shape
    method = METHODS[name]
    each = 4 + math.floor(3 * math.log(size)) if method.own_population else population
    with _library():
        algorithm = getattr(evosax.algorithms, method.algorithm)(each, jnp.zeros(size))
        params = algorithm.default_params

        def on_one(key: Any, optimum: Any, rotation: Any) -> Any:
            own = {**landscapes, "optimum": optimum[None], "rotation": rotation[None]}
            start_key, key = jax.random.split(key)
            start = jax.random.uniform(start_key, (size,), minval=-BOUND, maxval=BOUND)
            state = _arrays(algorithm.init(start_key, start / sigma, params))

            def generation(held: Any, number: Any) -> Any:
                state, best = held
                ask_key, tell_key = jax.random.split(jax.random.fold_in(key, number))
                wide, asked = algorithm.ask(ask_key, state, params)
                x = into_box(sigma * wide, jnp.clip(sigma * state.mean, -BOUND, BOUND))
                f = heights(x[None], own)[0]
                told = _arrays(algorithm.tell(tell_key, x / sigma, f, asked, params)[0])
                # An update that is not finite is not made: the strategy stands where it stood.
                return (_if(_finite(told), told, state), jnp.minimum(best, jnp.min(f))), None

            many = jnp.arange(population * iterations // each)
            return jax.lax.scan(generation, (state, jnp.float32(jnp.inf)), many)[0][1]

        best = jax.vmap(on_one)(jax.random.split(key, count), landscapes["optimum"], landscapes["rotation"])
    return jnp.log10(jnp.float32(FLOOR) + best)


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """Inside evosax: it broadcasts `[D]` against `[P, D]` and calls deprecated functions, users may forbid both."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _arrays(state: Any) -> Any:
    """The library's state without Python numbers, whose types a loop would see change."""

    def array(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(jnp.int32 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float32)

    return jax.tree.map(array, state)


def _finite(state: Any) -> Any:
    # What it has seen best is infinite or not a number at first, and bears on nothing that is used here.
    seen = ("best_solution", "best_fitness", "best_solution_shaped", "best_fitness_shaped")
    used = state.replace(**{name: 0.0 for name in seen if hasattr(state, name)})
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(used)]))


def _if(condition: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

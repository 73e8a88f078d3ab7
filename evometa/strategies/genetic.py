"""A genetic search with true parents: truncation selection, re-judged elites, self-adapted mutation.

Selection and self-adaptation follow Schwefel 1995 ("Evolution and Optimum Seeking": a (mu, lambda)
strategy whose members carry their own step size), line recombination Muhlenbein & Schlierkamp-Voosen
1993 (Evolutionary Computation 1:25), uniform crossover Syswerda 1989.

Why re-judged elites: every generation is judged with its own keys, so a survivor's old score says
nothing beside its children's new ones. The best `elites` rows are therefore asked again, unchanged,
and must win again under the new keys. They appear in the lineage as a mutation of zero size: one
parent, the same genome. Selection never looks beyond one generation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import PLAIN
from evometa.space import Space
from evometa.strategies import parts
from evometa.strategies.catalogue import CATALOGUE
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy


class State(NamedTuple):
    """The last judged generation, best first, and the step size that each member carries."""

    generation: Array  # [] int32: generations asked so far
    told: Array  # [] bool: has a generation with a finite row been told?
    genomes: Genomes  # [P, D]: last told generation, best first (before that: the start in row 0)
    fitness: Array  # [P]: its fitness, failed rows at the worst finite value
    ok: Array  # [P] bool: finite rows
    ids: Array  # [P, 2] int32: their (generation, index)
    steps: Array  # [P]: their mutation strength
    asked: Array  # [P]: mutation strength of the rows asked last


def genetic(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """A population of candidates that breed; searches every kind of column.

    Hyperparameters: `sigma` 0.2, first mutation strength in genome coordinates; `parents` 0.2,
    the fraction of a generation that breeds; `elites` 1, rows asked again unchanged; `crossover` 0.7,
    the probability of two parents; `rate` None, the probability that an integer or categorical column
    mutates (None: 1 / their number, at least 0.1); `smallest` 1e-4, the floor of the mutation strength.
    Raises `UsageError` for other names, `ConfigError` for a population below 4.
    """
    name = "genetic"
    given = parts.hyperparameters(name, CATALOGUE[name].defaults, hyperparameters)
    population = parts.check_population(name, population, CATALOGUE[name].minimum)
    parts.require(name, space, frozenset(PLAIN))
    parts.check_range(
        name, sigma=(given["sigma"], 1e-6, 10.0), parents=(given["parents"], 0.0, 1.0),
        elites=(given["elites"], 0, population - 1), crossover=(given["crossover"], 0.0, 1.0),
        smallest=(given["smallest"], 0.0, 10.0),
    )  # fmt: skip
    breeders = min(population, max(2, round(population * given["parents"])))
    elites = int(given["elites"])
    vary = variation(space, given)

    def init(key: Any, prior: Prior | None = None) -> State:
        del key
        genomes = jnp.broadcast_to(parts.start_of(space, prior)[None], (population, space.dimension))
        steps = jnp.full((population,), given["sigma"], jnp.float32)
        return State(
            jnp.int32(0), jnp.bool_(False), genomes, jnp.zeros((population,), jnp.float32),
            jnp.zeros((population,), bool), jnp.full((population, 2), -1, jnp.int32), steps, steps,
        )  # fmt: skip

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        sample_key, pick_key, pair_key, vary_key = jax.random.split(key, 4)
        rows = jnp.arange(population)
        alive = jnp.sum(state.ok)
        # Failed rows never breed, even where they are among the first `breeders`.
        limit = jnp.clip(alive, 1, breeders)
        drawn = jax.random.randint(pick_key, (population,), 0, limit)
        first = jnp.where(rows < elites, jnp.minimum(rows, limit - 1), drawn)
        coin_key, mate_key = jax.random.split(pair_key)
        # The mate is any other breeder: an offset of 1 .. limit-1 around the circle.
        offset = 1 + jnp.floor(jax.random.uniform(mate_key, (population,)) * (limit - 1)).astype(jnp.int32)
        second = jnp.mod(first + jnp.minimum(offset, limit - 1), limit)
        paired = (jax.random.uniform(coin_key, (population,)) < given["crossover"]) & (limit > 1) & (rows >= elites)

        children, steps = jax.vmap(vary)(
            jax.random.split(vary_key, population),
            state.genomes[first], state.genomes[second], state.steps[first], state.steps[second], paired,
        )  # fmt: skip
        same = rows < elites
        children = jnp.where(same[:, None], state.genomes[first], children)
        steps = jnp.where(same, state.steps[first], steps)
        ids = jnp.stack([state.ids[first], jnp.where(paired[:, None], state.ids[second], -1)], axis=1)

        fresh = space.sample(sample_key, population).at[0].set(state.genomes[0])
        genomes = space.project(jnp.where(state.told, children, fresh))
        parents = jnp.where(state.told, ids, -1).astype(jnp.int32)
        asked = jnp.where(state.told, steps, state.steps)
        return genomes, parents, state._replace(generation=state.generation + 1, asked=asked)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        del key
        fitness, ok, any_ok = parts.settle(scores)
        order = jnp.argsort(jnp.where(ok, fitness, jnp.inf))
        ids = jnp.stack([jnp.broadcast_to(state.generation - 1, order.shape), order], axis=-1).astype(jnp.int32)
        new = state._replace(
            told=jnp.bool_(True), genomes=genomes[order], fitness=fitness[order], ok=ok[order],
            ids=ids, steps=state.asked[order],
        )  # fmt: skip
        return parts.keep_if(any_ok, new, state)

    def recommend(state: State) -> Genome:
        return parts.likely_best(state.genomes, state.fitness, state.ok)

    return Strategy(name, population, init, ask, tell, recommend, traceable=True, searches=frozenset(PLAIN))


def variation(space: Space, given: dict[str, Any]) -> Any:
    """One child: recombine, then mutate. Every column knows its own kind of change."""
    kind = np.concatenate([np.full(c.size, c.kind, object) for c in space.columns])
    choice, whole = kind == "categorical", kind == "integer"
    discrete = choice | whole
    counts = [c.bins if c.kind in ("integer", "categorical") else 1 for c in space.columns]
    bins = np.repeat(counts, [c.size for c in space.columns])
    rate = given["rate"] if given["rate"] is not None else max(0.1, 1.0 / max(1, int(discrete.sum())))
    parts.check_range("genetic", rate=(rate, 0.0, 1.0))
    learning = 1.0 / np.sqrt(2.0 * max(1, space.dimension)) + 0.1  # Schwefel's tau, kept useful where D is large

    def vary(
        key: Any, one: Genome, two: Genome, step_one: Array, step_two: Array, paired: Array
    ) -> tuple[Genome, Array]:
        keys = jax.random.split(key, 8)
        shape = one.shape
        # Line recombination for numbers (blind to rotation), a coin per column for bins; half of all
        # pairs flip the coin for every column, which is what separable problems want.
        along = jax.random.uniform(keys[0], (), minval=-0.25, maxval=1.25)
        coin = jax.random.bernoulli(keys[1], 0.5, shape)
        whole_line = jax.random.bernoulli(keys[2], 0.5)
        swapped = jnp.where(coin, one, two)
        mixed = jnp.where(whole_line & ~discrete, one + along * (two - one), swapped)
        child = jnp.where(paired, mixed, one)
        step = jnp.where(paired, jnp.sqrt(step_one * step_two), step_one)

        step = step * jnp.exp(learning * jax.random.normal(keys[3]))
        step = jnp.clip(step, given["smallest"], 1.0)
        noise = jax.random.normal(keys[4], shape)
        flip = jax.random.bernoulli(keys[5], rate, shape)
        # An integer must be able to leave its bin however small the step has become.
        reach = jnp.where(whole, jnp.maximum(step, 1.0 / bins), step)
        moved = jnp.where(~whole | flip, child + reach * noise, child)
        drawn = jax.random.uniform(keys[6], shape)
        return jnp.where(choice, jnp.where(flip, drawn, child), moved), step

    return vary

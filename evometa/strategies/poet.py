"""POET: environments and their solvers searched together, each environment a niche with a solver of its own.

After Wang et al. 2019 (arXiv:1901.01753) and 2020 (arXiv:2003.08536). A genome holds both: the columns of the group
`environment` (`environment.hills`, ...) say what a world is like, all others are the solver. A candidate's score is its
solver's loss in its own environment; what a solver is worth elsewhere is for the task's held-out domains to say.

The repertoire has N = floor(sqrt(population)) niches; a generation is one of three tables, N x N:

* usually every niche asks its solver again, unchanged, and mutants of it; the best takes the niche;
* every `transfer` generations all solvers are tried in all environments, and the best takes the niche. A solver that
  comes from elsewhere has two parents, itself and the niche's former solver (operator `transfer`);
* every `reproduce` generations niches whose loss is at most `hardest` make N environments, changed a little, and all
  solvers are tried in them. An environment whose best loss lies between `easiest` and `hardest` (the minimal
  criterion) may enter, the most novel first, up to `admitted`; where all niches are taken the oldest is given up.

Recommended is the generalist: the solver of the niche whose loss over all environments, in the last table of
transfers, was lowest on average. Without environment columns there is one niche, and what is left is an elitist search
whose best is judged again in every generation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import PLAIN
from evometa.errors import ConfigError
from evometa.space import Space
from evometa.strategies import parts
from evometa.strategies.catalogue import CATALOGUE
from evometa.strategies.genetic import variation
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy

NAME = "poet"
GROUP = "environment."
LOCAL, TRANSFER, REPRODUCE = range(3)


class State(NamedTuple):
    """The niches, and what is to be remembered of the rows asked last. N niches, P rows."""

    generation: Array  # [] int32: generations asked so far
    genomes: Genomes  # [N, D]: environment and solver of each niche
    ids: Array  # [N, 2] int32: (generation, index) of the row that took the niche
    steps: Array  # [N]: mutation strength of its solver
    loss: Array  # [N]: of its solver in its environment, +inf before it was judged
    standing: Array  # [N]: mean loss of its solver over all environments, +inf before a table of transfers
    born: Array  # [N] int32: generation in which the environment entered, -1 for an empty niche
    home: Array  # [P] int32: niche whose environment the row was asked in
    source: Array  # [P] int32: niche that the row's solver comes from
    plain: Array  # [P] bool: the solver was unchanged
    asked: Array  # [P]: mutation strength of the row
    phase: Array  # [] int32
    counts: Array  # [3] int32: environments refused as too easy, as too hard, given up as the oldest


def poet(space: Space, population: int = 36, **hyperparameters: Any) -> Strategy:
    """Paired open-ended trailblazer: a repertoire of environments with a solver each.

    Hyperparameters: `transfer` 4 and `reproduce` 6, the generations between tables; `easiest` 0.15 and `hardest` 0.7,
    the minimal criterion on an environment's best loss; `admitted` 2, environments that may enter at once; `reach`
    0.15, how far an environment moves, in genome coordinates; `neighbours` 3 of a novelty; `sigma` 0.2, `smallest`
    1e-4 and `rate` None, as in `genetic`, for solvers. Raises `UsageError` for other names, `ConfigError` for values
    out of range and for programs.
    """
    given = parts.hyperparameters(NAME, CATALOGUE[NAME].defaults, hyperparameters)
    population = parts.check_population(NAME, population, CATALOGUE[NAME].minimum)
    parts.require(NAME, space, frozenset(PLAIN))
    parts.check_range(
        NAME, transfer=(given["transfer"], 1, 10**6), reproduce=(given["reproduce"], 1, 10**6),
        easiest=(given["easiest"], -math.inf, math.inf), hardest=(given["hardest"], -math.inf, math.inf),
        admitted=(given["admitted"], 1, 64), reach=(given["reach"], 1e-6, 10.0),
        neighbours=(given["neighbours"], 1, 1000), sigma=(given["sigma"], 1e-6, 10.0),
        smallest=(given["smallest"], 0.0, 10.0),
    )  # fmt: skip
    if not parts.is_traced(given["easiest"]) and not given["easiest"] < given["hardest"]:
        raise ConfigError(
            f"{NAME}: expected easiest < hardest, got {given['easiest']:g} and {given['hardest']:g}:"
            " no environment would meet the minimal criterion"
        )
    search = _Search(space, population, given)
    if search.environment.all():
        raise ConfigError(f"{NAME}: expected a column outside the group {GROUP[:-1]!r}: there is no solver to search")
    return Strategy(
        NAME, population, search.init, search.ask, search.tell, search.recommend, traceable=True,
        searches=frozenset(PLAIN), operators=("initial", "mutation", "transfer"), notes=search.notes,
    )  # fmt: skip


class _Search:
    """What `poet` closes over."""

    def __init__(self, space: Space, population: int, given: dict[str, Any]) -> None:
        self.space, self.population, self.given = space, population, given
        self.niches = math.isqrt(population)
        sizes = [column.size for column in space.columns]
        self.environment = np.repeat([column.name.startswith(GROUP) for column in space.columns], sizes)  # [D] bool
        self.vary = variation(space, {**given, "parents": 0.0})
        # A bin must be left however small the reach, as in genetic.py; a choice is drawn anew.
        bins = [column.bins if column.kind in ("integer", "categorical") else 1 for column in space.columns]
        least = np.where(np.repeat(bins, sizes) > 1, 1.0 / np.repeat(bins, sizes), 0.0)
        self.reach = np.maximum(given["reach"], least).astype(np.float32)

    # --- the three functions -----------------------------------------------------------------------

    def init(self, key: Any, prior: Prior | None = None) -> State:
        del key
        count, rows = self.niches, self.population
        start = parts.start_of(self.space, prior)
        none = jnp.full((count,), -1, jnp.int32)
        blank = jnp.zeros((rows,), jnp.int32)
        return State(
            generation=jnp.int32(0),
            genomes=jnp.broadcast_to(start[None], (count, self.space.dimension)),
            ids=jnp.full((count, 2), -1, jnp.int32),
            steps=jnp.full((count,), self.given["sigma"], jnp.float32),
            loss=jnp.full((count,), jnp.inf, jnp.float32),
            standing=jnp.full((count,), jnp.inf, jnp.float32),
            born=none.at[0].set(0),
            home=blank, source=blank, plain=jnp.zeros((rows,), bool), asked=jnp.zeros((rows,), jnp.float32),
            phase=jnp.int32(LOCAL), counts=jnp.zeros((3,), jnp.int32),
        )  # fmt: skip

    def ask(self, key: Any, state: State) -> tuple[Genomes, Parents, State]:
        count, rows = self.niches, jnp.arange(self.population)
        step_key, pick_key, move_key = jax.random.split(key, 3)
        phase = self._phase(state.generation)
        taken = state.born >= 0
        alive = jnp.sum(taken)
        niches = jnp.argsort(~taken, stable=True).astype(jnp.int32)  # taken ones first
        line, place = rows // count, rows % count  # rows behind the table go on counting: they are mutants
        home = niches[line % alive]
        # In a table of transfers or of new environments, place j holds the solver of the j-th niche.
        inside = (line < count) & (place < alive)
        crossed = inside & ((phase == REPRODUCE) | ((phase == TRANSFER) & (line < alive)))
        source = jnp.where(crossed, niches[place % alive], home)
        again = (phase == LOCAL) & (line < alive) & (place == 0)
        plain = crossed | again

        # New environments, one per line: parents are niches that are not too hard, or any where all are.
        able = taken & (state.loss <= self.given["hardest"])
        weights = jnp.where(jnp.any(able), able, taken)
        parent = jax.random.categorical(pick_key, jnp.where(weights, 0.0, -jnp.inf), shape=(count,)).astype(jnp.int32)
        born = self._moved(move_key, state.genomes[parent])
        line_of = jnp.minimum(line, count - 1)
        home = jnp.where((phase == REPRODUCE) & (line < count), parent[line_of], home)
        world = jnp.where(((phase == REPRODUCE) & (line < count))[:, None], born[line_of], state.genomes[home])

        solvers = state.genomes[source]
        keys = jax.random.split(step_key, self.population)
        made, steps = jax.vmap(lambda k, g, s: self.vary(k, g, g, s, s, jnp.bool_(False)))(
            keys, solvers, state.steps[source]
        )
        made = jnp.where(plain[:, None], solvers, made)
        genomes = self.space.project(jnp.where(self.environment[None], world, made))
        first, second = state.ids[source], jnp.where((source != home)[:, None], state.ids[home], -1)
        return genomes, jnp.stack([first, second], axis=1).astype(jnp.int32), state._replace(
            generation=state.generation + 1, home=home, source=source, plain=plain, phase=phase,
            asked=jnp.where(plain, state.steps[source], steps),
        )  # fmt: skip

    def tell(self, key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        del key
        fitness, ok, any_ok = parts.settle(scores)
        fitness = jnp.where(ok, fitness, jnp.inf)
        settled, entered = self._take(state, genomes, fitness), self._enter(state, genomes, fitness)
        new = jax.tree.map(lambda a, b: jnp.where(state.phase == REPRODUCE, b, a), settled, entered)
        return parts.keep_if(any_ok, new, state)

    def recommend(self, state: State) -> Genome:
        """The generalist; before any table of transfers, the first niche's."""
        return state.genomes[jnp.argmin(jnp.where(state.born >= 0, state.standing, jnp.inf))]

    def notes(self, state: State) -> list[str]:
        """What a person should know of a search."""
        counts, said = np.asarray(state.counts), []
        if not self.environment.any():
            said.append(f"the space has no column of the group {GROUP[:-1]!r}: one environment, nothing to transfer")
        elif counts[2]:
            said.append(f"all {self.niches} niches were taken: the oldest environments were given up for new ones")
        return said

    # --- the three tables --------------------------------------------------------------------------

    def _phase(self, generation: Array) -> Array:
        if not self.environment.any():
            return jnp.int32(LOCAL)
        begun = generation > 0
        transfers = begun & (generation % self.given["transfer"] == 0)
        reproduces = begun & (generation % self.given["reproduce"] == self.given["reproduce"] - 1)
        return jnp.where(reproduces, REPRODUCE, jnp.where(transfers, TRANSFER, LOCAL)).astype(jnp.int32)

    def _moved(self, key: Any, genomes: Genomes) -> Genomes:
        """Environments a step away: each coordinate in one of two cases, at least one."""
        keys = jax.random.split(key, 3)
        shape = genomes.shape
        chosen = jax.random.bernoulli(keys[0], 0.5, shape) & self.environment[None]
        one = jax.random.categorical(keys[1], jnp.where(self.environment, 0.0, -1e9)[None], shape=(shape[0],))
        chosen = chosen | (jnp.arange(shape[1])[None] == one[:, None])
        return jnp.where(chosen, genomes + self.reach[None] * jax.random.normal(keys[2], shape), genomes)

    def _take(self, state: State, genomes: Genomes, fitness: Array) -> State:
        """The best row of each environment takes its niche; of equal ones the solver that has it already."""
        own = state.plain & (state.source == state.home)
        mine = state.home[None] == jnp.arange(self.niches)[:, None]
        held = jnp.where(mine, fitness[None], jnp.inf)
        least = jnp.min(held, axis=1)
        row = jnp.argmax((held == least[:, None]) * (1 + own[None]), axis=1)
        good = jnp.isfinite(least) & (state.born >= 0)
        named = jnp.stack([jnp.broadcast_to(state.generation - 1, row.shape), row], axis=1).astype(jnp.int32)
        # Standing: the mean over a table's column. A solver that failed anywhere stands at infinity.
        crossed = state.plain & (state.phase == TRANSFER)
        column = crossed[None] & (state.source[None] == jnp.arange(self.niches)[:, None])
        mean = jnp.sum(jnp.where(column, fitness[None], 0.0), axis=1) / jnp.maximum(jnp.sum(column, axis=1), 1)
        return state._replace(
            genomes=jnp.where(good[:, None], genomes[row], state.genomes),
            ids=jnp.where(good[:, None], named, state.ids),
            steps=jnp.where(good, state.asked[row], state.steps),
            loss=jnp.where(good, least, state.loss),
            standing=jnp.where(jnp.any(column, axis=1), mean, state.standing),
        )

    def _enter(self, state: State, genomes: Genomes, fitness: Array) -> State:
        """New environments that meet the minimal criterion take niches, the most novel first."""
        count = self.niches
        table = jnp.where(state.plain[: count * count], fitness[: count * count], jnp.inf).reshape(count, count)
        best, row = jnp.min(table, axis=1), jnp.arange(count) * count + jnp.argmin(table, axis=1)
        easy, hard = best < self.given["easiest"], ~(best <= self.given["hardest"])
        free = ~easy & ~hard
        counts = state.counts + jnp.stack([jnp.sum(easy), jnp.sum(hard), 0]).astype(jnp.int32)
        state = state._replace(counts=counts)
        worlds = jnp.where(self.environment[None], genomes[row], 0.0)
        for _ in range(min(int(self.given["admitted"]), count)):
            taken = state.born >= 0
            held = jnp.where(self.environment[None], state.genomes, 0.0)
            gaps = jnp.sqrt(jnp.sum((worlds[:, None] - held[None]) ** 2, axis=-1))
            nearest = jnp.sort(jnp.where(taken[None], gaps, jnp.inf), axis=1)[:, : int(self.given["neighbours"])]
            some = jnp.isfinite(nearest)
            novelty = jnp.sum(jnp.where(some, nearest, 0.0), axis=1) / jnp.maximum(jnp.sum(some, axis=1), 1)
            child = jnp.argmax(jnp.where(free, novelty, -1.0))
            niche = jnp.argmin(state.born)  # an empty one, or the oldest
            enters = free[child]
            moved = state._replace(
                counts=state.counts.at[2].add(taken[niche].astype(jnp.int32)),
                genomes=state.genomes.at[niche].set(genomes[row[child]]),
                ids=state.ids.at[niche].set(jnp.stack([state.generation - 1, row[child]]).astype(jnp.int32)),
                steps=state.steps.at[niche].set(state.asked[row[child]]),
                loss=state.loss.at[niche].set(best[child]),
                standing=state.standing.at[niche].set(jnp.inf),
                born=state.born.at[niche].set(state.generation - 1),
            )
            state = parts.keep_if(enters, moved, state)
            free = free & (jnp.arange(count) != child)
        return state

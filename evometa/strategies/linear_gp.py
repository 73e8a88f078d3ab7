"""Linear genetic programming over program columns and whatever columns stand beside them.

Programs vary as in Brameier & Banzhaf 2007 ("Linear Genetic Programming"; see programs/vary.py), other columns as in
`genetic`. A generation consists, in this order, of

* elites, asked again unchanged, for scores of different generations are not comparable (see genetic.py): first the
  champion, then challengers. The best new rows of a generation become challengers. A challenger that is better than
  the champion on average over the generations in which both were asked again becomes the champion; its discovery,
  where luck had its part, does not count. The champion is what is recommended;
* tuned rows: the champion's programs with constants and numeric columns from an inner CMA-ES (Hansen & Ostermeier
  2001; the separable one of Ros & Hansen 2008 for more than 100 numbers), which starts anew where the
  champion's effective instructions have changed. Only the best of them breeds;
* children of parents that won a tournament, and random immigrants. What a child does is hashed (programs/behaviour.py;
  other columns to three digits): where a program like it was evaluated, or stands in an earlier row, it is mutated
  further, up to `tries` times, and then taken as it is. Hashes are kept in a ring: the oldest are forgotten.

With `islands` children come from parents of one island (linear_gp_parents.py), and the best row of each is asked again
unchanged: no challenger, but its children. Champion, challengers and hashes are of all islands; tuned rows his.

Parsimony: ranks are those of the fitness plus a small penalty on effective instructions, in units of the
generation's median absolute deviation; of equal ones the shorter is first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import KINDS
from evometa.errors import ConfigError
from evometa.programs.code import FARTHEST
from evometa.programs.grow import grow
from evometa.programs.vary import crossover, mutate
from evometa.space import Space, weights
from evometa.strategies import evosax_adapter, genetic, parts
from evometa.strategies.catalogue import CATALOGUE
from evometa.strategies.linear_gp_layout import Layout
from evometa.strategies.linear_gp_parents import STANDINGS, alone, deviation, draw, put, standings
from evometa.strategies.linear_gp_seen import UNKNOWN, first_new, remember
from evometa.types import Array, Failure, Genome, Genomes, Parents, Prior, Scores, Strategy

NAME = "linear_gp"
SMALLEST = 8  # rows of an island, at least
FIRST = 3  # most mutations of a child before its behaviour is looked at
LEAST_TUNED = 4  # fewer tuned rows are none: CMA-ES needs some to compare
FULL_COVARIANCE = 100  # more numbers than this are tuned by the separable CMA-ES


class State(NamedTuple):
    """The last judged generation, the elites with their records, the hashes seen and the inner strategy."""

    generation: Array  # [] int32: generations asked so far
    told: Array  # [] bool: has a generation with a finite row been told?
    genomes: Genomes  # [P, D]: last told generation, those that may breed first, best first
    ids: Array  # [P, 2] int32: their (generation, index)
    steps: Array  # [P]: their mutation strength
    standing: Array  # [S, P] int32: their order by some cells, S draws of them; S is 0 where fitness decides
    islands: Array  # [P] int32: where they live; the rows of an island stand together
    breeders: Array  # [I] int32: how many of each island may breed
    elites: Genomes  # [E, D]: the champion (at first the start), then challengers
    elite_ids: Array  # [E, 2] int32
    elite_steps: Array  # [E]
    elite_islands: Array  # [E] int32
    held: Array  # [E] bool: is there an elite in this slot?
    duels: Array  # [E] int32: generations in which challenger and champion were both asked again
    lead: Array  # [E] float32: sum of the challenger's fitness minus the champion's, in MADs; negative is better
    asked: Array  # [P]: mutation strength of the rows asked last
    homes: Array  # [P] int32: their islands
    hashes: Array  # [P, 2] uint32: behaviour of the rows asked last
    seen: Array  # [remembered, 2] uint32: ring of the behaviours evaluated, tuned rows left out
    end: Array  # [] int32: where the ring goes on
    tuner: Any  # state of the inner strategy


def linear_gp(space: Space, population: int = 64, **hyperparameters: Any) -> Strategy:
    """Genetic programming for program columns; searches every kind of column.

    Hyperparameters: `crossover` 0.4, the probability of two parents; `tournament` 3, rows that compete to be a parent;
    `islands` 1, shares of the population that breed apart, and `migration` 0.02, the probability that a child's parents
    are from an island drawn at random (linear_gp_parents.py; several where searches end at the same mistake); `cases`
    0, cells whose losses decide a tournament, drawn at random for each (0: the fitness does); `together` 0.0, the
    probability that where a program changes, what stands beside it changes too; `elites` 3, rows asked again unchanged,
    at least 1; `tuned` 0.25, the share of rows of the inner CMA-ES (below 4 rows, or where nothing is to be tuned:
    none); `grow` 0.0, the share of mutations that grow a program (programs/grow.py; worth a try, 0.25 say, where a
    search starts from nothing); `fresh` 0.1, the share of random immigrants; `warm` 0.5, the share of the first
    generation that are mutants of the start (none where its programs do nothing); `tries` 4, variants of a child until
    its behaviour is new; `remembered` 4096, behaviours kept; `parsimony` 0.02, penalty of a program of full length in
    median absolute deviations; `sigma` 0.1, first strength of changes to numbers, in genome coordinates; `smallest`
    1e-4, its floor; `rate` None, as in `genetic`. Raises `UsageError` for other names, `ConfigError` for a population
    below 8 and values out of range.
    """
    given = parts.hyperparameters(NAME, CATALOGUE[NAME].defaults, hyperparameters)
    population = parts.check_population(NAME, population, CATALOGUE[NAME].minimum)
    share = (0.0, 1.0)
    parts.check_range(
        NAME, crossover=(given["crossover"], *share), tournament=(given["tournament"], 1, population),
        islands=(given["islands"], 1, max(1, population // SMALLEST)), migration=(given["migration"], *share),
        cases=(given["cases"], 0, 2**16), together=(given["together"], *share),
        elites=(given["elites"], 1, population // 2), tuned=(given["tuned"], 0.0, 0.5), grow=(given["grow"], *share),
        fresh=(given["fresh"], *share), warm=(given["warm"], *share), tries=(given["tries"], 1, 64),
        remembered=(given["remembered"], 1, 2**20), parsimony=(given["parsimony"], 0.0, 10.0),
        sigma=(given["sigma"], 1e-6, 10.0), smallest=(given["smallest"], 0.0, 10.0),
    )  # fmt: skip
    rule = _Rules(space, population, given)
    return Strategy(
        NAME, population, rule.init, rule.ask, rule.tell, rule.recommend, traceable=True, searches=frozenset(KINDS),
        operators=("random", "mutation", "crossover"),
    )  # fmt: skip


class _Rules:
    """The functions of the strategy, and what they know of the space."""

    def __init__(self, space: Space, population: int, given: dict[str, Any]) -> None:
        self.space, self.population, self.given = space, population, given
        self.layout = layout = Layout(space)
        self.programs = layout.programs
        self.elites, self.tries = int(given["elites"]), int(given["tries"]) if self.programs else 1
        self.vary: Callable[..., Any] | None = None
        if layout.columns:
            self.vary = genetic.variation(Space(layout.columns), given)
        count = round(population * given["tuned"])
        self.tuned = count if count >= LEAST_TUNED and len(layout.numbers) else 0
        self.inner: Strategy | None = None
        if self.tuned:
            constants = {"constants of programs": weights(len(layout.constants))} if len(layout.constants) else {}
            method = "cma_es" if len(layout.numbers) <= FULL_COVARIANCE else "sep_cma_es"
            self.inner = evosax_adapter.adapt(
                method, Space({**constants, **layout.tunable}), self.tuned, sigma=given["sigma"]
            )
        # The rows after those of the inner strategy: the best of each island, where there are several.
        islands = int(given["islands"])
        first = self.elites + self.tuned
        self.staying = slice(first, first + (islands if islands > 1 else 0))
        if self.staying.stop > population:
            raise ConfigError(
                f"{NAME}: expected elites ({self.elites}), tuned rows ({self.tuned}) and the best of each island"
                f" ({islands}) within a population of {population}; they are {self.staying.stop}"
            )
        self.immigrants = max(1, round(population * given["fresh"])) if given["fresh"] else 0

    # --- the four functions -----------------------------------------------------------------------

    def init(self, key: Any, prior: Prior | None = None) -> State:
        """Nothing is known but the start."""
        start, count, elites = parts.start_of(self.space, prior), self.population, self.elites
        draws = STANDINGS if self.given["cases"] else 0
        steps = jnp.full((count,), self.given["sigma"], jnp.float32)
        return State(
            jnp.int32(0), jnp.bool_(False), jnp.broadcast_to(start[None], (count, self.space.dimension)),
            jnp.full((count, 2), -1, jnp.int32), steps, jnp.zeros((draws, count), jnp.int32),
            jnp.zeros(count, jnp.int32), jnp.zeros(int(self.given["islands"]), jnp.int32),
            jnp.broadcast_to(start[None], (elites, self.space.dimension)), jnp.full((elites, 2), -1, jnp.int32),
            steps[:elites], jnp.zeros(elites, jnp.int32), jnp.arange(elites) == 0, jnp.zeros(elites, jnp.int32),
            jnp.zeros(elites, jnp.float32), steps, jnp.zeros(count, jnp.int32),
            jnp.full((count, 2), UNKNOWN, jnp.uint32),
            jnp.full((int(self.given["remembered"]), 2), UNKNOWN, jnp.uint32), jnp.int32(0), self._tuner(key, start),
        )  # fmt: skip

    def ask(self, key: Any, state: State) -> tuple[Genomes, Parents, State]:
        """Elites, tuned rows, children, immigrants."""
        keys = jax.random.split(key, 5)
        rows, count = jnp.arange(self.population), self.population
        fresh = self.space.sample(keys[0], count)
        rates = int(self.given["tournament"]), self.given["crossover"], self.given["migration"]
        homes, first, second, paired, there = draw(keys[1], state.islands, state.breeders, state.standing, *rates)
        # The first generation: mutants of the start, then random ones; later the last rows are the immigrants.
        begins = self.layout.valid(state.elites[:1])[0] & (
            self.layout.length(state.elites[0]) > 0 if self.programs else True
        )
        warm = (rows < round(count * self.given["warm"])) & begins
        born = jnp.where(state.told, (rows < count - self.immigrants) & there, warm)
        paired = paired & state.told & born
        one, two = self.layout.sound(state.genomes[first], fresh), self.layout.sound(state.genomes[second], fresh)
        one, two = jnp.where(born[:, None], one, fresh), jnp.where(paired[:, None], two, fresh)
        variants, steps = self._children(keys[2], one, two, state.steps[first], state.steps[second], paired, born)

        tunes, stays, bests = self._tunes(state), *self._stays(state)
        children, hashes = self._new(variants, state, self._again(state, tunes))
        ids = jnp.stack([state.ids[first], jnp.where(paired[:, None], state.ids[second], -1)], axis=1)
        ids = jnp.where((born & state.told)[:, None, None], ids, -1)
        made = (children, ids, steps, homes)

        # Before anything was told elite 0 is the start itself; it has no parents and its behaviour is new.
        elites = (state.elites, alone(state.elite_ids), state.elite_steps, state.elite_islands)
        made = put(made, slice(0, self.elites), state.held, elites)
        tuner = state.tuner
        if self.inner:
            proposed, _, tuner = parts.apart(functools.partial(self.inner.ask, keys[3]), tuner)
            champion = [jnp.broadcast_to(part[:1], (self.tuned, *part.shape[1:])) for part in elites]
            tuned = champion[0].at[:, self.layout.numbers].set(self._clipped(proposed))
            there = jnp.broadcast_to(tunes, (self.tuned,))
            made = put(made, slice(self.elites, self.elites + self.tuned), there, (tuned, *champion[1:]))
            tuner = parts.keep_if(tunes, tuner, state.tuner)
        best = (state.genomes[bests], alone(state.ids[bests]), state.steps[bests], state.islands[bests])
        children, ids, steps, homes = put(made, self.staying, stays, best)
        return self.space.project(children), ids.astype(jnp.int32), state._replace(
            generation=state.generation + 1, asked=steps, homes=homes, hashes=hashes, tuner=tuner
        )  # fmt: skip

    def tell(self, key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        """Rank the rows, let champion and challengers duel, remember what was evaluated, tell the inner strategy."""
        keys = jax.random.split(key, 3)
        fitness, ok, any_ok = parts.settle(scores)
        rows = jnp.arange(self.population)
        unit = deviation(jnp.where(ok, fitness, jnp.nan))
        lengths = jax.vmap(self.layout.length)(genomes)
        most = sum(vocabulary.length for vocabulary, _ in self.programs) or 1
        penalty = jax.lax.optimization_barrier(self.given["parsimony"] * unit * lengths / most)
        penalised = jnp.where(ok, fitness + penalty, jnp.inf)
        ties = jax.random.uniform(keys[0], (self.population,))
        order = jnp.lexsort((ties, lengths, penalised))
        rank = jnp.zeros(self.population, jnp.int32).at[order].set(rows.astype(jnp.int32))
        # Of the tuned rows, all of one structure, the best alone may breed.
        tunes = self._tunes(state)
        tuned = tunes & (rows >= self.elites) & (rows < self.elites + self.tuned)
        best_tuned = jnp.min(jnp.where(tuned, rank, self.population))
        breeds = ok & (~tuned | (rank == best_tuned))
        order = jnp.lexsort((rank, ~breeds, state.homes))
        standing = state.standing
        if standing.shape[0]:
            told = (scores.loss, ok, lengths / most, self.given["parsimony"], int(self.given["cases"]))
            standing = standings(jax.random.fold_in(keys[0], 1), *told)[:, order]

        own = jnp.stack([jnp.broadcast_to(state.generation - 1, rows.shape), rows], axis=-1).astype(jnp.int32)
        new = self._duel(state, genomes, fitness, ok, unit, rank, own)
        new = new._replace(
            told=jnp.bool_(True), genomes=genomes[order], ids=own[order], steps=state.asked[order],
            standing=standing, islands=state.homes[order],
            breeders=jnp.zeros_like(state.breeders).at[state.homes].add(breeds),
        )  # fmt: skip
        seen, end = remember(state.seen, state.end, state.hashes, scores.failure != jnp.int8(Failure.SKIPPED))
        new = new._replace(seen=seen, end=end)
        if self.inner:
            rows_of = slice(self.elites, self.elites + self.tuned)
            share = jax.tree.map(lambda leaf: leaf[rows_of], scores)
            rows_told = genomes[rows_of][:, self.layout.numbers]
            after = parts.apart(functools.partial(self.inner.tell, keys[1]), state.tuner, rows_told, share)
            same = tunes & self.layout.same_structure(state.elites[0], new.elites[0])
            new = new._replace(tuner=parts.keep_if(same, after, self._tuner(keys[2], new.elites[0])))
        return parts.keep_if(any_ok, new, state)

    def recommend(self, state: State) -> Genome:
        """The champion; before anything was told, the start."""
        return state.elites[0]

    # --- asking -----------------------------------------------------------------------------------

    def _children(
        self, key: Any, one: Genomes, two: Genomes, step_one: Array, step_two: Array, paired: Array, born: Array
    ) -> tuple[Array, Array]:
        """`[tries, P, D]` variants of every child, each a mutation away from the one before, and its strength `[P]`."""
        keys = jax.random.split(key, 5)
        steps = jnp.where(paired, jnp.sqrt(step_one * step_two), step_one)
        child = one
        luck = jax.random.uniform(keys[0], (2, self.population))
        together = jax.random.uniform(jax.random.fold_in(keys[0], 1), (self.population,)) < self.given["together"]
        # A third of the children of one parent leave its programs as they are and change what stands beside them.
        numbers_alone = (luck[0] < 0.33) & ~paired & born & (self.vary is not None)
        if self.vary:
            # Compiled by itself: what it is fused with could change the last bit of a sum of products.
            pairs = (one[:, self.layout.beside], two[:, self.layout.beside], step_one, step_two, paired)
            own = jax.random.split(keys[1], self.population)
            varied, steps = parts.apart(functools.partial(jax.vmap(self.vary), own), *pairs)
            moves = born & (paired | numbers_alone | together) if self.programs else born
            child = child.at[:, self.layout.beside].set(jnp.where(moves[:, None], varied, one[:, self.layout.beside]))
        steps = jnp.where(born, jnp.clip(steps, self.given["smallest"], 1.0), self.given["sigma"])
        if not self.programs:
            return child[None], steps
        for number, (vocabulary, part) in enumerate(self.programs):
            pair_keys = jax.random.split(jax.random.fold_in(keys[2], number), self.population)
            crossed = jax.vmap(lambda k, a, b, v=vocabulary: crossover(v, k, a, b))(
                pair_keys, one[:, part], two[:, part]
            )
            child = child.at[:, part].set(jnp.where(paired[:, None], crossed, child[:, part]))
        again = (luck[1] < 0.3).astype(jnp.int32) + (luck[1] < 0.08)
        times = jnp.where(paired, (luck[1] < 0.5).astype(jnp.int32), 1 + again)
        times = jnp.where(born & ~numbers_alone, times, 0)

        def mutation(held: Genomes, turn: Any) -> tuple[Genomes, Genomes]:
            own = jax.random.fold_in(keys[3], turn)
            due = (turn < times) | (turn >= FIRST)
            which = jax.random.randint(own, (self.population,), 0, len(self.programs))
            for number, (vocabulary, part) in enumerate(self.programs):
                row_keys = jax.random.split(jax.random.fold_in(own, number + 1), self.population)
                other = jax.vmap(lambda k, n, s, v=vocabulary: mutate(v, k, n, s)[0])(row_keys, held[:, part], steps)
                if self.given["grow"]:
                    grown = jax.vmap(lambda k, n, v=vocabulary: grow(v, jax.random.fold_in(k, 1), n))(
                        row_keys, held[:, part]
                    )
                    chance = jax.random.uniform(jax.random.fold_in(own, len(self.programs) + 1), (self.population, 1))
                    other = jnp.where(chance < self.given["grow"], grown, other)
                held = held.at[:, part].set(jnp.where((due & (which == number))[:, None], other, held[:, part]))
            return held, held

        _, chain = jax.lax.scan(mutation, child, jnp.arange(FIRST + self.tries - 1))
        return chain[FIRST - 1 :], steps

    def _new(self, variants: Array, state: State, exempt: Array) -> tuple[Genomes, Array]:
        """`[P, D]`: of each row the first variant whose behaviour is new, else the last; and the hashes `[P, 2]`."""
        tries, count = variants.shape[:2]
        if not self.programs:
            return variants[0], jnp.full((count, 2), UNKNOWN, jnp.uint32)
        hashes = self.layout.hashes(jnp.concatenate([variants.reshape(tries * count, -1), state.elites]))
        elites = jnp.where(state.held[:, None], hashes[tries * count :], jnp.uint32(UNKNOWN))
        taken, picks = first_new(hashes[: tries * count].reshape(tries, count, 2), state.seen, elites, exempt)
        return variants[picks, jnp.arange(count)], taken

    # --- telling ----------------------------------------------------------------------------------

    def _duel(
        self, state: State, genomes: Genomes, fitness: Array, ok: Array, unit: Array, rank: Array, own: Array
    ) -> State:
        """Champion and challengers after this generation."""
        count = self.elites
        slots = jnp.arange(count)
        gap = fitness[:count] - fitness[0]
        gap = jnp.clip(jnp.where(unit > 0, gap / jnp.where(unit > 0, unit, 1.0), jnp.sign(gap)), -3.0, 3.0)
        rivals = state.held & (slots > 0)
        duels = jnp.where(rivals, state.duels + 1, 0)
        lead = jnp.where(rivals, state.lead + gap, 0.0)
        mean = jnp.where(rivals, lead / jnp.maximum(duels, 1), jnp.inf)
        best = jnp.argmin(mean)
        deposed = mean[best] < 0
        # The old champion takes the winner's slot, with the same record the other way round, and may win once more.
        swap = jnp.where(deposed & (slots == 0), best, jnp.where(deposed & (slots == best), 0, slots))
        gained = jax.lax.optimization_barrier(mean[best] * duels)
        lead = jnp.where(deposed, jnp.where(slots == best, -lead[best], lead - gained), lead)
        lead = jnp.where(slots == 0, 0.0, lead)
        beaten = rivals & (lead >= 0) & ~(deposed & (slots == best))
        held = state.held & ~beaten
        asked, ids = genomes[:count][swap], own[:count][swap]
        steps, homes = state.asked[:count][swap], state.homes[:count][swap]

        # The best rows that were no elites fill the empty slots; a champion that failed gives way to the best of them.
        rows = jnp.arange(self.population)
        again = self._again(state, jnp.bool_(False))
        waiting = jnp.where(ok & ~again, rank, self.population + rows)
        queue = jnp.argsort(waiting)[: count + 1]
        able = waiting[queue] < self.population
        lost = ~ok[:count][swap][0] & able[0]
        empty = ~held | (lost & (slots == 0))
        turn = jnp.minimum(jnp.cumsum(empty) - 1, count)
        comes, newcomer = empty & able[turn], queue[turn]
        return state._replace(
            elites=jnp.where(comes[:, None], genomes[newcomer], asked),
            elite_ids=jnp.where(comes[:, None], own[newcomer], ids),
            elite_steps=jnp.where(comes, state.asked[newcomer], steps),
            elite_islands=jnp.where(comes, state.homes[newcomer], homes),
            held=held | comes, duels=jnp.where(comes | (slots == 0), 0, duels), lead=jnp.where(comes, 0.0, lead),
        )  # fmt: skip

    def _stays(self, state: State) -> tuple[Array, Array]:
        """Which islands have a best row, to be asked again, and where it stands; both empty for one island."""
        several = jnp.arange(self.staying.stop - self.staying.start)
        return state.told & (state.breeders[several] > 0), jnp.searchsorted(state.islands, several)

    def _again(self, state: State, tunes: Array) -> Array:
        """`[P]` bool: rows that are no children: elites, tuned rows, the best of islands."""
        rest = jnp.zeros(self.population - self.staying.stop, bool)
        return jnp.concatenate([state.held, jnp.broadcast_to(tunes, (self.tuned,)), self._stays(state)[0], rest])

    def _tunes(self, state: State) -> Array:
        """Is there anything to tune: does the champion read a constant, or do numbers stand beside its programs?"""
        if not self.inner:
            return jnp.bool_(False)
        more = len(self.layout.numbers) > len(self.layout.constants)
        return state.told & (more | self.layout.reads_constants(state.elites[0]))

    def _tuner(self, key: Any, genome: Genome) -> Any:
        return parts.arrays(self.inner.init(key, genome[self.layout.numbers])) if self.inner else ()

    def _clipped(self, numbers: Array) -> Array:
        free = np.arange(len(self.layout.numbers)) < len(self.layout.constants)
        return jnp.where(jnp.asarray(free)[None], jnp.clip(numbers, -FARTHEST, FARTHEST), numbers)

"""Open-ended search: a repertoire of every viable candidate, from which parents are drawn for more than their score.

After the Darwin Goedel Machine (Zhang et al. 2025, arXiv:2505.22954), ShinkaEvolve (Lange et al. 2025,
arXiv:2509.19349) and the Huxley-Goedel Machine (Wang et al. 2025, arXiv:2510.21614), without a language model: genomes
are numbers and programs, and what varies them is in their genome too. Four parts:

* who is kept (open_ended_repertoire.py): every candidate that meets the minimal criterion, as a stepping stone, up to
  `capacity`; in `islands` that exchange their best;
* who becomes a parent (open_ended_parents.py): the rules `dgm`, `shinka`, `clade`, `novelty`, `uniform`, `best-only`;
* how children are made (open_ended_variation.py): operators whose rates are genes of the parent, or put out by a
  program of its genome; with `self_modification` the improver is improved;
* what is recommended: below.

A generation consists of `rejudge` rows that ask the best members again, unchanged (one parent: themselves), children,
and `fresh` random rows. The first generation: the start, mutants of it (`warm`), random rows.

Scores of different generations stand side by side in a repertoire though every generation is judged with other keys:
on a noisy task the lucky look best. So the members with the lowest loss are asked again in every generation. From
then on their loss is the mean of what they got when asked again; that of their discovery, where luck had its part, does
not count any more. The champion, which is recommended, is the lowest of these means. Without noise that costs
`rejudge` of the evaluations. What is left: parents are drawn by losses of which most are discoveries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import KINDS
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.behaviour import REFUSED
from evometa.space import Space
from evometa.strategies import open_ended_parents as kin
from evometa.strategies import open_ended_repertoire as repertoire
from evometa.strategies import parts
from evometa.strategies.catalogue import CATALOGUE
from evometa.strategies.open_ended_repertoire import Members
from evometa.strategies.open_ended_variation import GENES, Breeding, profile
from evometa.types import Array, Genome, Genomes, Parents, Prior, Scores, Strategy

NAME = "open_ended"
CRITERIA = ("finite", "start", "median")
BEHAVIOURS = ("genome", "losses")
PROFILE = 8  # numbers of a behaviour made of losses


class Asked(NamedTuple):
    """What is to be remembered of the rows asked last. Leading axis P."""

    genes: Array  # [P, R]
    hashes: Array  # [P, 2]
    parents: Array  # [P, 2] int32: slots of the parents, -1 for none
    again: Array  # [P] int32: slot of the member that is asked again, -1 for a new candidate
    made: Array  # [P, R] float32: rates at which each was made, NaN for none; [0, R] unless they are recorded


class State(NamedTuple):
    """The repertoire and its diary."""

    generation: Array  # [] int32: generations asked so far
    told: Array  # [] bool: has a generation with a finite row been told?
    start: Genome  # [D]
    members: Members
    asked: Asked
    bound: Array  # [] float32: the largest loss of a viable candidate
    counts: Array  # [4] int32: members that made room, newcomers refused, not viable, rows of empty islands
    marks: Array  # [3] int32: when it first happened (-1 never): full, nobody viable, the start failed
    empty: Array  # [islands] int32: when each island was first found without members (-1 never)


def open_ended(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """Open-ended search; every kind of column.

    Hyperparameters: `parents` "dgm", the parent rule (or shinka, clade, novelty, uniform, best-only); `capacity` 512,
    places in the repertoire; `when_full` "crowded" (or oldest, worst, reject); `criterion` "finite": which loss is
    viable: any finite one, one not worse than the "start" or the "median" of the first generation by more than
    `slack` 0.5 of its median absolute deviations, or at most a number; `behaviour` "genome" (what programs answer to
    probes, and coordinates) or "losses" (profile over cells); `neighbours` 5 of a novelty; `islands` 1,
    `migration_interval` 10 generations, `migrants` 1 per island; `self_modification` True; `rejudge` 0.05, `fresh`
    0.0, `warm` 0.5, shares of rows as above; `crossover` 0.4, `changes` 1.5, `sigma` 0.1, `rate` None: where
    the genes of open_ended_variation.py begin; `smallest` 1e-4, the floor of the step; `tries` 4, variants of a program
    until it does what no member does; `record_rates` False: whether the lineage says, in `extras`, at what rates each
    child was made. Raises `UsageError` for other names, `ConfigError` for values out of range.
    """
    given = parts.hyperparameters(NAME, CATALOGUE[NAME].defaults, hyperparameters)
    population = parts.check_population(NAME, population, CATALOGUE[NAME].minimum)
    _one_of("parents", given["parents"], kin.RULES)
    _one_of("when_full", given["when_full"], tuple(repertoire.WHEN_FULL))
    _one_of("behaviour", given["behaviour"], BEHAVIOURS)
    if isinstance(given["criterion"], str):
        _one_of("criterion", given["criterion"], CRITERIA, " or a number")
    else:
        parts.check_range(NAME, criterion=(given["criterion"], -np.inf, np.inf))
    for option in ("self_modification", "record_rates"):
        if not isinstance(given[option], bool):
            raise ConfigError(f"{NAME}: expected {option} to be true or false, got {given[option]!r}")
    share = (0.0, 1.0)
    parts.check_range(
        NAME, capacity=(given["capacity"], 1, 2**14), slack=(given["slack"], 0.0, 1e6),
        neighbours=(given["neighbours"], 1, 1000), islands=(given["islands"], 1, 1024),
        migration_interval=(given["migration_interval"], 1, 10**6), migrants=(given["migrants"], 0, 64),
        rejudge=(given["rejudge"], 0.0, 0.5), fresh=(given["fresh"], *share), warm=(given["warm"], *share),
        crossover=(given["crossover"], *share), changes=(given["changes"], 1.0, 6.0),
        sigma=(given["sigma"], 1e-6, 10.0), smallest=(given["smallest"], 0.0, 10.0), tries=(given["tries"], 1, 64),
    )  # fmt: skip
    if given["rate"] is not None:
        parts.check_range(NAME, rate=(given["rate"], *share))
    islands, capacity = int(given["islands"]), int(given["capacity"])
    if islands > population:
        raise ConfigError(
            f"{NAME}: expected at most {population} islands for a population of {population}, got {islands}:"
            f" an island without rows would never have members. Try islands={population}"
        )
    rows = -(-population // islands)
    if capacity < rows * islands:
        raise ConfigError(
            f"{NAME}: expected a capacity of at least {rows * islands} (one generation of {population} on"
            f" {islands} island(s)), got {capacity}. Try capacity={max(512, rows * islands)}"
        )
    search = _Search(space, population, given)
    return Strategy(
        NAME, population, search.init, search.ask, search.tell, search.recommend, traceable=True,
        searches=frozenset(KINDS), operators=("random", "mutation", "crossover"), notes=search.notes,
        rates=search.rates if given["record_rates"] else None,
    )  # fmt: skip


def _one_of(option: str, value: Any, known: tuple[str, ...], more: str = "") -> None:
    if value not in known:
        raise ConfigError(
            f"{NAME}: expected {option} to be one of {', '.join(known)}{more}, got {value!r}."
            f"{did_you_mean(str(value), known)}"
        )


class _Search:
    """The functions of the strategy, and what they know of the space."""

    def __init__(self, space: Space, population: int, given: dict[str, Any]) -> None:
        self.space, self.population, self.given = space, population, given
        self.islands = int(given["islands"])
        self.places = int(given["capacity"]) // self.islands  # per island
        self.size = self.places * self.islands
        self.breeding = Breeding(space, given)
        self.again = max(1, round(population * given["rejudge"])) if given["rejudge"] else 0
        self.immigrants = round(population * given["fresh"])
        self.migrants = min(int(given["migrants"]), self.places) if self.islands > 1 else 0
        # [islands, rows of each]: row r belongs to island r mod islands; -1 fills up.
        rows = np.arange(-(-population // self.islands) * self.islands).reshape(-1, self.islands).T
        self.rows = np.where(rows < population, rows, -1)

    # --- the four functions -----------------------------------------------------------------------

    def init(self, key: Any, prior: Prior | None = None) -> State:
        """Nobody is there but the start."""
        del key
        start, size, population = parts.start_of(self.space, prior), self.size, self.population
        width = self.breeding.behaviour(start[None]).shape[1] if self.given["behaviour"] == "genome" else PROFILE
        members = Members(
            jnp.zeros(size, bool), jnp.broadcast_to(start[None], (size, self.space.dimension)),
            self.breeding.first_genes(size), jnp.full((size, 2), -1, jnp.int32), jnp.zeros(size, jnp.float32),
            jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32), jnp.full(size, -1, jnp.int32),
            jnp.zeros((size, 2), jnp.int32), jnp.zeros((size, width), jnp.float32),
            jnp.full((size, 2), REFUSED[0], jnp.uint32),
        )  # fmt: skip
        asked = Asked(
            self.breeding.first_genes(population), jnp.full((population, 2), REFUSED[0], jnp.uint32),
            jnp.full((population, 2), -1, jnp.int32), jnp.full(population, -1, jnp.int32), self._made_none(population),
        )  # fmt: skip
        return State(
            jnp.int32(0), jnp.bool_(False), start, members, asked, jnp.float32(jnp.inf), jnp.zeros(4, jnp.int32),
            jnp.full(3, -1, jnp.int32), jnp.full(self.islands, -1, jnp.int32),
        )  # fmt: skip

    def ask(self, key: Any, state: State) -> tuple[Genomes, Parents, State]:
        """Members asked again, children, random rows."""
        keys, members = jax.random.split(key, 8), state.members
        rows, count = jnp.arange(self.population), self.population
        homes = (rows % self.islands).astype(jnp.int32)
        view, begun = _view(members), jnp.any(members.held)
        first, second = parts.apart(lambda view: self._parents(keys[0], view, homes), view)
        vacant = begun & ~jnp.any(members.held.reshape(self.islands, -1), axis=1)
        stranded = vacant[homes]
        child = begun & (rows < count - self.immigrants)
        fresh = self.space.sample(keys[1], count)
        # Nobody yet: the start, mutants of it, random rows.
        warm = ~begun & (rows < round(count * self.given["warm"]))
        born = child | warm
        one = jnp.where(born[:, None], jnp.where(begun, members.genomes[first], state.start[None]), fresh)
        one = self.breeding.layout.sound(one, fresh)
        two = self.breeding.layout.sound(members.genomes[second], fresh)

        breeding, genes = self.breeding, self.breeding.first_genes(count)
        genes_one = jnp.where(child[:, None], members.genes[first], genes)
        twice, most = kin.shares(members.held, view.loss)
        said = breeding.said(keys[2], one, {
            "share": jnp.where(child, twice[first] / most, 0.5).astype(jnp.float32),
            "children": jnp.log1p(jnp.where(child, members.children[first], 0).astype(jnp.float32)),
            "age": jnp.log1p(jnp.where(child, state.generation - members.ids[first, 0], 0).astype(jnp.float32)),
            "looks": jnp.log1p(jnp.where(child, members.looks[first], 0).astype(jnp.float32)),
        })  # fmt: skip
        luck = jax.random.uniform(keys[3], (count,))
        paired = child & (second != first) & (luck < breeding.rates(breeding.bounded(genes_one + said)).crossover)
        genes = parts.apart(
            lambda one, two, paired: breeding.inherited(keys[4], one, two, paired), genes_one, members.genes[second],
            paired,
        )  # fmt: skip
        rates = breeding.rates(breeding.bounded(genes + said))
        made = parts.apart(lambda *given: breeding.children(keys[5], *given), one, two, rates, paired)
        genomes = jnp.where(born[:, None], made, self.space.project(fresh))
        genomes, hashes = breeding.unlike(keys[6], genomes, rates, born, members.hashes)
        slots = jnp.stack([jnp.where(child, first, -1), jnp.where(paired, second, -1)], axis=1)

        genomes = genomes.at[0].set(jnp.where(begun, genomes[0], state.start))
        made_by = self._made_none(count)
        if self.given["record_rates"]:
            varied = born & (begun | (rows > 0))
            made_by = jnp.where(varied[:, None], jnp.stack(rates, axis=1), jnp.nan)
        again = jnp.full(count, -1, jnp.int32)
        if self.again:
            best = jnp.argsort(jnp.where(members.held, view.loss, jnp.inf))[: self.again].astype(jnp.int32)
            there = members.held[best]
            again = again.at[: self.again].set(jnp.where(there, best, -1))
            same = jnp.maximum(again, 0)
            repeats = again >= 0
            genomes = jnp.where(repeats[:, None], members.genomes[same], genomes)
            slots = jnp.where(repeats[:, None], jnp.stack([again, jnp.full_like(again, -1)], axis=1), slots)
            made_by = jnp.where(repeats[: len(made_by), None], jnp.nan, made_by)
        ids = jnp.where((slots >= 0)[:, :, None], members.ids[slots], -1).astype(jnp.int32)
        orphans = jnp.sum(stranded & child & (again < 0)).astype(jnp.int32)
        return self.space.project(genomes), ids, state._replace(
            generation=state.generation + 1, asked=Asked(genes, hashes, slots.astype(jnp.int32), again, made_by),
            counts=state.counts.at[3].add(orphans),
            empty=jnp.where(vacant & (state.empty < 0), state.generation, state.empty),
        )  # fmt: skip

    def tell(self, key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        """Members asked again get their mean, viable newcomers a place, migrants travel."""
        del key
        fitness, ok, any_ok = parts.settle(scores)
        members, asked, now = state.members, state.asked, state.generation - 1
        # Skipped with some cells judged: it was stopped at a hurdle, and whoever was asked again there pays for it.
        judged = jnp.any(scores.evaluated, axis=1)
        looked = jnp.where((asked.again >= 0) & judged, asked.again, self.size)
        confirmed = jnp.where(members.looks > 1, members.total, 0.0)
        members = members._replace(
            total=members.total.at[looked].set(confirmed[jnp.minimum(looked, self.size - 1)] + fitness, mode="drop"),
            looks=members.looks.at[looked].add(1, mode="drop"),
        )
        bound = jnp.where(state.told, state.bound, self._bound(fitness, ok))
        new = asked.again < 0
        viable = new & ok & (fitness <= bound)
        # A viable child counts for each of its parents, one that is not is held against the clade of the first.
        for column in range(2):
            counted = jnp.where(viable & (asked.parents[:, column] >= 0), asked.parents[:, column], self.size)
            members = members._replace(children=members.children.at[counted].add(1, mode="drop"))
        lost = jnp.where(new & judged & ~viable & (asked.parents[:, 0] >= 0), asked.parents[:, 0], self.size)
        members = members._replace(gone=members.gone.at[lost, 1].add(kin.UNIT, mode="drop"))

        newcomers = self._newcomers(members, asked, genomes, scores, fitness, ok, viable, now)
        members, left, refused = repertoire.admitted(members, newcomers, self.islands, self.given["when_full"])
        full, nobody = (left + refused) > 0, ~jnp.any(viable) & jnp.any(new)
        failed = ~state.told & ~ok[0] & (self.given["criterion"] == "start")
        happened = jnp.stack([full, nobody, failed])
        after = state._replace(
            told=jnp.bool_(True), members=members, bound=bound,
            counts=state.counts + jnp.stack([left, refused, jnp.sum(new & judged & ~viable), 0]).astype(jnp.int32),
            marks=jnp.where(happened & (state.marks < 0), now, state.marks).astype(jnp.int32),
        )  # fmt: skip
        return parts.keep_if(any_ok, after, state)

    def recommend(self, state: State) -> Genome:
        """The champion; before anybody was viable, the start."""
        return jnp.where(
            jnp.any(state.members.held), state.members.genomes[repertoire.champion(state.members)], state.start
        )

    def notes(self, state: State) -> list[str]:
        """What happened to the repertoire, a sentence each, the same ever after; for people and the run's diary."""
        full, nobody, failed = (int(mark) for mark in np.asarray(state.marks))
        said = []
        if self.size < (capacity := int(self.given["capacity"])):
            said.append(
                f"generation 0: {self.size} of the {capacity} places are used: {self.places} on each of"
                f" {self.islands} islands"
            )
        if failed >= 0:
            said.append(
                f"generation {failed}: the start failed, so the criterion is the median of the first generation"
            )
        if nobody >= 0:
            said.append(f"generation {nobody}: no candidate met the minimal criterion (loss at most {state.bound:.6g})")
        emptied = np.asarray(state.empty)
        for island in sorted(np.flatnonzero(emptied >= 0).tolist(), key=lambda island: (emptied[island], island)):
            said.append(
                f"generation {emptied[island]}: island {island} has no members; its parents come from the others"
            )
        if full >= 0:
            rule = repertoire.WHEN_FULL[self.given["when_full"]]
            where = f"the repertoire's {self.size} places" + (f" on {self.islands} islands" if self.islands > 1 else "")
            said.append(f"generation {full}: full: {where} do not hold every viable candidate; from now on {rule}")
        return said

    def rates(self, state: State) -> dict[str, Array]:
        """`[P]` each: the rates at which the rows just asked were made; those that mean something in this space."""
        return {name: state.asked.made[:, at] for at, name in enumerate(GENES) if name in self.breeding.matters}

    # --- asking -----------------------------------------------------------------------------------

    def _parents(self, key: Any, view: kin.View, homes: Array) -> tuple[Array, Array]:
        """Slots `[P]` of first and second parents; 0 where nobody is held. Rows of an empty island draw from all."""
        rule, neighbours, found = self.given["parents"], int(self.given["neighbours"]), []
        for number in range(2):
            own, other = jax.random.split(jax.random.fold_in(key, number))
            slot = kin.draw(rule, own, view, homes, self.islands, neighbours)
            if self.islands > 1:
                anywhere = kin.draw("uniform", other, view, jnp.zeros_like(homes))
                slot = jnp.where(slot < 0, anywhere, slot)
            found.append(jnp.maximum(slot, 0))
        return found[0], found[1]

    def _made_none(self, count: int) -> Array:
        return jnp.full((count if self.given["record_rates"] else 0, len(GENES)), jnp.nan, jnp.float32)

    # --- telling ----------------------------------------------------------------------------------

    def _bound(self, fitness: Array, ok: Array) -> Array:
        """The largest viable loss, from the first generation that has a finite one."""
        criterion = self.given["criterion"]
        if criterion == "finite":
            return jnp.float32(jnp.inf)
        if criterion not in CRITERIA:
            return jnp.float32(criterion)
        held = jnp.where(ok, fitness, jnp.nan)
        middle = jnp.nanmedian(held)
        spread = jax.lax.optimization_barrier(self.given["slack"] * jnp.nanmedian(jnp.abs(held - middle)))
        begin = jnp.where(ok[0], fitness[0], middle) if criterion == "start" else middle
        return (begin + spread).astype(jnp.float32)

    def _newcomers(
        self, members: Members, asked: Asked, genomes: Genomes, scores: Scores, fitness: Array, ok: Array,
        viable: Array, now: Array,
    ) -> Members:  # fmt: skip
        """`[islands, rows + migrants]`: viable candidates on their islands, and who comes over from the one before."""
        rows = jnp.arange(self.population, dtype=jnp.int32)
        if self.given["behaviour"] == "genome":
            behaviour = parts.apart(self.breeding.behaviour, genomes)
        else:
            behaviour = parts.apart(lambda loss, ok: profile(loss, ok, PROFILE), scores.loss, ok)
        ids = jnp.stack([jnp.broadcast_to(now, rows.shape), rows], axis=1).astype(jnp.int32)
        found = Members(
            viable, genomes, asked.genes, ids,
            fitness, jnp.ones_like(rows), jnp.zeros_like(rows), asked.parents[:, 0],
            jnp.zeros((self.population, 2), jnp.int32), behaviour, asked.hashes,
        )  # fmt: skip
        table = jnp.asarray(self.rows)
        found = jax.tree.map(lambda leaf: leaf[table], found)
        found = found._replace(held=found.held & (table >= 0))
        if not self.migrants:
            return found
        due = (now + 1) % int(self.given["migration_interval"]) == 0
        return repertoire.joined(found, repertoire.migrants(members, self.islands, self.migrants, due))


def _view(members: Members) -> kin.View:
    loss = jnp.where(members.held, repertoire.mean(members), jnp.inf)
    return kin.View(members.held, loss, members.children, members.mother, members.gone, members.behaviour)

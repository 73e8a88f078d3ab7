"""The search that a nested task's `fit` runs: compiled where it can be, in plain Python where it must be.

The level above hands down constants (hyperparameters, a start, values of held columns) and sees one thing: the loss of
what the search recommends on domains that the search never saw (S0-1, S0-3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.backends.inline import HostCells, run_unit
from evometa.contract import Task
from evometa.evaluate.cell import train_and_judge
from evometa.evaluate.cost import cost
from evometa.evaluate.data import Loaded
from evometa.evaluate.settle import Raw
from evometa.keys import Stream, as_int, fit_and_judge_keys, name_word, stream_key, word_keys
from evometa.loop import HostLoop, Row, generation
from evometa.space import Column, Space, flatten
from evometa.types import Cell, Strategy

TUNES, START, SLOTS = "strategy", "start", "slots"  # the outer space's groups of columns
_CACHE_BYTES = (
    8 << 20
)  # lower candidates are computed together as far as they fit a core's cache (see evaluate/plan.py)


@dataclass(frozen=True)
class Lower:
    """The search below: a strategy without its hyperparameters, how long it runs, and what the level above moves.

    `make(space, **tuned)` builds the strategy; `tunes` are the columns handed over as `tuned`, `tuned` their values
    in the outer baseline; `prior`: the outer candidate also says where the search starts; `slots`: columns of the
    task that only the outer level moves.
    """

    make: Callable[..., Strategy]
    generations: int
    tunes: Mapping[str, Column] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    prior: bool = True
    slots: tuple[str, ...] = ()


class Handed(NamedTuple):
    """What an outer candidate hands to the search below."""

    tuned: dict[str, Any]  # the strategy's hyperparameters
    start: Any  # [D] genome, or None for the baseline's
    slots: dict[str, Any]  # values of the held columns


def handed(outer: Mapping[str, Any], free: Space, lower: Lower) -> Handed:
    """Take an outer candidate apart; traceable."""
    tuned = flatten(outer.get(TUNES, {}), set(lower.tunes))
    slots = flatten(outer.get(SLOTS, {}), set(lower.slots))
    if not lower.prior:
        return Handed(tuned, None, slots)
    coordinates = flatten(outer[START], {column.name for column in free.columns})
    parts = [jnp.ravel(jnp.asarray(coordinates[column.name], jnp.float32)) for column in free.columns]
    return Handed(tuned, jnp.concatenate(parts), slots)


class Searched(NamedTuple):
    """What a lower search learned: the genome that it recommends, under the values that the level above holds."""

    genome: Any  # [D]
    slots: dict[str, Any]
    inner_steps: Any  # of the whole search


class _Search:
    def __init__(self, task: Task, lower: Lower, free: Space) -> None:
        self.task, self.lower, self.free = task, lower, free
        self.query = task.objectives[0].query
        self.baseline = free.encode(task.baseline)

    def held(self, slots: Mapping[str, Any]) -> Space:
        return self.task.space.hold(slots) if slots else self.task.space

    def cells(self, count: int) -> tuple[Cell, ...]:
        return tuple(Cell(str(d), self.query, "train", r) for d in range(count) for r in range(self.task.replicates))


class CompiledSearch(_Search):
    """All generations of the lower search in one traced loop."""

    def __init__(self, task: Task, lower: Lower, free: Space) -> None:
        super().__init__(task, lower, free)
        self._chunk = 0

    def fit(self, key: Any, outer: Any, support: Any) -> Searched:
        """The lower search over the support's domains."""
        given = jax.lax.optimization_barrier(handed(jax.lax.optimization_barrier(outer), self.free, self.lower))
        strategy, state = self.begin(key, given)

        def body(number: Any, carry: Any) -> Any:
            state, row, steps = self.advance(key, given, strategy, carry[0], support, number)
            del row
            return state, carry[1] + steps

        state, steps = jax.lax.fori_loop(0, self.lower.generations, body, (state, jnp.float32(0.0)))
        return Searched(strategy.recommend(state), given.slots, steps)

    def rows(self, key: Any, outer: Any, support: Any) -> tuple[Searched, Row]:
        """As `fit`, with what every generation leaves for an archive: leading axis G."""
        given = jax.lax.optimization_barrier(handed(jax.lax.optimization_barrier(outer), self.free, self.lower))
        strategy, state = self.begin(key, given)

        def body(carry: Any, number: Any) -> Any:
            state, row, steps = self.advance(key, given, strategy, carry[0], support, number)
            return (state, carry[1] + steps), row

        start = (state, jnp.float32(0.0))
        (state, steps), rows = jax.lax.scan(body, start, jnp.arange(self.lower.generations))
        return Searched(strategy.recommend(state), given.slots, steps), rows

    def begin(self, key: Any, given: Handed) -> tuple[Strategy, Any]:
        """The strategy as the level above wants it, and its first state."""
        made = self.lower.make(self.free, **given.tuned)
        strategy = made._replace(ask=_fenced(made.ask), tell=_fenced(made.tell), recommend=_fenced(made.recommend))
        start = jnp.asarray(self.baseline) if given.start is None else given.start
        return strategy, _fenced(made.init)(stream_key(key, 0, Stream.INIT), start)

    def advance(
        self, key: Any, given: Handed, strategy: Strategy, state: Any, support: Any, number: Any
    ) -> tuple[Any, Row, Any]:
        """One generation of the lower search; its inner steps come last."""
        space = self.held(given.slots)
        cells = self.cells(support["words"].shape[0])
        evaluate = _fenced(partial(self._evaluate, space, support))
        state, row = generation(strategy, evaluate, cells, self.task.objectives, key, number, state)
        steps = row.scores.metrics["inner_steps"]
        return state, row, jnp.sum(jnp.where(jnp.isfinite(steps), steps, 0.0))

    def _evaluate(self, space: Space, support: Any, key: Any, genomes: Any) -> Raw:
        keys = word_keys(key, support["words"], self.task.replicates)
        base = self.query.split("@")[0]

        def one(genome: Any) -> Any:
            candidate = jax.lax.optimization_barrier(space.decode(genome))

            def cell(k: Any, s: Any, q: Any) -> Any:
                metrics = train_and_judge(self.task, candidate, k, s, {base: q})[self.query]
                return _float(metrics["loss"]), _float(metrics.get("inner_steps", jnp.nan))

            over = jax.vmap(jax.vmap(cell, (0, None, None)), (0, 0, 0))
            return jax.tree.map(jnp.ravel, over(keys, support["support"], support["queries"][base]))

        if not self._chunk:
            shape = jax.ShapeDtypeStruct(genomes.shape[1:], genomes.dtype)
            live = cost(one, shape).live_bytes
            self._chunk = max(1, min(genomes.shape[0], int(_CACHE_BYTES / max(live, 1.0))))
        loss, steps = jax.lax.map(one, genomes, batch_size=self._chunk)
        fine = jnp.zeros(genomes.shape[0], jnp.int8)
        return Raw(loss, {"inner_steps": steps}, jnp.ones(loss.shape, bool), fine)

    def judge(self, key: Any, learned: Searched, query: Any) -> dict[str, Any]:
        """Train what the search recommends on the query's domains, judge it there: the mean over them."""
        learned = jax.lax.optimization_barrier(learned)
        candidate = jax.lax.optimization_barrier(self.held(learned.slots).decode(learned.genome))
        keys = word_keys(key, query["words"], 1)[:, 0]

        def cell(k: Any, s: Any, q: Any) -> Any:
            judged = train_and_judge(self.task, candidate, k, s, {"": q})
            metrics = judged[""]
            return {name: _float(value) for name, value in metrics.items()}

        metrics = jax.vmap(cell)(keys, query["support"], query["query"])
        means = {name: jnp.mean(value) for name, value in metrics.items() if name != "inner_steps"}
        own = jnp.sum(metrics["inner_steps"]) if "inner_steps" in metrics else 0.0
        return {**means, "inner_steps": learned.inner_steps + own}


class HostSearch(_Search):
    """The same for plain Python: the keys are ints, the domains objects."""

    def __init__(self, task: Task, lower: Lower, free: Space) -> None:
        super().__init__(task, lower, free)
        # The hyperparameters are arguments, so that all the searches share one compilation.
        compiled = {
            name: jax.jit(lambda tuned, *a, name=name: getattr(lower.make(free, **tuned), name)(*a))
            for name in ("init", "ask", "tell", "recommend")
        }
        self._functions = compiled if lower.make(free, **lower.tuned).traceable else {}

    def cells(self, count: int) -> tuple[Cell, ...]:
        """Every query has its column; only the objective's is filled."""
        names, replicates = self.task.query_names, range(self.task.replicates)
        return tuple(Cell(str(d), query, "train", r) for d in range(count) for query in names for r in replicates)

    def _strategy(self, tuned: dict[str, float]) -> Strategy:
        made = self.lower.make(self.free, **tuned)
        bound = {name: partial(function, tuned) for name, function in self._functions.items()}
        return made._replace(**bound, traceable=False) if bound else made

    def fit(self, key: int, outer: Any, support: tuple[Loaded, ...]) -> Searched:
        """The lower search over the support's domains."""
        return self.rows(key, outer, support)[0]

    def rows(self, key: int, outer: Any, support: tuple[Loaded, ...]) -> tuple[Searched, Any]:
        """As `fit`, with the block that an archive would hold."""
        given = handed(outer, self.free, self.lower)
        strategy = self._strategy({name: float(value) for name, value in given.tuned.items()})
        task = self.task.with_(space=self.held(given.slots))
        cells = HostCells(task, support, task.replicates)
        loop = HostLoop(strategy, cells.host, cells.cells, task.objectives, key)
        start = jnp.asarray(self.baseline) if given.start is None else given.start
        state = strategy.init(stream_key(key, 0, Stream.INIT), start)
        state, block = loop.advance(state, 0, self.lower.generations)
        if not np.isfinite(block.scores.fitness).any():
            said = next(iter(block.messages.values()), "no finite loss")
            raise ValueError(f"every candidate of the lower search failed, the first with: {said}")
        steps = block.scores.metrics["inner_steps"]
        total = float(np.nansum(steps)) if np.isfinite(steps).any() else 0.0
        return Searched(np.asarray(strategy.recommend(state)), given.slots, total), block

    def judge(self, key: int, learned: Searched, query: tuple[str, tuple[Loaded, ...]]) -> dict[str, Any]:
        """Train what the search recommends on the query's domains, judge it there: the mean over them."""
        name, domains = query
        task = self.task.with_(space=self.held(learned.slots))
        candidate = task.space.decode_host(learned.genome)
        sums: dict[str, list[float]] = {}
        for domain in domains:
            own = jax.random.fold_in(jax.random.key(key), name_word(domain.name))
            fit_key, judge_keys = fit_and_judge_keys(own, (name,))
            only = Loaded(domain.name, domain.role, domain.support, {name: domain.queries[name]})
            outcome = run_unit(task, candidate, as_int(fit_key), {name: as_int(judge_keys[name])}, only)
            if outcome["failure"]:
                raise ValueError(outcome["message"])
            for metric, value in outcome["metrics"][name].items():
                sums.setdefault(metric, []).append(value)
        means = {metric: float(np.mean(values)) for metric, values in sums.items() if metric != "inner_steps"}
        return {**means, "inner_steps": learned.inner_steps + sum(sums.get("inner_steps", []))}


def _fenced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the compiler from fusing `function` with what surrounds it (the loop, the level above, the rows that
    `expand` writes down), which would change its bits."""

    def fenced(*arguments: Any) -> Any:
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(arguments)))

    return fenced


def _float(value: Any) -> Any:
    return jnp.asarray(value, jnp.float32)

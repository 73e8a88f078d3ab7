"""The exam that every strategy must pass, ours and yours.

    from evometa.testing import exam
    print(exam(my_strategy))            # a factory: my_strategy(space, population=..., **hyperparameters)

`exam` raises `AssertionError` with one sentence that says what was expected and what came. The single
checks are plain functions of a `Strategy` and a `Space`, and need no test framework. A traceable
strategy is compiled three times for all of them together: the whole loop, spread over two host devices
(its number of generations is data, so it serves as single steps, as blocks and for every kind of
trouble), and `ask` and `tell` apart; `thorough` adds the loop on one device.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import PLAIN
from evometa.errors import ConfigError, EvometaError, UsageError
from evometa.space import Space
from evometa.testing_bench import (
    BLOCK,
    Bench,
    Log,
    bench,
    compiled_losses,
    generation_keys,
    same_bits,
    scores_of,
    space_for,
    through_disk,
    world,
)
from evometa.types import State, Strategy

Factory = Callable[..., Strategy]


class Report(NamedTuple):
    """A passed exam."""

    strategy: str
    checks: tuple[str, ...]
    seconds: float
    quality: float  # median loss of what was recommended on the calibrated task; NaN where not compared
    random_quality: float  # the same for random search at equal evaluations

    def __str__(self) -> str:
        said = f"{self.strategy}: {len(self.checks)} checks passed in {self.seconds:.1f} s"
        if np.isnan(self.quality):
            return said
        return f"{said}; recommended {self.quality:.3g}, random search {self.random_quality:.3g}"


def _expect(strategy: Strategy, ok: Any, expected: str, got: Any) -> None:
    # Not an assert statement: the exam must also examine under `python -O`.
    if not ok:
        raise AssertionError(f"{strategy.name}: expected {expected}, got {got}")


# --- form --------------------------------------------------------------------------------------------


def check_shapes(strategy: Strategy, space: Space) -> None:
    """Genomes `[P, D]` float32, parents `[P, K, 2]` int32, a recommendation `[D]`; states keep their form."""
    b, population = bench(strategy, space), strategy.population
    state = b.start()
    for leaf in jax.tree.leaves(state):
        plain = isinstance(leaf, (np.ndarray, jax.Array)) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        _expect(strategy, plain and leaf.dtype != object, "a state of plain arrays", f"a leaf {leaf!r:.80}")
    after, log = b.advance(state, b.world(), 1)
    genomes, parents = log.genomes[0], log.parents[0]
    wanted = (population, space.dimension)
    _expect(strategy, genomes.shape == wanted, f"genomes of shape {wanted}", genomes.shape)
    _expect(strategy, genomes.dtype == np.float32, "float32 genomes", genomes.dtype)
    good = parents.ndim == 3 and parents.shape[0] == population and parents.shape[2] == 2
    _expect(strategy, good, f"parents of shape ({population}, K, 2)", parents.shape)
    _expect(strategy, parents.dtype == np.int32, "int32 parents", parents.dtype)
    best = np.asarray(strategy.recommend(after))
    _expect(strategy, best.shape == (space.dimension,), f"a recommendation of shape ({space.dimension},)", best.shape)
    kept = jax.tree.structure(state) == jax.tree.structure(after)
    _expect(strategy, kept, "tell to keep the structure of the state", jax.tree.structure(after))
    if strategy.traceable:
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            kept = (old.shape, old.dtype) == (new.shape, new.dtype)
            _expect(strategy, kept, f"a state leaf {old.dtype}{old.shape} after tell", f"{new.dtype}{new.shape}")


def _inside(b: Bench, state: State, log: Log, when: str) -> None:
    best = np.asarray(b.strategy.recommend(state))
    for what, rows in (("genomes", log.genomes.reshape(-1, b.space.dimension)), ("a recommendation", best[None])):
        broken = rows[~np.isfinite(rows).all(axis=1)]
        _expect(b.strategy, not len(broken), f"finite {what} {when}", broken[:1])
        held = rows[:, b.space.bounded]
        out = held[(held < 0) | (held > 1)]
        _expect(b.strategy, not len(out), f"{what} in [0, 1] {when} (use space.project in ask)", out[:1])


def check_bounds(strategy: Strategy, space: Space) -> None:
    """Every genome is inside the bounds, also where the search starts in a corner."""
    b = bench(strategy, space)
    corner = np.where(space.bounded, 1.0, 50.0).astype(np.float32)
    for prior, when in ((None, "in a plain run"), (corner, "in a run that starts in a corner")):
        state, log = b.advance(b.start(prior=prior), b.world(), BLOCK)
        _inside(b, state, log, when)


def check_prior(strategy: Strategy, space: Space) -> None:
    """A prior is where the search starts: before the first generation it is what is recommended."""
    prior = np.where(space.bounded, 0.3, 0.7).astype(np.float32)
    got = np.asarray(strategy.recommend(bench(strategy, space).start(prior=prior)))
    _expect(strategy, np.allclose(got, prior, atol=1e-5), f"the prior {prior} recommended at first", got)


# --- trouble -----------------------------------------------------------------------------------------


def check_failures(strategy: Strategy, space: Space) -> None:
    """A quarter of the population fails in every generation, and the search goes on."""
    b = bench(strategy, space)
    failed = np.arange(strategy.population) % 4 == 0
    state, log = b.advance(b.start(), b.world(failed=failed), BLOCK)
    _inside(b, state, log, "where a quarter of the rows failed")


def check_none_finite(strategy: Strategy, space: Space) -> None:
    """A generation without one finite row changes no recommendation, and the next one works."""
    b = bench(strategy, space)
    before, _ = b.advance(b.start(), b.world(), 2)
    after, _ = b.advance(before, b.world(dead=2), 1, first=2)
    one, two = np.asarray(strategy.recommend(before)), np.asarray(strategy.recommend(after))
    _expect(strategy, np.array_equal(one, two), f"{one} recommended still after a generation without a finite row", two)
    state, log = b.advance(after, b.world(), 2, first=3)
    _inside(b, state, log, "after a generation without a finite row")
    state, log = b.advance(b.start(), b.world(dead=0), 3)
    _inside(b, state, log, "where nothing of the first generation was finite")


def check_ties(strategy: Strategy, space: Space) -> None:
    """All scores equal, for long: nothing breaks, and the population does not collapse to one point."""
    b = bench(strategy, space)
    long = 60 if strategy.traceable else 4
    state, log = b.advance(b.start(), b.world(flat=True), long)
    _inside(b, state, log, "where all scores are equal")
    state, log = b.advance(state, b.world(flat=True), 2, first=long)
    _inside(b, state, log, "after many equal scores")
    spread = np.ptp(log.genomes[-1], axis=0).max()
    _expect(strategy, spread > 0, "different genomes on a plateau", f"{strategy.population} copies of one")


def check_parents(strategy: Strategy, space: Space) -> None:
    """Parents name rows of earlier generations, or are (-1, -1)."""
    b = bench(strategy, space)
    failed = np.arange(strategy.population) % 4 == 0
    _, log = b.advance(b.start(), b.world(failed=failed), BLOCK)
    for generation, parents in enumerate(log.parents):
        born, index = parents[..., 0], parents[..., 1]
        none = (born == -1) & (index == -1)
        valid = none | ((born >= 0) & (born < generation) & (index >= 0) & (index < strategy.population))
        wanted = f"parents (earlier generation, index < {strategy.population}) or (-1, -1) in generation {generation}"
        _expect(strategy, valid.all(), wanted, parents[~valid][:1].tolist())
        if generation == 0:
            _expect(strategy, none.all(), "no parents in generation 0", parents[~none][:1].tolist())


# --- determinism -------------------------------------------------------------------------------------


def check_resume(strategy: Strategy, space: Space, again: Strategy | None = None) -> None:
    """Stopped after every generation, written as arrays and read back, the run has the same bits.

    `again`: a second object of the same strategy, which continues where the first one stopped; give one
    where objects may keep something on the side (it must be a cache only).
    """
    b = bench(strategy, space)
    other = bench(again, space) if again else b
    problem = b.world()
    whole_state, whole = b.advance(b.start(), problem, BLOCK)
    state = through_disk(b.start())
    for generation in range(BLOCK):
        state, log = (b if generation % 2 else other).advance(state, problem, 1, first=generation)
        same = same_bits([part[0] for part in log], [part[generation] for part in whole])
        _expect(strategy, same, "the same bits after a resume", f"other ones in generation {generation}")
        state = through_disk(state)
    _expect(strategy, same_bits(state, whole_state), "the same final state after resumes", "another one")


def check_block(strategy: Strategy, space: Space, thorough: bool = True) -> None:
    """A block spread over two devices = separately compiled ask and tell on one (= a block on one), bit for bit.

    Without a second device (`jax.config.update("jax_num_cpu_devices", 2)` before JAX starts) the block
    runs on one. A strategy that is not traceable has nothing to check.
    """
    if not strategy.traceable:
        return
    b = bench(strategy, space)
    problem, key = b.world(), jax.random.key(0)
    state, block = b.advance(b.start(), problem, BLOCK)

    held, score = b.start(), compiled_losses(space)
    for generation in range(BLOCK):
        ask_key, tell_key = generation_keys(key, generation)
        genomes, parents, held = b.ask(ask_key, held)
        scores = scores_of(problem, score(problem, genomes), jnp.int32(generation))
        _unchanged(strategy, "ask and tell compiled apart", genomes, block.genomes[generation], generation)
        _unchanged(strategy, "ask compiled apart, for parents,", parents, block.parents[generation], generation)
        held = b.tell(tell_key, held, genomes, scores)
    _expect(strategy, same_bits(held, state), "the same state from ask and tell compiled apart", "another one")

    if thorough and b.devices > 1:
        alone = Bench(strategy, space, spread=False)
        end, rows = alone.advance(b.start(), problem, BLOCK)
        for generation in range(BLOCK):
            _unchanged(
                strategy, "a block on one device", rows.genomes[generation], block.genomes[generation], generation
            )
        _expect(strategy, same_bits(end, state), "the same state from a block on one device as on two", "another one")


def _unchanged(strategy: Strategy, how: str, got: Any, wanted: Any, generation: int) -> None:
    gap = np.max(np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64)))
    expected = f"the same bits from {how} as from one block (if that cannot be cured, declare traceable=False)"
    _expect(strategy, same_bits(got, wanted), expected, f"a difference of {gap:.3g} in generation {generation}")


# --- quality -----------------------------------------------------------------------------------------


def check_beats_random(strategy: Strategy, space: Space, generations: int = 40, seeds: int = 5) -> tuple[float, float]:
    """Better than random search at equal evaluations: median over seeds, and in all seeds but one.

    Random search gets its luckiest sample of all, the strategy what it recommends. Strategies that are not
    traceable are slow: 12 generations, 3 seeds. Returns both median losses (summed over objectives).
    """
    if not strategy.traceable:
        generations, seeds = min(generations, 12), min(seeds, 3)
    b = bench(strategy, space)
    mine, theirs = [], _random_quality(space, strategy.population, generations, seeds, strategy.objectives)
    for seed in range(seeds):
        problem = b.world(seed)
        state, _ = b.advance(b.start(seed), problem, generations - BLOCK, seed=seed)
        state, log = b.advance(state, problem, BLOCK, first=generations - BLOCK, seed=seed)
        # Several objectives: what was asked last, along their trade-off, must hold a good point for their sum.
        rows = log.genomes.reshape(-1, space.dimension)
        held = np.asarray(strategy.recommend(state))[None] if strategy.objectives == 1 else rows
        mine.append(float(jnp.min(jnp.sum(compiled_losses(space)(problem, jnp.asarray(held)), axis=-1))))
    wins = sum(one < two for one, two in zip(mine, theirs, strict=True))
    medians = float(np.median(mine)), float(np.median(theirs))
    _expect(
        strategy,
        wins >= seeds - 1 and medians[0] < medians[1],
        f"to beat random search, {generations} generations of {strategy.population}, in {seeds - 1} of {seeds} seeds",
        f"{wins} (median {medians[0]:.3g}, random search {medians[1]:.3g})",
    )
    return medians


@functools.cache
def _random_quality(space: Space, population: int, generations: int, seeds: int, objectives: int) -> tuple[float, ...]:
    results = []
    for seed in range(seeds):
        problem = world(space, population, seed, objectives)
        genomes = space.project(space.sample(jax.random.key(seed), population * generations))
        results.append(float(jnp.min(jnp.sum(compiled_losses(space)(problem, genomes), axis=-1))))
    return tuple(results)


# --- the factory, and all of it ----------------------------------------------------------------------


def check_refusals(factory: Factory, space: Space, strategy: Strategy | None = None) -> None:
    """Nonsense is refused with words: population 0, an unknown hyperparameter, a column it cannot search."""
    strategy = strategy or factory(space)
    _refuses(strategy, lambda: factory(space, population=0), "population=0", EvometaError)
    _refuses(strategy, lambda: factory(space, no_such_hyperparameter=1), "an unknown hyperparameter", UsageError)
    full = space_for(frozenset(PLAIN))
    if full.kinds - strategy.searches:
        kinds = ", ".join(sorted(full.kinds - strategy.searches))
        _refuses(strategy, lambda: factory(full), f"{kinds} columns, which it does not search", ConfigError)


def _refuses(strategy: Strategy, call: Callable[[], Any], what: str, kind: type[Exception]) -> None:
    got = "a strategy"
    try:
        call()
    except kind:
        return
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    _expect(strategy, False, f"{kind.__name__} for {what}", got)


def exam(
    factory: Factory,
    space: Space | None = None,
    *,
    population: int = 16,
    beats_random: bool = True,
    thorough: bool = True,
    **hyperparameters: Any,
) -> Report:
    """Run every check on a factory; raises `AssertionError` at the first that fails.

    `space`: what to search; by default a small one with every kind of column that the strategy declares.
    `beats_random=False`: for blind strategies. `thorough=False` leaves out the loop on one device.
    """
    began = time.perf_counter()

    def build(chosen: Space, population: int = population, **more: Any) -> Strategy:
        return factory(chosen, population=population, **{**hyperparameters, **more})

    strategy, space = (build(space), space) if space else _first_accepted(build)
    check_refusals(build, space, strategy)
    passed = ["refusals"]
    for check in (
        check_shapes,
        check_prior,
        check_bounds,
        check_failures,
        check_none_finite,
        check_ties,
        check_parents,
    ):
        check(strategy, space)
        passed.append(check.__name__.removeprefix("check_"))
    check_resume(strategy, space, None if strategy.traceable else build(space))
    check_block(strategy, space, thorough)
    passed += ["resume", "block"]
    quality = (float("nan"), float("nan"))
    if beats_random:
        quality = check_beats_random(strategy, space)
        passed.append("beats_random")
    return Report(strategy.name, tuple(passed), time.perf_counter() - began, *quality)


def _first_accepted(build: Callable[[Space], Strategy]) -> tuple[Strategy, Space]:
    """A strategy on a space of every kind of column that it declares."""
    every = frozenset(PLAIN)
    refusal: Exception | None = None
    for kinds in (every, every - {"categorical"}, *(frozenset({kind}) for kind in PLAIN)):
        try:
            strategy = build(space_for(kinds))
        except ConfigError as error:
            refusal = error
            continue
        if strategy.searches != kinds and strategy.searches <= every:
            return build(space_for(strategy.searches)), space_for(strategy.searches)
        return strategy, space_for(kinds)
    raise AssertionError(f"expected a factory that accepts a space of one kind of column, got: {refusal}")

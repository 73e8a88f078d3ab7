"""The exam that every strategy must pass, ours and yours.

    from evometa.testing import exam
    print(exam(my_strategy))            # a factory: my_strategy(space, population=..., **hyperparameters)

`exam` raises `AssertionError` with one sentence that says what was expected and what came. The single
checks are plain functions of a `Strategy` and a `Space`, and need no test framework. A traceable
strategy is compiled four times for all of them together: the whole loop (its number of generations is
data, so it serves as single steps, as blocks and for every kind of trouble), `ask` and `tell` apart,
and one scan spread over two host devices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa import space as columns
from evometa.errors import ConfigError, EvometaError, UsageError
from evometa.space import Space
from evometa.types import Array, Failure, Genomes, Scores, State, Strategy

Factory = Callable[..., Strategy]
BLOCK = 6  # generations that a block holds


class World(NamedTuple):
    """A test problem as data, so that one compiled loop serves every check."""

    matrix: Array  # [M, D, D] rotation and scaling per objective
    target: Array  # [M, D] optimum per objective
    flat: Array  # [] bool: every candidate scores the same
    failed: Array  # [P] bool: these rows fail
    dead: Array  # [] int32: in this generation every row fails; -1 = never


class Log(NamedTuple):
    """What the first `BLOCK` generations of a call asked and scored."""

    genomes: Any  # [BLOCK, P, D]
    parents: Any  # [BLOCK, P, K, 2]
    fitness: Any  # [BLOCK, P, M]


class Report(NamedTuple):
    """A passed exam."""

    strategy: str
    checks: tuple[str, ...]
    seconds: float
    quality: float  # median loss of what was recommended on the calibrated task; NaN where not compared
    random_quality: float  # the same for random search at equal evaluations

    def __str__(self) -> str:
        against = "" if np.isnan(self.quality) else f"; recommended {self.quality:.3g}, random search {self.random_quality:.3g}"
        return f"{self.strategy}: {len(self.checks)} checks passed in {self.seconds:.1f} s{against}"


# --- the test problem --------------------------------------------------------------------------------


@functools.cache
def space_for(searches: frozenset[str]) -> Space:
    """A small space with every kind of column that a strategy says it searches."""
    everything = {
        "first": columns.real(0.0, 1.0), "second": columns.real(-3.0, 5.0), "rate": columns.log(1e-4, 1.0),
        "count": columns.integer(1, 20), "arrays": {"w": columns.weights((2, 2), scale=0.5)},
        "choice": columns.categorical(("a", "b", "c")),
    }  # fmt: skip
    kinds = {"first": "real", "second": "real", "rate": "log", "count": "integer", "arrays": "weights", "choice": "categorical"}
    return Space({name: column for name, column in everything.items() if kinds[name] in searches})


def world(space: Space, population: int, seed: int = 0, objectives: int = 1) -> World:
    """A rotated quadratic, condition number 100, its optimum away from the center (a wrong choice costs 2)."""
    draw = np.random.default_rng(seed)
    size = space.dimension
    scaling = np.sqrt(np.logspace(0, 2, size) if size > 1 else np.ones(1))
    matrix = [scaling[:, None] * np.linalg.qr(draw.normal(size=(size, size)))[0] for _ in range(objectives)]
    side = np.where(draw.random((objectives, size)) < 0.5, -1.0, 1.0)
    target = np.where(space.bounded, 0.5 + side * draw.uniform(0.2, 0.4, side.shape), side * draw.uniform(0.5, 1.0, side.shape))
    return World(
        jnp.asarray(np.stack(matrix), jnp.float32), jnp.asarray(target, jnp.float32),
        jnp.bool_(False), jnp.zeros((population,), bool), jnp.int32(-1),
    )  # fmt: skip


def losses(space: Space, problem: World, genomes: Genomes) -> Array:
    """`[P, M]` losses of genomes `[P, D]`, one row at a time so that no batch size can change a bit."""
    sizes = [c.size for c in space.columns]
    bins = jnp.asarray(np.repeat([c.bins if c.kind in ("integer", "categorical") else 0 for c in space.columns], sizes))
    choice = jnp.asarray(np.repeat([c.kind == "categorical" for c in space.columns], sizes))

    def binned(genome: Array) -> Array:
        middle = (jnp.clip(jnp.floor(genome * bins), 0, bins - 1) + 0.5) / jnp.maximum(bins, 1)
        return jnp.where(bins > 0, middle, genome)

    def row(genome: Array) -> Array:
        gap = binned(genome) - jnp.where(choice, binned(problem.target), problem.target)
        wrong = 2.0 * jnp.sum((jnp.abs(gap) > 1e-4) & choice, axis=-1)
        stretched = jnp.einsum("mij,mj->mi", problem.matrix, jnp.where(choice, 0.0, gap))
        return jnp.where(problem.flat, 1.0, jnp.sum(stretched**2, axis=-1) + wrong)

    return jax.lax.map(row, genomes)


def scores_of(problem: World, loss: Array, generation: Array) -> Scores:
    """Scores as the loop makes them: failed rows at +inf with a reason, one of them skipped."""
    bad = problem.failed | (generation == problem.dead)
    skipped = bad & (jnp.cumsum(bad) == 1)
    fitness = jnp.where(bad[:, None], jnp.inf, loss)
    failure = jnp.where(skipped, Failure.SKIPPED, jnp.where(bad, Failure.NONFINITE, Failure.OK)).astype(jnp.int8)
    return Scores(
        loss=jnp.where(bad[:, None], jnp.nan, loss), evaluated=jnp.broadcast_to(~skipped[:, None], loss.shape),
        fitness=fitness, descriptor=jnp.zeros((loss.shape[0], 0)), failure=failure, metrics={},
    )  # fmt: skip


class Bench:
    """A strategy and a space, with the loop compiled once (traceable) or as plain Python."""

    def __init__(self, strategy: Strategy, space: Space) -> None:
        self.strategy, self.space = strategy, space
        self._loop = jax.jit(self._compiled) if strategy.traceable else self._plain
        self.ask = jax.jit(strategy.ask) if strategy.traceable else strategy.ask
        self.tell = jax.jit(strategy.tell) if strategy.traceable else strategy.tell

    def world(self, seed: int = 0, **changes: Any) -> World:
        """The test problem of that seed, with fields replaced."""
        problem = world(self.space, self.strategy.population, seed, self.strategy.objectives)
        return problem._replace(**{k: jnp.asarray(v, getattr(problem, k).dtype) for k, v in changes.items()})

    def start(self, seed: int = 0, prior: Any = None) -> State:
        """The first state of that seed."""
        return self.strategy.init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), prior)

    def advance(self, state: State, problem: World, count: int, first: int = 0, seed: int = 0) -> tuple[State, Log]:
        """`count` generations from number `first` on; the log holds the first `BLOCK` of them."""
        state, log = self._loop(state, problem, jnp.int32(first), jnp.int32(count), jax.random.key(seed))
        held = min(count, BLOCK)
        return state, Log(*(np.asarray(part)[:held] for part in log))

    def one(self, state: State, problem: World, generation: Any, key: Any, score: Any = None) -> tuple[State, Log]:
        """One generation: ask, score, tell."""
        ask_key, tell_key = generation_keys(key, generation)
        genomes, parents, state = self.strategy.ask(ask_key, state)
        loss = (score or functools.partial(losses, self.space, problem))(genomes)
        scores = scores_of(problem, loss, generation)
        return self.strategy.tell(tell_key, state, genomes, scores), Log(genomes, parents, scores.fitness)

    def _compiled(self, state: State, problem: World, first: Any, count: Any, key: Any) -> tuple[State, Log]:
        shapes = jax.eval_shape(self.one, state, problem, first, key)[1]
        empty = Log(*(jnp.zeros((BLOCK, *part.shape), part.dtype) for part in shapes))

        def body(step: Any, carry: tuple[State, Log]) -> tuple[State, Log]:
            held, log = carry
            held, row = self.one(held, problem, first + step, key)
            return held, Log(*(whole.at[step].set(part, mode="drop") for whole, part in zip(log, row, strict=True)))

        return jax.lax.fori_loop(0, count, body, (state, empty))

    def _plain(self, state: State, problem: World, first: Any, count: Any, key: Any) -> tuple[State, Log]:
        score = _compiled_losses(self.space)
        rows = []
        for step in range(int(count)):
            state, row = self.one(state, problem, int(first) + step, key, lambda genomes: score(problem, genomes))
            rows.append(row)
        return state, Log(*(np.stack([np.asarray(part) for part in parts]) for parts in zip(*rows[:BLOCK], strict=True)))


def generation_keys(key: Any, generation: Any) -> tuple[Any, Any]:
    """Keys of ask and tell: functions of (seed, generation) alone."""
    own = jax.random.fold_in(key, generation)
    return jax.random.fold_in(own, 0), jax.random.fold_in(own, 2)


@functools.lru_cache(maxsize=8)
def _compiled_losses(space: Space) -> Callable[[World, Genomes], Array]:
    return jax.jit(functools.partial(losses, space))


@functools.lru_cache(maxsize=4)
def bench(strategy: Strategy, space: Space) -> Bench:
    """The bench of a strategy; kept, so that the checks of one strategy share its compilations."""
    return Bench(strategy, space)


def _same(one: Any, two: Any) -> bool:
    """Equal structure, dtypes and bits (NaN equals NaN)."""
    left, right = jax.tree.leaves(one), jax.tree.leaves(two)
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(left, right, strict=False)]
    return len(left) == len(right) and all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def _through_disk(state: State) -> State:
    """What a checkpoint does to a state: every leaf to NumPy and back."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), state)


# --- the checks --------------------------------------------------------------------------------------


def check_shapes(strategy: Strategy, space: Space) -> None:
    """Genomes `[P, D]` float32, parents `[P, K, 2]` int32, recommendation `[D]`, states of arrays that keep their form."""
    b, name = bench(strategy, space), strategy.name
    state = b.start()
    for leaf in jax.tree.leaves(state):
        plain = isinstance(leaf, (np.ndarray, jax.Array)) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        assert plain and leaf.dtype != object, f"{name}: expected a state of plain arrays, got a leaf {leaf!r:.80}"
    after, log = b.advance(state, b.world(), 1)
    genomes, parents = log.genomes[0], log.parents[0]
    wanted = (strategy.population, space.dimension)
    assert genomes.shape == wanted, f"{name}: expected genomes of shape {wanted}, got {genomes.shape}"
    assert genomes.dtype == np.float32, f"{name}: expected float32 genomes, got {genomes.dtype}"
    good = parents.ndim == 3 and parents.shape[0] == strategy.population and parents.shape[2] == 2
    assert good, f"{name}: expected parents of shape ({strategy.population}, K, 2), got {parents.shape}"
    assert parents.dtype == np.int32, f"{name}: expected int32 parents, got {parents.dtype}"
    best = np.asarray(strategy.recommend(after))
    assert best.shape == (space.dimension,), f"{name}: expected a recommendation of shape ({space.dimension},), got {best.shape}"
    same = jax.tree.structure(state) == jax.tree.structure(after)
    assert same, f"{name}: expected tell to keep the structure of the state, got {jax.tree.structure(after)}"
    if strategy.traceable:
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            kept = (old.shape, old.dtype) == (new.shape, new.dtype)
            assert kept, f"{name}: expected a state leaf {old.dtype}{old.shape}, got {new.dtype}{new.shape} after tell"


def _assert_inside(b: Bench, state: State, log: Log, when: str) -> None:
    best = np.asarray(b.strategy.recommend(state))
    for what, rows in (("genomes", log.genomes.reshape(-1, b.space.dimension)), ("a recommendation", best[None])):
        assert np.isfinite(rows).all(), f"{b.strategy.name}: expected finite {what} {when}, got {rows[~np.isfinite(rows).all(1)][0]}"
        held = rows[:, b.space.bounded]
        out = held[(held < 0) | (held > 1)]
        assert not out.size, f"{b.strategy.name}: expected {what} in [0, 1] {when}, got {out[0]}. Use space.project in ask"


def check_bounds(strategy: Strategy, space: Space) -> None:
    """Every genome is inside the bounds, also where the search starts in a corner."""
    b = bench(strategy, space)
    corner = np.where(space.bounded, 1.0, 50.0).astype(np.float32)
    for prior, when in ((None, "in a plain run"), (corner, "in a run that starts in a corner")):
        state, log = b.advance(b.start(prior=prior), b.world(), BLOCK)
        _assert_inside(b, state, log, when)


def check_prior(strategy: Strategy, space: Space) -> None:
    """A prior is where the search starts: before the first generation it is what is recommended."""
    prior = np.where(space.bounded, 0.3, 0.7).astype(np.float32)
    got = np.asarray(strategy.recommend(bench(strategy, space).start(prior=prior)))
    assert np.allclose(got, prior, atol=1e-5), f"{strategy.name}: expected the prior {prior} recommended at first, got {got}"


def check_failures(strategy: Strategy, space: Space) -> None:
    """A quarter of the population fails in every generation, and the search goes on."""
    b = bench(strategy, space)
    failed = np.arange(strategy.population) % 4 == 0
    state, log = b.advance(b.start(), b.world(failed=failed), BLOCK)
    _assert_inside(b, state, log, "where a quarter of the rows failed")


def check_none_finite(strategy: Strategy, space: Space) -> None:
    """A generation without one finite row changes no recommendation, and the next one works."""
    b = bench(strategy, space)
    before, _ = b.advance(b.start(), b.world(), 2)
    after, _ = b.advance(before, b.world(dead=2), 1, first=2)
    one, two = np.asarray(strategy.recommend(before)), np.asarray(strategy.recommend(after))
    assert np.array_equal(one, two), f"{strategy.name}: expected a generation without a finite row to change nothing, got {one} -> {two}"
    state, log = b.advance(after, b.world(), 2, first=3)
    _assert_inside(b, state, log, "after a generation without a finite row")
    state, log = b.advance(b.start(), b.world(dead=0), 3)
    _assert_inside(b, state, log, "where nothing of the first generation was finite")


def check_ties(strategy: Strategy, space: Space) -> None:
    """All scores equal, for long: nothing breaks, and the population does not collapse to one point."""
    b = bench(strategy, space)
    long = 60 if strategy.traceable else 4
    state, log = b.advance(b.start(), b.world(flat=True), long)
    _assert_inside(b, state, log, "where all scores are equal")
    state, log = b.advance(state, b.world(flat=True), 2, first=long)
    _assert_inside(b, state, log, "after many equal scores")
    spread = np.ptp(log.genomes[-1], axis=0).max()
    assert spread > 0, f"{strategy.name}: expected different genomes on a plateau, got {strategy.population} copies of one"


def check_parents(strategy: Strategy, space: Space) -> None:
    """Parents name rows of earlier generations that did not fail, or -1."""
    b = bench(strategy, space)
    failed = np.arange(strategy.population) % 4 == 0
    _, log = b.advance(b.start(), b.world(failed=failed), BLOCK)
    for generation, parents in enumerate(log.parents):
        born, index = parents[..., 0], parents[..., 1]
        none = (born == -1) & (index == -1)
        valid = none | ((born >= 0) & (born < generation) & (index >= 0) & (index < strategy.population))
        assert valid.all(), (
            f"{strategy.name}: expected parents (earlier generation, index < {strategy.population}) or (-1, -1),"
            f" got {parents[~valid][0].tolist()} in generation {generation}"
        )
        if generation == 0:
            assert none.all(), f"{strategy.name}: expected no parents in generation 0, got {parents[~none][0].tolist()}"


def check_resume(strategy: Strategy, space: Space, again: Strategy | None = None) -> None:
    """Stopped after every generation, written as arrays and read back, the run has the same bits.

    `again`: a second object of the same strategy, which continues where the first one stopped; give one
    where objects may keep something on the side (it must be a cache only).
    """
    b = bench(strategy, space)
    other = bench(again, space) if again else b
    problem = b.world()
    whole_state, whole = b.advance(b.start(), problem, BLOCK)
    state = _through_disk(b.start())
    for generation in range(BLOCK):
        state, log = (b if generation % 2 else other).advance(state, problem, 1, first=generation)
        same = _same([part[0] for part in log], [part[generation] for part in whole])
        assert same, f"{strategy.name}: expected the same bits after a resume, got other ones in generation {generation}"
        state = _through_disk(state)
    assert _same(state, whole_state), f"{strategy.name}: expected the same final state after resumes, got another one"


def check_block(strategy: Strategy, space: Space) -> None:
    """One compiled block = separately compiled ask and tell = a scan over two host devices, bit for bit.

    Scores are gathered to every device before `tell` reads them, as the loop does. Without a second
    device (`jax.config.update("jax_num_cpu_devices", 2)` before JAX starts) that part is left out; a
    strategy that is not traceable has nothing to check.
    """
    if not strategy.traceable:
        return
    b = bench(strategy, space)
    problem, key = b.world(), jax.random.key(0)
    state, block = b.advance(b.start(), problem, BLOCK)

    held, score = b.start(), _compiled_losses(space)
    for generation in range(BLOCK):
        ask_key, tell_key = generation_keys(key, generation)
        genomes, parents, held = b.ask(ask_key, held)
        scores = scores_of(problem, score(problem, genomes), jnp.int32(generation))
        same = _same([genomes, parents], [block.genomes[generation], block.parents[generation]])
        assert same, _changed(strategy, "ask and tell compiled apart", genomes, block.genomes[generation], generation)
        held = b.tell(tell_key, held, genomes, scores)
    assert _same(held, state), f"{strategy.name}: expected the same state from ask and tell compiled apart, got another one"

    devices = jax.devices()[:2]
    if len(devices) == 2 and strategy.population % 2 == 0:
        end, spread = _scan_on(b, devices)(b.start(), problem, key)
        for generation in range(BLOCK):
            genomes = np.asarray(spread.genomes[generation])
            same = _same(genomes, block.genomes[generation])
            assert same, _changed(strategy, "a scan over two devices", genomes, block.genomes[generation], generation)
        assert _same(end, state), f"{strategy.name}: expected the same state from a scan over two devices, got another one"


def _changed(strategy: Strategy, how: str, got: Any, wanted: Any, generation: int) -> str:
    gap = float(np.max(np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))))
    return (
        f"{strategy.name}: expected the same bits from {how} as from one block, got a difference of {gap:.3g} in"
        f" generation {generation}. Declare it traceable=False if that cannot be cured"
    )


def _scan_on(b: Bench, devices: list[Any]) -> Callable[..., tuple[State, Log]]:
    mesh = jax.sharding.Mesh(np.asarray(devices), ("rows",))
    spec = jax.sharding.PartitionSpec
    everywhere = jax.sharding.NamedSharding(mesh, spec())

    def scan(state: State, problem: World, key: Any) -> tuple[State, Log]:
        split = jax.shard_map(
            lambda p, genomes: losses(b.space, p, genomes), mesh=mesh, in_specs=(spec(), spec("rows")), out_specs=spec("rows")
        )

        def score(genomes: Genomes) -> Array:
            loss = split(problem, jax.lax.with_sharding_constraint(genomes, everywhere))
            return jax.lax.with_sharding_constraint(loss, everywhere)

        return jax.lax.scan(lambda s, g: b.one(s, problem, g, key, score), state, jnp.arange(BLOCK, dtype=jnp.int32))

    return jax.jit(scan, in_shardings=everywhere, out_shardings=everywhere)


def check_beats_random(strategy: Strategy, space: Space, generations: int = 40, seeds: int = 5) -> tuple[float, float]:
    """Better than random search at equal evaluations: median over seeds, and in all seeds but one.

    Returns both medians of the true loss of what is recommended (summed over objectives).
    """
    if not strategy.traceable:
        generations, seeds = min(generations, 12), min(seeds, 3)
    b = bench(strategy, space)
    mine, theirs = [], _random_quality(space, strategy.population, generations, seeds, strategy.objectives)
    for seed in range(seeds):
        state, _ = b.advance(b.start(seed), b.world(seed), generations, seed=seed)
        mine.append(_quality(space, b.world(seed), strategy.recommend(state)))
    wins = sum(one < two for one, two in zip(mine, theirs, strict=True))
    medians = float(np.median(mine)), float(np.median(theirs))
    assert wins >= seeds - 1 and medians[0] < medians[1], (
        f"{strategy.name}: expected to beat random search over {generations} generations of {strategy.population} in"
        f" {seeds - 1} of {seeds} seeds, got {wins} (median {medians[0]:.3g}, random search {medians[1]:.3g})"
    )
    return medians


def _quality(space: Space, problem: World, genome: Any) -> float:
    return float(jnp.sum(_compiled_losses(space)(problem, jnp.asarray(genome)[None])))


@functools.cache
def _random_quality(space: Space, population: int, generations: int, seeds: int, objectives: int) -> tuple[float, ...]:
    """Random search on the sum of the objectives: the best of all it saw, without noise its likely-best."""
    results = []
    for seed in range(seeds):
        problem = world(space, population, seed, objectives)
        genomes = space.project(space.sample(jax.random.key(seed), population * generations))
        results.append(float(jnp.min(jnp.sum(_compiled_losses(space)(problem, genomes), axis=-1))))
    return tuple(results)


def check_refusals(factory: Factory, space: Space) -> None:
    """Nonsense is refused with words: population 0, an unknown hyperparameter, a column it cannot search."""
    strategy = factory(space)
    _assert_refuses(lambda: factory(space, population=0), strategy.name, "population=0", EvometaError)
    _assert_refuses(lambda: factory(space, no_such_hyperparameter=1), strategy.name, "an unknown hyperparameter", UsageError)
    full = space_for(frozenset(columns.KINDS))
    if full.kinds - strategy.searches:
        kinds = ", ".join(sorted(full.kinds - strategy.searches))
        _assert_refuses(lambda: factory(full), strategy.name, f"{kinds} columns, which it does not search", ConfigError)


def _assert_refuses(call: Callable[[], Any], name: str, what: str, kind: type[Exception]) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{name}: expected {kind.__name__} for {what}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{name}: expected {kind.__name__} for {what}, got a strategy")


def exam(
    factory: Factory, space: Space | None = None, *, population: int = 16, beats_random: bool = True, **hyperparameters: Any
) -> Report:
    """Run every check on a factory; raises `AssertionError` at the first that fails.

    `space`: what to search; by default a small one with every kind of column that the strategy declares.
    `beats_random=False`: for blind strategies.
    """
    began = time.perf_counter()
    space = space or space_for(_declared(factory))

    def build(chosen: Space, population: int = population, **more: Any) -> Strategy:
        return factory(chosen, population=population, **{**hyperparameters, **more})

    strategy = build(space)
    again = None if strategy.traceable else build(space)
    passed = ["refusals"]
    check_refusals(build, space)
    for check in (check_shapes, check_prior, check_bounds, check_failures, check_none_finite, check_ties, check_parents):
        check(strategy, space)
        passed.append(check.__name__.removeprefix("check_"))
    check_resume(strategy, space, again)
    check_block(strategy, space)
    passed += ["resume", "block"]
    quality = (float("nan"), float("nan"))
    if beats_random:
        quality = check_beats_random(strategy, space)
        passed.append("beats_random")
    return Report(strategy.name, tuple(passed), time.perf_counter() - began, *quality)


def _declared(factory: Factory) -> frozenset[str]:
    """The kinds of column that a factory's strategies search, found on the first space that it accepts."""
    refusal: Exception | None = None
    for kind in columns.KINDS:
        try:
            return factory(space_for(frozenset({kind}))).searches
        except ConfigError as error:
            refusal = error
    raise AssertionError(f"expected a factory that accepts a space of one kind of column, got: {refusal}")

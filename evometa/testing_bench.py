"""The test problem of the exam (`testing.py`) and the bench that runs a strategy on it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa import space as columns
from evometa.space import Space
from evometa.types import Array, Failure, Genomes, Scores, State, Strategy

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


@functools.cache
def space_for(searches: frozenset[str]) -> Space:
    """A small space with every kind of column that a strategy says it searches."""
    everything = {
        "first": columns.real(0.0, 1.0), "second": columns.real(-3.0, 5.0), "rate": columns.log(1e-4, 1.0),
        "count": columns.integer(1, 20), "arrays": {"w": columns.weights((2, 2), scale=0.5)},
        "choice": columns.categorical(("a", "b", "c")),
    }  # fmt: skip
    kinds = {
        "first": "real",
        "second": "real",
        "rate": "log",
        "count": "integer",
        "arrays": "weights",
        "choice": "categorical",
    }
    return Space({name: column for name, column in everything.items() if kinds[name] in searches})


def world(space: Space, population: int, seed: int = 0, objectives: int = 1) -> World:
    """A rotated quadratic, condition number 100, its optimum away from the center (a wrong choice costs 2)."""
    draw = np.random.default_rng(seed)
    size = space.dimension
    scaling = np.sqrt(np.logspace(0, 2, size) if size > 1 else np.ones(1))
    matrix = [scaling[:, None] * np.linalg.qr(draw.normal(size=(size, size)))[0] for _ in range(objectives)]
    side = np.where(draw.random((objectives, size)) < 0.5, -1.0, 1.0)
    target = np.where(
        space.bounded, 0.5 + side * draw.uniform(0.2, 0.4, side.shape), side * draw.uniform(0.5, 1.0, side.shape)
    )
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

    target = jax.vmap(lambda goal: jnp.where(choice, binned(goal), goal))(problem.target)

    def row(genome: Array) -> Array:
        gap = binned(genome)[None] - target
        wrong = 2.0 * jnp.sum((jnp.abs(gap) > 1e-4) & choice[None], axis=-1)
        stretched = jnp.einsum("mij,mj->mi", problem.matrix, jnp.where(choice[None], 0.0, gap))
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
    """A strategy and a space, with the loop compiled once (traceable) or as plain Python.

    The compiled loop spreads the rows of a generation over two devices where there are two and the
    population is even, and gathers the scores before `tell` reads them, as evometa's own loop does.
    """

    def __init__(self, strategy: Strategy, space: Space, spread: bool = True) -> None:
        self.strategy, self.space = strategy, space
        count = 2 if spread and strategy.population % 2 == 0 else 1
        self._mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), ("rows",))
        self._everywhere = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        self.devices = self._mesh.size
        shardings: dict[str, Any] = {"in_shardings": self._everywhere, "out_shardings": self._everywhere}
        self._loop = jax.jit(self._compiled, **shardings) if strategy.traceable else self._plain
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
        # To the host, as a checkpoint does: what lies on two devices is another type to whoever is compiled next.
        return jax.tree.map(np.asarray, state), Log(*(np.asarray(part)[:held] for part in log))

    def one(self, state: State, problem: World, generation: Any, key: Any, score: Any = None) -> tuple[State, Log]:
        """One generation: ask, score, tell."""
        ask_key, tell_key = generation_keys(key, generation)
        genomes, parents, state = self.strategy.ask(ask_key, state)
        loss = (score or functools.partial(losses, self.space, problem))(genomes)
        scores = scores_of(problem, loss, generation)
        return self.strategy.tell(tell_key, state, genomes, scores), Log(genomes, parents, scores.fitness)

    def _compiled(self, state: State, problem: World, first: Any, count: Any, key: Any) -> tuple[State, Log]:
        rows = jax.sharding.PartitionSpec("rows")
        split = jax.shard_map(
            functools.partial(losses, self.space),
            mesh=self._mesh,
            in_specs=(jax.sharding.PartitionSpec(), rows),
            out_specs=rows,
        )

        def score(genomes: Genomes) -> Array:
            gathered = jax.lax.with_sharding_constraint(genomes, self._everywhere)
            return jax.lax.with_sharding_constraint(split(problem, gathered), self._everywhere)

        shapes = jax.eval_shape(self.one, state, problem, first, key)[1]
        empty = Log(*(jnp.zeros((BLOCK, *part.shape), part.dtype) for part in shapes))

        def body(step: Any, carry: tuple[State, Log]) -> tuple[State, Log]:
            held, log = carry
            held, row = self.one(held, problem, first + step, key, score)
            return held, Log(*(whole.at[step].set(part, mode="drop") for whole, part in zip(log, row, strict=True)))

        return jax.lax.fori_loop(0, count, body, (state, empty))

    def _plain(self, state: State, problem: World, first: Any, count: Any, key: Any) -> tuple[State, Log]:
        score = compiled_losses(self.space)
        rows = []
        for step in range(int(count)):
            state, row = self.one(state, problem, int(first) + step, key, lambda genomes: score(problem, genomes))
            rows.append(row)
        return state, Log(
            *(np.stack([np.asarray(part) for part in parts]) for parts in zip(*rows[:BLOCK], strict=True))
        )


def generation_keys(key: Any, generation: Any) -> tuple[Any, Any]:
    """Keys of ask and tell: functions of (seed, generation) alone."""
    own = jax.random.fold_in(key, generation)
    return jax.random.fold_in(own, 0), jax.random.fold_in(own, 2)


@functools.lru_cache(maxsize=8)
def compiled_losses(space: Space) -> Callable[[World, Genomes], Array]:
    """`losses` of a space, compiled once."""
    return jax.jit(functools.partial(losses, space))


@functools.lru_cache(maxsize=4)
def bench(strategy: Strategy, space: Space) -> Bench:
    """The bench of a strategy; kept, so that the checks of one strategy share its compilations."""
    return Bench(strategy, space)


def same_bits(one: Any, two: Any) -> bool:
    """Equal leaves, dtypes and bits (NaN equals NaN)."""
    left, right = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (one, two))
    return len(left) == len(right) and all(
        (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) for x, y in zip(left, right, strict=True)
    )


def through_disk(state: State) -> State:
    """What a checkpoint does to a state: every leaf to NumPy and back."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), state)

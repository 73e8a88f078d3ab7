"""A population-based optimizer whose update rule is a program, run on many landscapes at once.

One run: `population` places drawn uniformly in the box [-5, 5]^D and evaluated; then, `iterations - 1` times, the
program says where every individual goes, the place is folded back into the box and evaluated. A run so takes exactly
population x iterations evaluations. Several instances (optima, rotations, first places) of a function run side by
side: to the machine they are one long array. After the first places they meet the same luck, for drawing random numbers
is most of what a run costs; their averages stay what they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.programs.interpret import Machine, Ready
from evometa.programs.vocabulary import Vocabulary
from evometa.tasks.functions import BOUND, FLOOR, value

# The names of a population vocabulary's inputs that a run gives, and of the output that it reads.
GIVEN = (
    "x", "own_best", "best", "worst", "mean", "other1", "other2", "other3", "uniform", "normal", "spread", "rank",
    "progress",
)  # fmt: skip
READ = ("next",)
LEAST = 4  # individuals: one and three others


class Rule(NamedTuple):
    """An update rule ready to run."""

    ready: Ready
    greedy: Any  # [] bool: an individual moves only where the new place is better


class _Swarm(NamedTuple):
    """K instances of P individuals in D dimensions."""

    x: Any  # [K, P, D] where they are
    f: Any  # [K, P] the function there
    own: Any  # [K, P, D] the best place that each has seen
    best: Any  # [K, P] the function there
    memory: Any  # [memory, K P D] the program's


def instances(key: Any, function: dict[str, Any], count: int) -> dict[str, Any]:
    """`count` landscapes of a function: optima uniform in [-4, 4]^D and, where it is rotated, uniform rotations.

    `function` has `form` [], `scale` [D] and `rotated` []; what is returned is what `functions.value` takes, with a
    first axis of length `count` on `optimum` and `rotation`. Traceable.
    """
    size = function["scale"].shape[0]
    optimum_key, rotation_key = jax.random.split(key)
    optimum = jax.random.uniform(optimum_key, (count, size), minval=-0.8 * BOUND, maxval=0.8 * BOUND)
    # QR with positive diagonal: uniform over the orthogonal group (Mezzadri 2007).
    q, r = jnp.linalg.qr(jax.random.normal(rotation_key, (count, size, size)))
    rotation = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None, :]
    rotation = jnp.where(function["rotated"], rotation, jnp.eye(size))
    return {"form": function["form"], "optimum": optimum, "rotation": rotation, "scale": function["scale"]}


def heights(x: Any, landscapes: dict[str, Any]) -> Any:
    """f `[K, P]` of places `[K, P, D]` on K landscapes."""

    def on_one(points: Any, optimum: Any, rotation: Any) -> Any:
        return jax.vmap(lambda x: value(x, {**landscapes, "optimum": optimum, "rotation": rotation}))(points)

    return jax.vmap(on_one)(x, landscapes["optimum"], landscapes["rotation"])


def into_box(x: Any, before: Any) -> Any:
    """Places reflected at the box's walls; a coordinate that is not finite stays where it was."""
    turned = jnp.mod(x + BOUND, 4.0 * BOUND)
    folded = jnp.where(turned > 2.0 * BOUND, 4.0 * BOUND - turned, turned) - BOUND
    folded = jnp.where(jnp.abs(x) <= BOUND, x, folded)  # to the bit, where nothing had to be done
    return jnp.where(jnp.isfinite(folded), folded, before)


def optimize(
    key: Any, vocabulary: Vocabulary, rule: Rule, landscapes: dict[str, Any], individuals: Any, progress: Any
) -> Any:
    """log10(1e-8 + least f seen) `[K]` after a run on each of K landscapes; NaN for a refused program. Traceable.

    `individuals`: 0 .. P - 1, `[P]`. `progress`: the share of the budget that is spent when each iteration begins,
    `[T]`; the first iteration is the uniform one.
    """
    count, size = landscapes["optimum"].shape
    shape = (count, individuals.shape[0], size)
    machine = Machine(vocabulary, (size,) * (shape[0] * shape[1]))
    start_key, key = jax.random.split(key)
    x = jax.random.uniform(start_key, shape, minval=-BOUND, maxval=BOUND)
    f = heights(x, landscapes)
    swarm = _Swarm(x, f, x, f, machine.start(rule.ready, {}))

    def iteration(swarm: _Swarm, now: Any) -> tuple[_Swarm, None]:
        number, spent = now
        inputs = {**_inputs(jax.random.fold_in(key, number), swarm, individuals), "progress": spent}
        outputs, memory = machine.step(rule.ready, swarm.memory, inputs)
        x = into_box(outputs["next"].reshape(shape), swarm.x)
        f = heights(x, landscapes)
        better = f < swarm.best
        own = jnp.where(better[:, :, None], x, swarm.own)
        best = jnp.where(better, f, swarm.best)
        moves = ~rule.greedy | (f < swarm.f)
        x, f = jnp.where(moves[:, :, None], x, swarm.x), jnp.where(moves, f, swarm.f)
        return _Swarm(x, f, own, best, memory), None

    swarm, _ = jax.lax.scan(iteration, swarm, (jnp.arange(1, progress.shape[0]), progress[1:]))
    regret = jnp.log10(jnp.float32(FLOOR) + jnp.min(swarm.best, axis=1))
    return jnp.where(rule.ready.refused, jnp.nan, regret)


def _inputs(key: Any, swarm: _Swarm, individuals: Any) -> dict[str, Any]:
    """What the program reads, by name, but for the progress: `[K P D]`, `[K P]` for the rank."""
    shape = swarm.x.shape
    uniform_key, normal_key, other_key = jax.random.split(key, 3)
    row = jnp.arange(shape[0])
    others = three_others(other_key, individuals)

    def for_all(one: Any) -> Any:
        return jnp.broadcast_to(one[:, None, :], shape).reshape(-1)

    def for_each(luck: Any) -> Any:
        return jnp.broadcast_to(luck, shape).reshape(-1)

    lower = swarm.f[:, None, :] < swarm.f[:, :, None]
    return {
        "x": swarm.x.reshape(-1),
        "own_best": swarm.own.reshape(-1),
        "best": for_all(swarm.own[row, jnp.argmin(swarm.best, axis=1)]),
        "worst": for_all(swarm.x[row, jnp.argmax(swarm.f, axis=1)]),
        "mean": for_all(jnp.mean(swarm.x, axis=1)),
        "spread": for_all(jnp.std(swarm.x, axis=1)),
        **{f"other{i + 1}": swarm.x[:, others[i]].reshape(-1) for i in range(3)},
        "uniform": for_each(jax.random.uniform(uniform_key, shape[1:])),
        "normal": for_each(jax.random.normal(normal_key, shape[1:])),
        "rank": (jnp.sum(lower, axis=2) / (shape[1] - 1)).reshape(-1),
    }


def three_others(key: Any, individuals: Any) -> Any:
    """For each individual three different others, uniformly: `[3, P]` int32."""
    population = individuals.shape[0]
    word = jax.random.bits(key, (population,))  # one word holds all three draws
    taken = [jnp.asarray(individuals, jnp.int32)]
    for left in range(population - 1, population - 4, -1):
        drawn, word = (word % left).astype(jnp.int32), word // left
        # A number among those not yet taken becomes a number among all.
        for used in jnp.sort(jnp.stack(taken), axis=0):
            drawn += (drawn >= used).astype(jnp.int32)
        taken.append(drawn)
    return jnp.stack(taken[1:])

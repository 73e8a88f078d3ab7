"""A table of action values that learns by any loss, and the exact worth of what it learned.

One learner per MDP of a domain. What it learns from are sweeps (every action of every state is tried at every step,
with a chance of its own: after the synchronous Q-learning of Even-Dar and Mansour 2003) or walkers that share its
table. At every step each entry moves by -lr times the mean of the loss's derivative over its trials; lr falls linearly
to zero. The derivative is by the value of the action taken alone: all else the loss reads is held fixed, as is usual
for value-based methods. Values of the next state come from a copy that follows the table: each step takes away 1 /
`lag` of the distance (after Mnih et al. 2015).

Nothing is rolled out to judge: the greedy policy is a linear system away from its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evometa.tasks.parts.mdps import ACTIONS

MARKS = 4  # how often on its way a learner is judged
DRAWS = 5  # random numbers per action taken


Slope = Callable[[dict[str, Any]], Any]  # derivative of the loss by `q`: arrays [N] by name -> [N]


def learn(key: Any, slope: Slope, lr: Any, support: dict[str, Any], actors: int, lag: float) -> Any:
    """Tables `[MARKS, I, S, 4]` after each quarter of `support["clock"]` [MARKS, steps / MARKS].

    `support`: the arrays of `mdps.instance`, I of them stacked; with `epsilon` [I] walkers learn, without it sweeps.
    `slope` gets all transitions of a step at once: I * actors, or I * S * 4.
    """
    support = jax.tree.map(jnp.asarray, support)
    experience = _Walkers(key, support, actors) if "epsilon" in support else _Sweeps(key, support)
    steps = support["clock"].size

    def step(carry: Any, now: Any) -> tuple[Any, None]:
        table, target, state = carry
        target = target + (table - target) / lag
        taken, state = experience.step(table, state, now)
        # By state first, then by transition: reductions are dear here, and there are fewer states.
        online = _of(target, jnp.argmax(table, axis=-1))
        place, follower = (experience.chosen, taken.state), (experience.chosen, taken.follower)
        batch = {
            "q": table[experience.chosen, taken.state, taken.action],
            "q_max": table.max(axis=-1)[place],
            "q_mean": table.mean(axis=-1)[place],
            "next_max": target.max(axis=-1)[follower],
            "next_online": online[follower],
            "next_mean": target.mean(axis=-1)[follower],
            "reward": taken.reward,
            "discount": taken.on * support["discount"][:, None],
        }
        pull = slope({name: value.reshape(-1) for name, value in batch.items()}).reshape(taken.reward.shape)
        size = lr * (1.0 - now / steps)
        return (table - size * experience.mean_by_entry(pull, taken, state), target, state), None

    def quarter(carry: Any, clock: Any) -> tuple[Any, Any]:
        carry, _ = jax.lax.scan(step, carry, clock)
        return carry, carry[0]

    empty = jnp.zeros((*support["next"].shape[:2], ACTIONS))
    _, tables = jax.lax.scan(quarter, (empty, empty, experience.begin()), support["clock"])
    return tables


class Taken(NamedTuple):
    """Actions taken and what came of them, each `[I, transitions]`."""

    state: Any
    action: Any
    follower: Any
    reward: Any
    on: Any


class _Sweeps:
    """Every action of every state is tried at every step with a chance of its own, `rate` [I, S, 4].

    Nobody's exploration has a part in what is learned; but entries are tried more and less often, or a rule
    that only ever adds up what it sees would do.
    """

    def __init__(self, key: Any, support: dict[str, Any]) -> None:
        self.support = support
        instances, states = support["next"].shape[:2]
        self.shape = (instances, states, ACTIONS)
        self.chosen = jnp.arange(instances)[:, None]
        pairs = jnp.broadcast_to(jnp.arange(states * ACTIONS)[None], (instances, states * ACTIONS))
        self.state, self.action = pairs // ACTIONS, pairs % ACTIONS
        self.luck = jax.random.uniform(key, (support["clock"].size, 3, instances, states * ACTIONS))

    def begin(self) -> Any:
        return jnp.zeros(self.shape, bool)

    def step(self, table: Any, state: Any, now: Any) -> tuple[Taken, Any]:
        del table, state
        fall, shake, turn = self.luck[now]
        tried = turn.reshape(self.shape) < self.support["rate"]
        return _outcome(self.support, self.chosen, self.state, self.action, fall, shake), tried

    def mean_by_entry(self, pull: Any, taken: Taken, state: Any) -> Any:
        del taken
        return jnp.where(state, pull.reshape(self.shape), 0.0)


class _Walkers:
    """`actors` walkers in each MDP, epsilon-greedy, that share its table."""

    def __init__(self, key: Any, support: dict[str, Any], actors: int) -> None:
        self.support = support
        instances, states = support["next"].shape[:2]
        self.shape = (instances, states, ACTIONS)
        self.chosen = jnp.arange(instances)[:, None]
        self.first = jnp.cumsum(support["start"], axis=-1)
        luck_key, start_key = jax.random.split(key)
        self.luck = jax.random.uniform(luck_key, (support["clock"].size, DRAWS, instances, actors))
        self.start = self._start(jax.random.uniform(start_key, (instances, actors)))

    def _start(self, u: Any) -> Any:
        # At most the last state with a share: rounding must not lead into the padding.
        place = jnp.sum(u[..., None] >= self.first[:, None, :], axis=-1)
        return jnp.minimum(place, jnp.sum(self.first < self.first[:, -1:], axis=-1)[:, None])

    def begin(self) -> Any:
        return self.start, jnp.zeros_like(self.start)

    def step(self, table: Any, state: Any, now: Any) -> tuple[Taken, Any]:
        s, age = state
        explore, turn, fall, shake, again = self.luck[now]
        offset = jnp.floor(turn * ACTIONS).astype(jnp.int32)
        row = table[self.chosen, s]
        # Ties are broken at random: a table that knows nothing walks at random.
        turned = (jnp.arange(ACTIONS)[None, None] + offset[..., None]) % ACTIONS
        rank = jnp.where(row == row.max(axis=-1, keepdims=True), turned, -1)
        action = jnp.where(explore < self.support["epsilon"][:, None], offset, jnp.argmax(rank, axis=-1))
        taken = _outcome(self.support, self.chosen, s, action, fall, shake)
        age = age + 1
        over = (taken.on == 0) | (age >= self.support["limit"][:, None])
        return taken, (jnp.where(over, self._start(again), taken.follower), jnp.where(over, 0, age))

    def mean_by_entry(self, pull: Any, taken: Taken, state: Any) -> Any:
        del state
        place = (self.chosen, taken.state, taken.action)
        visits, total = jnp.zeros(self.shape).at[place].add(1.0), jnp.zeros(self.shape).at[place].add(pull)
        return total / jnp.maximum(visits, 1.0)


def _outcome(support: dict[str, Any], chosen: Any, s: Any, a: Any, fall: Any, shake: Any) -> Taken:
    reach = jnp.cumsum(support["chance"][chosen, s, a], axis=-1)
    branch = jnp.minimum(jnp.sum(fall[..., None] >= reach, axis=-1), reach.shape[-1] - 1)
    noise = support["noise"][:, None] * 12.0**0.5 * (shake - 0.5)
    follower, on, reward = (support[name][chosen, s, a, branch] for name in ("next", "on", "reward"))
    return Taken(s, a, follower, reward + noise, on)


def _of(rows: Any, index: Any) -> Any:
    return jnp.take_along_axis(rows, index[..., None], axis=-1)[..., 0]


def shortfall(table: Any, query: dict[str, Any]) -> Any:
    """How far the greedy policies of tables `[I, S, 4]` fall short, `[I]`: 0 for the best policy, 1 for a random one.

    `query`: `step` [I, S, 4, S] and `reward` [I, S, 4] as `mdps.model` gives them, `start` [I, S], `best` and `random`
    [I]. Among equal actions one is drawn at random. NaN where the table is not finite.
    """
    query = jax.tree.map(jnp.asarray, query)
    greedy = (table == table.max(axis=-1, keepdims=True)).astype(jnp.float32)
    policy = greedy / jnp.maximum(greedy.sum(axis=-1, keepdims=True), 1.0)
    after = jnp.sum(policy[..., None] * query["step"], axis=2)
    worth = jnp.sum(policy * query["reward"], axis=2)
    reached = jnp.sum(query["start"] * _solve(after, worth), axis=1)
    lost = (query["best"] - reached) / (query["best"] - query["random"])
    return jnp.where(jnp.isfinite(table).all(axis=(1, 2)), lost, jnp.nan)


def _solve(after: Any, worth: Any) -> Any:
    """v `[I, S]` of v = worth + after v, for `after` [I, S, S] whose rows sum to less than 1.

    Gauss and Jordan without pivoting: safe, for the matrix is diagonally dominant, and many times faster here than one
    LAPACK call for each small matrix.
    """
    states = after.shape[-1]
    system = jnp.concatenate([jnp.eye(states)[None] - after, worth[..., None]], axis=-1)

    def eliminate(k: Any, system: Any) -> Any:
        row = system[:, k] / system[:, k, k][:, None]
        column = jnp.where(jnp.arange(states)[None] == k, 0.0, system[:, :, k])
        return (system - column[..., None] * row[:, None, :]).at[:, k].set(row)

    return jax.lax.fori_loop(0, states, eliminate, system)[..., -1]

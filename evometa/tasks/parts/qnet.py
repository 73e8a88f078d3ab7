"""A small Q-network with replay that learns by any loss, on environments of gymnax.

As Mnih et al. 2015 in the small: epsilon-greedy actors, a ring of the last transitions, Adam, a copy of the network
that follows it. The loss is differentiated by the value of the action taken (a number per transition), and that goes
back through the network by the chain rule.

Environments: gymnax (Lange 2022, Apache-2.0), after Gymnasium's classic control and bsuite (Osband et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Domain
from evometa.errors import EvometaError, how_to_install

ENVS = 16  # environments side by side, all of one agent
BATCH = 64
UPDATES = 4  # gradient steps after each step of all environments
REPLAY = 2048  # transitions kept
LAG = 100  # updates over which the copy follows
DISCOUNT = 0.99
LAST_EPSILON = 0.05  # reached half-way, from 1
MOMENTS = (0.9, 0.999)


class Place(NamedTuple):
    """An environment: gymnax's name and options, and the returns that count as 0 and 1 (undiscounted)."""

    id: str
    options: dict[str, Any]
    best: float  # of the best policy, or of one that is said to solve it
    random: float  # of uniform actions: measured over 4,000 episodes
    horizon: int  # steps after which an episode is cut


# DiscountingChain pays 1 or, for one of its five roads, 1.1.
PLACES: dict[str, Place] = {
    "cartpole": Place("CartPole-v1", {}, 500.0, 22.0, 500),
    "catch": Place("Catch-bsuite", {}, 1.0, -0.59, 9),
    "deep_sea_6": Place("DeepSea-bsuite", {"size": 6}, 0.99, 0.014, 6),
    "discounting_chain": Place("DiscountingChain-bsuite", {}, 1.1, 1.02, 100),
    "acrobot": Place("Acrobot-v1", {}, -80.0, -498.6, 500),
    "mountain_car": Place("MountainCar-v0", {}, -110.0, -200.0, 200),
    "frozen_lake": Place("FrozenLake-misc", {}, 0.74, 0.016, 100),
    "four_rooms": Place("FourRooms-misc", {}, 1.0, 0.45, 500),
    "deep_sea_12": Place("DeepSea-bsuite", {"size": 12}, 0.99, -0.005, 12),
}
ROLES = {
    "train": ("cartpole", "catch", "deep_sea_6"),
    "validation": ("discounting_chain", "acrobot"),
    "test": ("mountain_car", "frozen_lake", "four_rooms", "deep_sea_12"),
}
QUICK = {"train": ("catch",), "validation": ("deep_sea_6",), "test": ("frozen_lake",)}


class Sizes(NamedTuple):
    """What sets array shapes and lengths: the same for every candidate."""

    env_steps: int  # of all environments together
    hidden: int
    episodes: int


def domain(name: str) -> Domain:
    """The environment called `name` as a domain. It has no data: which environment it is, its one key says."""
    where = {f"env:{name}": np.zeros((), np.float32)}
    tags = {"family": PLACES[name].id.partition("-")[0], "experience": "walked"}
    return Domain(name, where, {"greedy": where}, tags)


@lru_cache(maxsize=32)
def environment(name: str) -> tuple[Any, Any]:
    """Gymnax's environment and its parameters. Raises `EvometaError` where gymnax is missing."""
    # gymnax makes arrays when it is imported: inside a traced function they would be tracers, and escape.
    with jax.ensure_compile_time_eval():
        try:
            gymnax = import_module("gymnax")
        except ModuleNotFoundError as error:
            raise EvometaError(
                f"rl_loss_graph with agent='network' needs the package {error.name!r}. {how_to_install('gymnax')}"
            ) from error
        return gymnax.make(PLACES[name].id, **PLACES[name].options)


def learn(
    key: Any, slope: Callable[[dict[str, Any]], Any], lr: Any, support: dict[str, Any], sizes: Sizes
) -> dict[str, Any]:
    """Train a network on the environment that `support` names; `slope` as in `qtable.learn`, for BATCH transitions."""
    world = _World(support)
    keys = jax.random.split(key, 4)
    obs, state = world.reset(jax.random.split(keys[0], ENVS))
    net = _network(keys[1], obs.shape[-1], sizes.hidden, world.actions)
    blank = jax.tree.map(jnp.zeros_like, net)
    flat = jnp.zeros((REPLAY,))
    ring = {"obs": jnp.zeros((REPLAY, obs.shape[-1])), "next": jnp.zeros((REPLAY, obs.shape[-1]))}
    ring |= {"action": jnp.zeros((REPLAY,), jnp.int32), "reward": flat, "discount": flat}
    steps = sizes.env_steps // ENVS

    def update(carry: Any, key: Any, filled: Any, ring: Any) -> tuple[Any, None]:
        net, target, first, second, count = carry
        chosen = jax.random.randint(key, (BATCH,), 0, filled)
        batch = {name: part[chosen] for name, part in ring.items()}
        after, preferred = _values(target, batch["next"]), jnp.argmax(_values(net, batch["next"]), axis=-1)

        def taken(net: Any) -> tuple[Any, Any]:
            values = _values(net, batch["obs"])
            return _of(values, batch["action"]), values

        q, back, values = jax.vjp(taken, net, has_aux=True)
        pull = slope(
            {
                "q": q,
                "q_max": values.max(axis=-1),
                "q_mean": values.mean(axis=-1),
                "next_max": after.max(axis=-1),
                "next_online": _of(after, preferred),
                "next_mean": after.mean(axis=-1),
                "reward": batch["reward"],
                "discount": batch["discount"],
            }
        )
        gradient = back(pull / BATCH)[0]
        count = count + 1
        first = jax.tree.map(lambda m, g: MOMENTS[0] * m + (1 - MOMENTS[0]) * g, first, gradient)
        second = jax.tree.map(lambda v, g: MOMENTS[1] * v + (1 - MOMENTS[1]) * g * g, second, gradient)
        size = lr * jnp.sqrt(1 - MOMENTS[1] ** count) / (1 - MOMENTS[0] ** count)
        net = jax.tree.map(lambda w, m, v: w - size * m / (jnp.sqrt(v) + 1e-8), net, first, second)
        target = jax.tree.map(lambda t, w: t + (w - t) / LAG, target, net)
        return (net, target, first, second, count), None

    def step(carry: Any, now: Any) -> tuple[Any, None]:
        learner, obs, state, ring = carry
        luck = jax.random.split(jax.random.fold_in(keys[2], now), 4)
        epsilon = jnp.maximum(LAST_EPSILON, 1.0 - 2.0 * now / steps)
        greedy = jnp.argmax(_values(learner[0], obs), axis=-1)
        anything = jax.random.randint(luck[0], (ENVS,), 0, world.actions)
        action = jnp.where(jax.random.uniform(luck[1], (ENVS,)) < epsilon, anything, greedy)
        following, state, reward, ended, _, reached = world.step(jax.random.split(luck[2], ENVS), state, action)
        fresh = {"obs": obs, "next": reached, "action": action, "reward": reward, "discount": DISCOUNT * (1.0 - ended)}
        place = (now * ENVS) % REPLAY
        ring = {name: jax.lax.dynamic_update_slice_in_dim(ring[name], fresh[name], place, 0) for name in ring}
        filled = jnp.minimum((now + 1) * ENVS, REPLAY)
        learner, _ = jax.lax.scan(lambda c, k: update(c, k, filled, ring), learner, jax.random.split(luck[3], UPDATES))
        return (learner, following, state, ring), None

    learner = (net, net, blank, blank, jnp.float32(0.0))
    (learner, *_), _ = jax.lax.scan(step, (learner, obs, state, ring), jnp.arange(steps))
    return {"net": learner[0], "inner_steps": jnp.float32(steps * UPDATES)}


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any], *, sizes: Sizes) -> dict[str, Any]:
    """`loss`: (best - return) / (best - random) of the greedy policy over `episodes` episodes; `gained`: the return."""
    world = _World(query)

    def choose(obs: Any, key: Any) -> Any:
        del key
        return jnp.argmax(_values(learned["net"], obs), axis=-1)

    gained = _returns(world, key, choose, sizes.episodes)
    sound = jnp.all(jnp.array([jnp.isfinite(w).all() for w in jax.tree.leaves(learned["net"])]))
    lost = (world.place.best - gained) / (world.place.best - world.place.random)
    return {"loss": jnp.where(sound, lost, jnp.nan), "gained": gained, "inner_steps": learned["inner_steps"]}


def random_return(name: str, episodes: int, seed: int = 0) -> float:
    """Mean return of uniform actions: where `Place.random` comes from."""
    world = _World({f"env:{name}": None})

    def choose(obs: Any, key: Any) -> Any:
        return jax.random.randint(key, obs.shape[:1], 0, world.actions)

    return float(jax.jit(lambda key: _returns(world, key, choose, episodes))(jax.random.key(seed)))


def _returns(world: _World, key: Any, choose: Callable[[Any, Any], Any], episodes: int) -> Any:
    """Mean undiscounted return of the first episode of each of `episodes` environments."""
    start, key = jax.random.split(key)
    obs, state = world.reset(jax.random.split(start, episodes))

    def step(carry: Any, now: Any) -> tuple[Any, None]:
        obs, state, gained, going = carry
        act, move = jax.random.split(jax.random.fold_in(key, now))
        obs, state, reward, ended, cut, _ = world.step(jax.random.split(move, episodes), state, choose(obs, act))
        gained = gained + going * reward
        return (obs, state, gained, going * (1.0 - jnp.maximum(ended, cut))), None

    nothing = jnp.zeros(episodes)
    (_, _, gained, _), _ = jax.lax.scan(step, (obs, state, nothing, nothing + 1.0), jnp.arange(world.place.horizon))
    return gained.mean()


class _World:
    """Many copies of one environment, with flat observations and float flags."""

    def __init__(self, data: dict[str, Any]) -> None:
        name = next(iter(data)).partition(":")[2]
        self.place = PLACES[name]
        self.env, params = environment(name)
        self.params = params.replace(max_steps_in_episode=self.place.horizon)
        self.actions = int(self.env.num_actions)
        self.cells = getattr(self.env.observation_space(params), "n", 0)  # 0: the observation is an array

    def reset(self, keys: Any) -> tuple[Any, Any]:
        """Observations `[n, D]` and states."""
        obs, state = jax.vmap(self.env.reset, (0, None))(keys, self.params)
        return self._flat(obs), state

    def step(self, keys: Any, state: Any, action: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Next observations (of a new episode where one ended), states, rewards, ended, cut, observations reached."""
        obs, state, reward, ended, cut, info = jax.vmap(self.env.step, (0, 0, 0, None))(
            keys, state, action, self.params
        )
        reached = self._flat(info["final_observation"])
        reward, ended, cut = (jnp.asarray(x, jnp.float32) for x in (reward, ended, cut))
        return self._flat(obs), state, reward, ended, cut, reached

    def _flat(self, obs: Any) -> Any:
        obs = jax.nn.one_hot(obs, self.cells) if self.cells else jnp.asarray(obs, jnp.float32)
        return obs.reshape(obs.shape[0], -1)


def _network(key: Any, inputs: int, hidden: int, actions: int) -> list[Any]:
    """Weights and biases of two hidden layers; the last layer begins at zero, so that no action is preferred."""
    shapes = [(inputs, hidden), (hidden, hidden), (hidden, actions)]
    keys = jax.random.split(key, len(shapes))
    scales = [2.0**0.5, 2.0**0.5, 0.0]
    return [
        {"w": scale * jax.random.normal(k, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for k, shape, scale in zip(keys, shapes, scales, strict=True)
    ]


def _values(net: Any, obs: Any) -> Any:
    for layer in net[:-1]:
        obs = jax.nn.relu(obs @ layer["w"] + layer["b"][None])
    return obs @ net[-1]["w"] + net[-1]["b"][None]


def _of(values: Any, action: Any) -> Any:
    return jnp.take_along_axis(values, action[:, None], axis=-1)[:, 0]

"""The loss of a value-based reinforcement learner as a program: found on small problems, judged on others.

After Co-Reyes et al. 2021 ("Evolving reinforcement learning algorithms", arXiv 2101.03958): a loss is a program of the
vocabulary `loss`, which reads a transition and is differentiated by the value of the action taken. The binary test
is theirs: does a search that starts from nothing come to the squared TD error (`is_td`)?

A domain of the tabular agent is a family of Markov decision processes (parts/mdps.py), several instances of which are
learned side by side (parts/qtable.py). Its best policy is known, so the loss is exact: how far the greedy policy's
value falls short of the best one, in units of what a random policy falls short: 0 is the best there is, 1 is
random. In the domains that drive the search every action of every state is tried, some more often than others; sealed
ones are other, larger families, of three times the steps, and in half of them the learner walks about epsilon-greedily.

The network agent (parts/qnet.py, extra `rl`) trains a small network with replay on environments of gymnax. It is
slow: it is there to judge what was found, not to search.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import log, program
from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Code
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vocabularies import LOSS
from evometa.space import Candidate, Space
from evometa.tasks.parts import bellman, mdps, qtable

KNOWN = ("td", "double_td", "dqn_reg")
TRAIN = ("ring", "layers", "garnet", "maze", "stop")
VALIDATION = ("chain", "deep_sea", "river", "fork")
TEST = (
    "catch", "windy", "frozen", "rooms", "cliff", "deep_sea_large", "chain_long", "garnet_large", "replacement",
)  # fmt: skip
WALKED = "-walked"  # sealed domains where the learner chooses its actions
SIZES = {"train": (20, 3), "validation": (25, 3), "test": (64, 5)}  # most states and outcomes per action
EPSILON = 0.3  # of walkers
LONGER = 3  # sealed domains have so many times the steps
LR = {"tabular": 0.1, "network": 1e-3}  # of the baseline
REACH = {"tabular": (1e-3, 1.0), "network": (1e-5, 1e-1)}

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "task": {"instances": 2, "steps": 24, "actors": 8},
        "generations": 3, "population": 16, "strategy": "linear_gp",
    },
    "standard": {"task": {}, "generations": 60, "population": 256, "strategy": "linear_gp"},
    "full": {"task": {"instances": 8}, "generations": 200, "population": 512, "strategy": "linear_gp"},
}  # fmt: skip


def rl_loss_graph(
    *,
    agent: Literal["tabular", "network"] = "tabular",
    start: str = "nothing",
    rule: str = "",
    instances: int = 4,
    steps: int = 80,
    actors: int = 32,
    lag: float = 3.0,
    env_steps: int = 10_000,
    hidden: int = 32,
    episodes: int = 16,
    small: bool = False,
) -> Task:
    """The loss of a value-based learner as a task; a program `rule` and the step size `lr` are searched.

    `start`: the baseline's program, where a warm start begins: `nothing` (an empty program, which learns nothing),
    `td`, `double_td` or `dqn_reg`. `rule`: holds the program at one of the known ones, so that `lr` alone is searched.

    Tabular: `instances` MDPs per domain; `steps` updates (a multiple of 4; three times as many in sealed domains);
    `actors`: walkers per MDP where learners walk; `lag`: updates over which the copy of the table follows it.

    Network: `env_steps` (a multiple of 16) steps of one environment, `hidden` units, `episodes` to judge the greedy
    policy; `small`: the quick environments alone (see `qnet.PLACES`). Needs gymnax (extra `rl`).

    Raises `ConfigError` for unknown words and sizes out of range.
    """
    _check(agent, start, rule, instances=instances, steps=steps, actors=actors, env_steps=env_steps, hidden=hidden,
           episodes=episodes, lag=lag)  # fmt: skip
    empty = Code(np.zeros((LOSS.length, 5), np.int32), np.zeros(LOSS.constants, np.float32))
    space = Space({"rule": program(LOSS), "lr": log(*REACH[agent])})
    baseline: Candidate = {"lr": LR[agent], "rule": empty if start == "nothing" else start}
    if rule:
        space = space.hold({"rule": rule})
        baseline = {"lr": LR[agent]}
    learner = (
        _network(env_steps, hidden, episodes, small)
        if agent == "network"
        else _tabular(instances, steps, actors, float(lag))
    )
    return Task(
        name="rl_loss_graph",
        space=space,
        objective=Objective(query="greedy", reduction="mean"),
        baseline=baseline,
        controls={} if rule else {name.replace("_", "-"): {"rule": name} for name in KNOWN},
        source=__name__,
        **learner,
    )


def is_td(code: Any, tolerance: float = 1e-3) -> bool:
    """Is a loss the squared TD error? A `Code` or a `Program` of the vocabulary `loss`.

    True where its derivative by `q` is a positive multiple of q - (reward + discount next_max) on probe inputs, but for
    `tolerance` of its length. What the loss is otherwise, written how, and how large, does not matter.
    """
    return bellman.error(code, "next_max") <= tolerance


def is_double_td(code: Any, tolerance: float = 1e-3) -> bool:
    """As `is_td` for double Q-learning's error (van Hasselt, Guez and Silver 2016), with `next_online`."""
    return bellman.error(code, "next_online") <= tolerance


# --- the tabular agent -----------------------------------------------------------------------------------


def fit(key: Any, candidate: Candidate, support: Any, *, actors: int, lag: float) -> dict[str, Any]:
    """Tables `[4, I, S, 4]` after each quarter of the way."""
    instances, states = support["next"].shape[:2]
    machine = Machine(LOSS, (instances * (actors if "epsilon" in support else states * mdps.ACTIONS),))
    ready = prepare(LOSS, candidate["rule"])

    def slope(inputs: dict[str, Any]) -> Any:
        return machine.derivative(ready, inputs, "q")[1]

    tables = qtable.learn(key, slope, candidate["lr"], support, actors, lag)
    return {"tables": tables, "inner_steps": jnp.float32(support["clock"].size)}


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    """`loss`: the greedy policy's shortfall at the end, a mean over instances. `area`: its mean over the way."""
    del key
    lost = jax.lax.map(lambda table: qtable.shortfall(table, query).mean(), learned["tables"])
    return {"loss": lost[-1], "area": lost.mean(), "inner_steps": learned["inner_steps"]}


def _tabular(instances: int, steps: int, actors: int, lag: float) -> dict[str, Any]:
    sealed = (*TEST, *(name + WALKED for name in TEST))
    domains = [_domain(name, instances, steps, SIZES["train"]) for name in TRAIN]
    domains += [_domain(name, instances, steps, SIZES["validation"]) for name in VALIDATION]
    domains += [_domain(name, instances, LONGER * steps, SIZES["test"]) for name in sealed]
    return {
        "domains": tuple(domains),
        "fit": partial(fit, actors=actors, lag=lag),
        "judge": judge,
        "split": Split(TRAIN, VALIDATION, sealed),
    }


def _domain(name: str, instances: int, steps: int, size: tuple[int, int]) -> Domain:
    family, walked = name.removesuffix(WALKED), name.endswith(WALKED)
    tags = {"family": family, "experience": "walked" if walked else "swept", "steps": str(steps)}
    # Functions, not arrays: a sealed instance is drawn when it is unsealed and not before.
    support = partial(_support, family, walked, instances, steps, size)
    return Domain(name, support, {"greedy": partial(_query, family, instances, size)}, tags)


@lru_cache(maxsize=32)
def _instances(family: str, instances: int, size: tuple[int, int]) -> tuple[dict[str, np.ndarray], ...]:
    return tuple(mdps.instance(family, number, *size) for number in range(instances))


def _support(family: str, walked: bool, instances: int, steps: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    made = _instances(family, instances, size)
    names = ["next", "chance", "reward", "on", "discount", "noise", *(["start", "limit"] if walked else ["rate"])]
    data = {name: _stack(made, name) for name in names}
    if walked:
        data["epsilon"] = np.full(instances, EPSILON, np.float32)
    return {**data, "clock": np.arange(steps, dtype=np.int32).reshape(qtable.MARKS, -1)}


def _query(family: str, instances: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    made = _instances(family, instances, size)
    models = [mdps.model(one) for one in made]
    ends = [mdps.solve(one) for one in made]
    numbers = {
        "step": [step for step, _ in models],
        "reward": [reward for _, reward in models],
        "best": [best for best, _ in ends],
        "random": [chance for _, chance in ends],
    }
    return {"start": _stack(made, "start"), **{k: np.asarray(np.stack(v), np.float32) for k, v in numbers.items()}}


def _stack(made: Any, name: str) -> np.ndarray:
    return np.stack([one[name] for one in made])


# --- the network agent -----------------------------------------------------------------------------------


def _network(env_steps: int, hidden: int, episodes: int, small: bool) -> dict[str, Any]:
    from evometa.tasks.parts import qnet

    roles = qnet.QUICK if small else qnet.ROLES
    names = [name for role in roles.values() for name in role]
    for name in names:
        qnet.environment(name)  # says so here where gymnax is missing
    sizes = qnet.Sizes(env_steps, hidden, episodes)
    return {
        "domains": tuple(qnet.domain(name) for name in names),
        "fit": partial(_fit_network, sizes=sizes),
        "judge": partial(qnet.judge, sizes=sizes),
        "split": Split(**roles),
    }


def _fit_network(key: Any, candidate: Candidate, support: Any, *, sizes: Any) -> Any:
    from evometa.tasks.parts import qnet

    machine = Machine(LOSS, (qnet.BATCH,))
    ready = prepare(LOSS, candidate["rule"])

    def slope(inputs: dict[str, Any]) -> Any:
        return machine.derivative(ready, inputs, "q")[1]

    return qnet.learn(key, slope, candidate["lr"], support, sizes)


# --- options -----------------------------------------------------------------------------------------------


def _check(agent: Any, start: Any, rule: Any, **numbers: Any) -> None:
    """Raise `ConfigError` for an option that is unknown or out of its range."""
    for option, value, known in (
        ("agent", agent, ("tabular", "network")), ("start", start, ("nothing", *KNOWN)), ("rule", rule, ("", *KNOWN)),
    ):  # fmt: skip
        if value not in known:
            hint = did_you_mean(str(value), known)
            raise ConfigError(
                f"rl_loss_graph: expected {option} of {', '.join(filter(None, known))}, got {value!r}.{hint}"
            )
    lag = numbers.pop("lag")
    if isinstance(lag, bool) or not isinstance(lag, (int, float)) or not 1.0 <= lag <= 1e4:
        raise ConfigError(f"rl_loss_graph: expected lag in 1 .. 10000 updates, got {lag!r}")
    each = {"steps": qtable.MARKS, "env_steps": 16}
    for option, value in numbers.items():
        unit = each.get(option, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % unit:
            what = f"a multiple of {unit}" if unit > 1 else "a whole number >= 1"
            raise ConfigError(f"rl_loss_graph: expected {option} as {what}, got {value!r}")

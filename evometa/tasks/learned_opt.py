"""An optimizer searched as a program: how to train networks, judged on networks and data that no search has seen.

Sources: learned optimizers of Andrychowicz et al. 2016 (arXiv:1606.04474) and VeLO (Metz et al. 2022,
arXiv:2211.09760); programs instead of networks after Lion (Chen et al. 2023, arXiv:2302.06675). A domain is a table, a
network and a number of steps. The search sees small networks for 100 steps; validation is a wider one for 200; the
sealed domains are other tables, widths, depths, and horizons up to 25 times as long.

A candidate is a program `rule`, run at every step of the inner training on all weights at once, and a factor `lr` of
its steps. Gradients are those of the network's own loss: the program is never differentiated. Loss: decades of
held-out loss against a constant answer, in -2 .. 2; see `parts/mlp.py`. A training that diverges has the worst one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Program, assemble
from evometa.programs.interpret import Machine, prepare
from evometa.programs.known import known
from evometa.programs.vocabularies import OPTIMIZER
from evometa.space import Candidate, Space, log, program
from evometa.tasks.parts import mlp, mlp_data
from evometa.tasks.parts.mlp_rules import RULES, Now


class Place(NamedTuple):
    """A domain in short: a table, a network's hidden units and their function, and how many times `steps` it trains."""

    data: str
    hidden: tuple[int, ...]
    activation: str
    rows: tuple[int, int]  # support, query
    inputs: int = 16
    horizon: int = 1
    shift: str = "none"  # in what it differs from the domains that the search sees


_SMALL, _LARGE = (96, 54), (512, 256)
# Equal shapes are compiled together: the search compiles three programs for its eight domains.
TRAIN: dict[str, Place] = {
    "iris-16-tanh": Place("iris", (16,), "tanh", _SMALL),
    "wine-16-relu": Place("wine", (16,), "relu", _SMALL),
    "spirals-16-tanh": Place("spirals", (16,), "tanh", _SMALL),
    "spirals-16-relu": Place("spirals", (16,), "relu", _SMALL),
    "digits-32-tanh": Place("digits", (32,), "tanh", _LARGE),
    "digits-32-relu": Place("digits", (32,), "relu", _LARGE),
    "steep_numbers": Place("steep_numbers", (), "tanh", _LARGE),
    "steep_classes": Place("steep_classes", (), "tanh", _LARGE),
}
VALIDATION: dict[str, Place] = {
    "cancer-48-gelu": Place("cancer", (48,), "gelu", (384, 185), horizon=2),
    "checkers-48-gelu": Place("checkers", (48,), "gelu", (384, 185), horizon=2),
}
TEST: dict[str, Place] = {
    "mixture3-16-tanh": Place("mixture3", (16,), "tanh", _LARGE, shift="data"),
    "rings-16-relu": Place("rings", (16,), "relu", _LARGE, shift="data"),
    "moons-16-gelu": Place("moons", (16,), "gelu", _LARGE, shift="data"),
    "mixture10-32-relu": Place("mixture10", (32,), "relu", _LARGE, shift="data"),
    "teacher-32-tanh": Place("teacher", (32,), "tanh", _LARGE, shift="data"),
    "completion-32-gelu": Place("completion", (32,), "gelu", _LARGE, shift="data"),
    "diabetes-32-tanh": Place("diabetes", (32,), "tanh", (320, 122), shift="data"),
    "friedman-32-relu": Place("friedman", (32,), "relu", (320, 122), shift="data"),
    "bumps-32-relu": Place("bumps", (32,), "relu", _LARGE, shift="data"),
    "digits-256-relu": Place("digits", (256,), "relu", _LARGE, shift="width"),
    "mixture10-256-tanh": Place("mixture10", (256,), "tanh", _LARGE, shift="width"),
    "digits-32x4-relu": Place("digits", (32,) * 4, "relu", _LARGE, shift="depth"),
    "teacher-32x4-tanh": Place("teacher", (32,) * 4, "tanh", _LARGE, shift="depth"),
    "pixels-128x3-relu": Place("digits", (128,) * 3, "relu", _LARGE, 64, shift="depth"),
    "pixels-128x3-tanh": Place("digits", (128,) * 3, "tanh", _LARGE, 64, shift="depth"),
    "digits-32-tanh-5": Place("digits", (32,), "tanh", _LARGE, horizon=5, shift="horizon"),
    "mixture10-32-gelu-5": Place("mixture10", (32,), "gelu", _LARGE, horizon=5, shift="horizon"),
    "spirals-16-relu-25": Place("spirals", (16,), "relu", _LARGE, horizon=25, shift="horizon"),
    "mixture3-16-tanh-25": Place("mixture3", (16,), "tanh", _LARGE, horizon=25, shift="horizon"),
    "bumps-64x2-gelu-5": Place("bumps", (64,) * 2, "gelu", _LARGE, 40, horizon=5, shift="all"),
}
PLACES = TRAIN | VALIDATION | TEST

GENOMES = ("program", *RULES, *(f"swept_{name}" for name in RULES))
# Known rules that a search may start from, with their first `lr`: a factor of the small rates that they bring along.
STARTS = {"nothing": 1.0, "sgd": 30.0, "momentum": 3.0, "adam": 30.0, "adamw": 30.0, "lion": 30.0}
SWEEP = np.logspace(-1.5, 1.5, 7, dtype=np.float32)  # factors of the rate in a sweep

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "task": {
            "steps": 10,
            "train": ["iris-16-tanh", "spirals-16-relu"],
            "validation": ["cancer-48-gelu"],
            "test": ["rings-16-relu", "moons-16-gelu"],
        },
        "generations": 3,
        "population": 8,
        "strategy": "linear_gp",
    },
    "standard": {"task": {}, "generations": 40, "population": 32, "strategy": "linear_gp"},
    "full": {"task": {}, "generations": 250, "population": 64, "strategy": "linear_gp"},
}


def learned_opt(
    *,
    genome: str = "program",
    start: str = "adam",
    mup: bool = False,
    steps: int = 100,
    batch: int = 32,
    train: Sequence[str] = tuple(TRAIN),
    validation: Sequence[str] = tuple(VALIDATION),
    test: Sequence[str] = tuple(TEST),
) -> Task:
    """An optimizer as a task.

    `genome`: "program" searches a rule and its rate; "sgd", "momentum", "adam", "adamw", "annealed" (AdamW whose rate
    falls with a power of what is left), "nadamw" (the same with Nesterov's momentum) hold that rule fixed and search
    its numbers; "swept_adam" and so on train with seven rates, half a decade apart, and take the best of them on each
    query: an oracle, for it chooses by what judges it. `start`: the known rule that is the baseline of "program", or
    "nothing". `mup`: maximal update parametrization of steps and initial weights. `steps`: of a training at horizon 1;
    `batch`: rows of a step. `train`, `validation`, `test`: names of domains, each in one role; those of `TEST` can be
    nothing else.

    Raises `ConfigError` for an option out of its range.
    """
    roles = {"train": train, "validation": validation, "test": test}
    _check(genome, start, steps, batch, roles)
    rule, columns, baseline = _genome(genome, start)
    trained = partial(fit, rule=rule, batch=batch)
    return Task(
        name="learned_opt",
        space=Space(columns),
        domains=tuple(_domain(name, steps, mup) for names in roles.values() for name in names),
        fit=partial(_sweep, one=trained) if genome.startswith("swept_") else trained,
        judge=_best if genome.startswith("swept_") else judge,
        objective=Objective(query="home", reduction="mean"),
        baseline=baseline,
        split=Split(**{role: tuple(names) for role, names in roles.items()}),
        controls={name.replace("_", "-"): {"genome": name} for name in GENOMES[1:]} if genome == "program" else {},
        source=__name__,
    )


# --- the inner training ------------------------------------------------------------------------------

Start = Callable[[Candidate, mlp.Network], Any]
Step = Callable[[Candidate, Any, Any, Now], tuple[Any, Any]]


def fit(key: Any, candidate: Candidate, support: dict[str, Any], *, rule: str, batch: int) -> dict[str, Any]:
    """Train the network of `support` on minibatches, drawn with replacement, by `rule`: "program" or one of `RULES`."""
    net = mlp.network(support)
    start_key, order_key = jax.random.split(key)
    progress = support["progress"]
    order = jax.random.randint(order_key, (progress.shape[0], batch), 0, support["x"].shape[0])
    step_of, memory, refused = _runner(rule, candidate, net)
    size = candidate["lr"] * support["pace"][np.repeat(np.arange(len(net.layers)), net.layers)]

    def loss_of(weights: Any, rows: Any) -> Any:
        outputs = net.outputs(weights, support["x"][rows], support["activation"])
        return mlp.loss(outputs, support["y"][rows], support["classes"])

    def one(carry: Any, at: Any) -> tuple[Any, Any]:
        (weights, memory), (rows, t, done) = carry, at
        loss, gradient = jax.value_and_grad(loss_of)(weights, rows)
        step, memory = step_of(memory, Now(weights, gradient, t, done))
        return (weights + size * step, memory), loss

    numbers = jnp.arange(1, progress.shape[0] + 1, dtype=jnp.float32)
    weights = net.start(start_key, support["scales"])
    (weights, _), losses = jax.lax.scan(one, (weights, memory), (order, numbers, progress))
    late = jnp.mean(losses[-max(1, progress.shape[0] // 10) :])
    return {
        "weights": weights,
        "refused": refused,
        "support_loss": mlp.score(late, support["trivial"]),
        "inner_steps": jnp.asarray(float(progress.shape[0])),
    }


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    """`loss`: see `mlp.score`, NaN for a refused program; `diverged`: 1 where the network's loss is no number."""
    del key
    net = mlp.network(query)
    plain = mlp.loss(net.outputs(learned["weights"], query["x"], query["activation"]), query["y"], query["classes"])
    return {
        "loss": jnp.where(learned["refused"], jnp.nan, mlp.score(plain, query["trivial"])),
        "diverged": (~jnp.isfinite(plain)).astype(jnp.float32),
        "support_loss": learned["support_loss"],
        "inner_steps": learned["inner_steps"],
    }


def _runner(rule: str, candidate: Candidate, net: mlp.Network) -> tuple[Callable[[Any, Now], Any], Any, Any]:
    """`step(memory, now) -> step [N], memory` of a rule, its first memory, and whether it is no program at all."""
    if rule != "program":
        memory = jnp.zeros((2, sum(net.layers)), jnp.float32)
        return partial(RULES[rule].step, candidate), memory, jnp.asarray(False)
    machine, ready = Machine(OPTIMIZER, net.layers), prepare(OPTIMIZER, candidate["rule"])
    known = {"fan_in": jnp.asarray(net.fan_in)}

    def step(memory: Any, now: Now) -> tuple[Any, Any]:
        outputs, memory = machine.step(ready, memory, known | now._asdict())
        return outputs["step"], memory

    return step, machine.start(ready, known), ready.refused


def _sweep(key: Any, candidate: Candidate, support: dict[str, Any], *, one: Any) -> dict[str, Any]:
    """What is learned at every rate of the sweep, stacked."""
    return jax.vmap(lambda factor: one(key, {**candidate, "lr": candidate["lr"] * factor}, support))(jnp.asarray(SWEEP))


def _best(key: Any, learned: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    """What the best rate of a sweep has on this very query."""
    every = jax.vmap(judge, (None, 0, None))(key, learned, query)
    return {name: value[jnp.argmin(every["loss"])] for name, value in every.items()}


def _genome(genome: str, start: str) -> tuple[str, dict[str, Any], Candidate]:
    """The rule that is trained with, the columns, and the baseline."""
    if genome == "program":
        columns = {"rule": program(OPTIMIZER), "lr": log(1e-3, 1e3)}
        # A program without instructions: searches that warm up on their start then begin with random programs.
        rule: Any = Program(OPTIMIZER, (), (), ()) if start == "nothing" else known(OPTIMIZER, start)
        return "program", columns, {"rule": assemble(rule), "lr": STARTS[start]}
    name = genome.removeprefix("swept_")
    return name, RULES[name].columns, RULES[name].baseline


# --- the domains -------------------------------------------------------------------------------------


def _domain(name: str, steps: int, mup: bool) -> Domain:
    place = PLACES[name]
    parts = {part: partial(_part, name, part, steps, mup) for part in ("support", "home", "seen")}
    hidden = place.hidden
    tags = {
        "shift": place.shift,
        "data": mlp_data.SOURCES[place.data].origin,
        "width": str(max(hidden, default=0)),
        "depth": str(len(hidden)),
        "activation": place.activation if hidden else "none",
        "horizon": str(place.horizon),
    }
    # Functions, not arrays: a test domain's data are made when it is opened and not before.
    return Domain(name, parts.pop("support"), parts, tags, sealed=name in TEST)


def _part(name: str, part: str, steps: int, mup: bool) -> dict[str, Any]:
    """`support`; `home`, held-out rows; or `seen`, the support's rows as a query (how well the training loss falls)."""
    place = PLACES[name]
    table = mlp_data.table(place.data, place.inputs, *place.rows)
    units = (place.inputs, *place.hidden, mlp_data.SOURCES[place.data].outputs)
    rows = table.query if part == "home" else table.support
    data = {**mlp_data.arrays(rows, table.support[1], table.classes), **mlp.recipe(units, place.activation, mup)}
    if part != "support":
        return data
    count = steps * place.horizon
    return {**data, "progress": np.arange(1, count + 1, dtype=np.float32) / np.float32(count)}


def _check(genome: Any, start: Any, steps: Any, batch: Any, roles: dict[str, Any]) -> None:
    for option, value, names in (("genome", genome, GENOMES), ("start", start, STARTS)):
        if value not in names:
            hint = did_you_mean(str(value), names)
            raise ConfigError(f"learned_opt: expected {option} out of {', '.join(names)}, got {value!r}.{hint}")
    for option, value in (("steps", steps), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"learned_opt: expected {option} as a whole number >= 1, got {value!r}")
    for role, names in roles.items():
        if isinstance(names, str):
            raise ConfigError(f"learned_opt: expected a list of domains as {role}, got {names!r}. Try [{names!r}]")
        for name in names:
            if name not in PLACES:
                hint = did_you_mean(str(name), PLACES)
                raise ConfigError(f"learned_opt: {role} has no domain {name!r}.{hint} Known: {', '.join(PLACES)}")

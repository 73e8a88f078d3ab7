"""`evometa new`: a task or a strategy to start from. What is written passes its check as it stands."""

from __future__ import annotations

import importlib.metadata
import keyword
import sys
from pathlib import Path

from evometa.errors import UsageError


def new_task(name: str) -> Path:
    """Write `NAME.py` into the current folder: a small JAX task that runs in seconds.

    Raises `UsageError` for a name that is no Python identifier, and where the file exists already.
    """
    return _write(name, TASK, "task")


def new_strategy(name: str) -> Path:
    """Write `NAME.py` into the current folder: a small strategy, the factory NAME, that passes the exam.

    Raises `UsageError` for a name that is no Python identifier, and where the file exists already.
    """
    return _write(name, STRATEGY, "strategy")


def _write(name: str, template: str, kind: str) -> Path:
    stem = name.removesuffix(".py")
    if (
        not stem.isidentifier()
        or not stem.isascii()
        or stem.startswith("_")
        or keyword.iskeyword(stem)
        or len(stem) > 64
    ):
        hint = "".join(c if c.isascii() and c.isalnum() else "_" for c in stem).strip("_")[:64]
        hint = f"my_{hint}" if not hint.isidentifier() or keyword.iskeyword(hint) else hint
        raise UsageError(
            f"expected a name of letters, digits and '_' that starts with a letter, got {name!r}."
            f" Try: evometa new {kind} {hint}"
        )
    path = Path(f"{stem}.py")
    if _shadows(stem):
        raise UsageError(
            f"{path} would hide the module {stem!r} from everything in this folder. Try: evometa new {kind} my_{stem}"
        )
    try:
        with path.open("x") as file:
            file.write(template.replace("NAME", stem))
    except FileExistsError:
        raise UsageError(
            f"{path} exists already and is left as it is. Choose another name, or move it away first"
        ) from None
    return path


def _shadows(name: str) -> bool:
    """Whether Python or an installed package has a module of that name."""
    return name in sys.stdlib_module_names or name in importlib.metadata.packages_distributions()


TASK = '''"""NAME: how to train a small network so that it does well beyond the range it was trained on."""

import jax
import jax.numpy as jnp
import numpy as np

import evometa


def world(number):
    """A wave: noisy points in the middle to learn from; judged in the middle (home) and beyond it (away)."""
    draw = np.random.default_rng(number)

    def points(low, high, noise):
        x = draw.uniform(low, high, (32, 1))
        return {"x": x, "y": np.sin(2.5 * x + number) + noise * draw.normal(size=x.shape)}

    return {"support": points(-1, 1, 0.2), "home": points(-1, 1, 0), "away": points(1, 1.5, 0)}


task = evometa.task(
    name="NAME",
    # What is searched: how the network starts and how it is trained.
    space={"rate": evometa.log(1e-2, 1), "decay": evometa.log(1e-5, 1), "scale": evometa.log(0.1, 4)},
    # What a careful user has today: the row to beat.
    baseline={"rate": 0.3, "decay": 1e-4, "scale": 1.0},
    # Worlds. By default three fifths drive the search; the others choose the champion and stay sealed.
    domains={f"wave{number}": world(number) for number in range(10)},
)


def predict(network, x):
    """The network's outputs `[N, 1]`."""
    return jnp.tanh(x @ network["in"] + network["bias"]) @ network["out"] / 4


@task.fit
def fit(key, candidate, support):
    """Train on the support; it is all that training ever sees."""
    one, two = jax.random.split(key)
    weights = candidate["scale"] * jax.random.normal(one, (1, 16))
    start = {"in": weights, "bias": jax.random.normal(two, (1, 16)), "out": jnp.zeros((16, 1))}

    def loss(network):
        return jnp.mean((predict(network, support["x"]) - support["y"]) ** 2)

    def step(network, _):
        slope = jax.grad(loss)(network)
        return jax.tree.map(lambda w, g: w - candidate["rate"] * (g + candidate["decay"] * w), network, slope), None

    return jax.lax.scan(step, start, length=200)[0]


@task.judge
def judge(key, network, query):
    """What counts: the error on points that training never saw. Lower is better."""
    return {"loss": jnp.mean((predict(network, query["x"]) - query["y"]) ** 2)}
'''

STRATEGY = '''"""NAME: a (mu, lambda) evolution strategy with one step size, adapted by the path of its mean.

Source: Ostermeier, Gawelczyk and Hansen 1994 (cumulative step-size adaptation).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from evometa import Strategy
from evometa.errors import ConfigError
from evometa.strategies import parts


class State(NamedTuple):
    """All that one generation hands to the next; arrays only, so that a checkpoint can hold it."""

    generation: jax.Array  # [] int32: generations asked so far
    mean: jax.Array  # [D]: middle of the samples
    sigma: jax.Array  # []: their standard deviation, in genome coordinates
    path: jax.Array  # [D]: where the mean has been going, in standard deviations
    parents: jax.Array  # [mu, 2] int32: (generation, index) of those that shaped the mean; -1 = none


def NAME(space, population=32, sigma=0.2):
    """A strategy for `space`: `population` candidates per generation, first step size `sigma` (a full range is 1)."""
    searches = frozenset({"real", "log", "integer", "weights"})
    parts.require("NAME", space, searches)
    population = parts.check_population("NAME", population, minimum=4)
    if not 0 < sigma <= 10:
        raise ConfigError(f"NAME: expected 0 < sigma <= 10, got {sigma}. Try sigma=0.2")
    size, mu = space.dimension, population // 4
    pace = (mu + 2) / (size + mu + 5)  # how fast the path forgets
    usual = size**0.5 * (1 - 1 / (4 * size) + 1 / (21 * size**2))  # length of a random path

    def init(key, prior):
        start = parts.start_of(space, prior)
        no_parents = jnp.full((mu, 2), -1, jnp.int32)
        return State(jnp.int32(0), start, jnp.float32(sigma), jnp.zeros(size, jnp.float32), no_parents)

    def ask(key, state):
        noise = jax.random.normal(key, (population, size))
        genomes = space.project(state.mean[None] + state.sigma * noise)  # folded back into the bounds
        return genomes, parts.shared_parents(state.parents, population), state._replace(generation=state.generation + 1)

    def tell(key, state, genomes, scores):
        # Failed rows come back with the worst finite fitness and ok = False.
        fitness, ok, any_ok = parts.settle(scores)
        best = jnp.argsort(jnp.where(ok, fitness, jnp.inf))[:mu]
        weights = ok[best] / jnp.maximum(1, jnp.sum(ok[best]))
        mean = weights @ genomes[best]
        step = (mean - state.mean) / state.sigma
        path = (1 - pace) * state.path + (pace * (2 - pace) * mu) ** 0.5 * step
        # A path longer than chance makes it: bolder; shorter: finer.
        change = jnp.clip(pace * (jnp.linalg.norm(path) / usual - 1), -1, 1)
        new = State(
            generation=state.generation,
            mean=mean,
            sigma=jnp.clip(state.sigma * jnp.exp(change), 1e-5, 10.0),
            path=path,
            parents=parts.elite_ids(state.generation - 1, fitness, ok, mu),
        )
        return parts.keep_if(any_ok, new, state)  # where every row failed, nothing was learned

    return Strategy("NAME", population, init, ask, tell, lambda state: state.mean, traceable=True, searches=searches)
'''

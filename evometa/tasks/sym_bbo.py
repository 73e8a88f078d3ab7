"""The update rule of a population-based optimizer as a program: searched on some functions, judged on others.

A domain is a test function (functions.py) with a dimension, a population and a number of iterations. Every judging
draws new optima and rotations (`swarm.instances`) and runs the rule on them. Train and validation functions have 5
dimensions, 30 individuals and 50 iterations; other families of functions are sealed, at that size, with 2 and 4
times the dimensions, 100 individuals, and 5 times the iterations (tag `shift`).

Nothing is learned before the judging: `fit` makes the rule ready. Loss: the log-regret over that of random search at
the same number of evaluations, both counted from the least that is told apart,
(log10(1e-8 + best f) + 8) / (log10 of random search's + 8): 1 is random search, 0 is solved. Metrics: `log_regret`, and
`decades` below (negative) or above random search.

Sources: the score follows the evaluation indicator of AEI in MetaBox (Ma et al. 2023, arXiv 2310.08252) in that
it counts log-regret in units of random search; differential evolution (Storn and Price 1997), particle swarms
(Kennedy and Eberhart 1995).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from evometa.column import categorical, log, program
from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Code, assemble
from evometa.programs.interpret import prepare
from evometa.programs.vocabularies import POPULATION
from evometa.space import Candidate, Space
from evometa.tasks.functions import BOUND, FAMILIES, FLOOR, landscape
from evometa.tasks.parts import references, swarm

QUERY = "run"
DECADES = -float(np.log10(FLOOR))  # from a regret of 1 down to what counts as solved

# Families and, after a colon, what is changed of one: whether it is rotated, or how steep it is.
TRAIN = (
    "sphere", "ellipsoid", "rotated_ellipsoid", "rosenbrock", "rosenbrock:rotated", "rastrigin", "rastrigin:separable",
    "ackley",
)  # fmt: skip
VALIDATION = ("discus", "discus:separable", "different_powers", "different_powers:separable")
TEST = ("bent_cigar", "sharp_ridge", "attractive_sector", "step_ellipsoid", "griewank", "schaffer", "schaffer:steep")
SHIFTS = {"": "functions", "-d2": "dimension", "-d4": "dimension", "-large": "population", "-long": "horizon"}

SELECT = ("greedy", "always")
# Rules by hand, and how they select; all but `pso_two` are those of programs/known.py.
KNOWN = {
    "de": "greedy",
    "de_best": "greedy",
    "pso": "always",
    "pso_two": "always",
    "bare_bones": "always",
    "gaussian": "greedy",
}
# The particle swarm with a random number for each of its two pulls (the one in known.py has one for both). The
# second, (1 + tanh(0.8 normal)) / 2, is uniform to within 0.02.
PSO_TWO = """
y = mul(uniform, 1.49618)
y = lerp(x, own_best, y)
z = mul(normal, 0.8)
z = tanh(z)
z = add(z, 1.0)
z = mul(z, 0.74809)
z = lerp(x, best, z)
velocity = mul(velocity, 0.7298)
velocity = add(velocity, y)
velocity = add(velocity, z)
next = sub(velocity, x)
velocity = sub(next, x)
"""
SIGMA = 0.3 * 2 * BOUND  # of the strategies in references.py: Hansen's three tenths of the range

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "task": {"dimension": 3, "population": 9, "iterations": 10, "instances": 2},
        "generations": 3, "population": 8, "strategy": "linear_gp",
    },
    "standard": {"task": {}, "generations": 50, "population": 64, "strategy": "linear_gp"},
    "full": {"task": {"instances": 8}, "generations": 400, "population": 64, "strategy": "linear_gp"},
}  # fmt: skip


def sym_bbo(
    *,
    rule: str = "program",
    baseline: str = "de",
    dimension: int = 5,
    population: int = 30,
    iterations: int = 50,
    instances: int = 4,
    shifts: Sequence[str] = ("functions", "dimension", "population", "horizon"),
) -> Task:
    """Update rules of population-based optimizers as a task.

    `rule`: what is searched. `program`: a whole rule and how it selects, from the rule by hand `baseline` (`de`,
    `de_best`, `pso`, `pso_two`, `bare_bones`, `gaussian`). One of these words: the constants of that rule alone.
    `cma_es`, `sep_cma_es`, `learned_es`: the first step size of that strategy. `dimension`, `population` and
    `iterations` are those of the train functions; `instances`: optima and rotations that one judging averages over;
    `shifts`: which sealed domains there are. Raises `ConfigError` for unknown words and sizes out of range.
    """
    _check(
        rule, baseline, shifts, dimension=dimension, population=population, iterations=iterations, instances=instances
    )
    size = (dimension, population, iterations)
    space, start = _space(rule, baseline)
    names = {
        "train": TRAIN,
        "validation": VALIDATION,
        "test": tuple(f + s for s in SHIFTS if SHIFTS[s] in shifts for f in TEST),
    }
    split = Split(**{role: tuple(map(_word, functions)) for role, functions in names.items()})
    return Task(
        name="sym_bbo",
        space=space,
        domains=tuple(_domain(name, size) for functions in names.values() for name in functions),
        fit=partial(fit, rule=rule),
        judge=partial(judge, rule=rule, instances=instances),
        objective=Objective(query=QUERY, reduction="mean"),
        baseline=start,
        split=split,
        controls={
            **{_hyphens(name): {"rule": name} for name in (*KNOWN, *references.METHODS)},
            **{f"from-{_hyphens(name)}": {"baseline": name} for name in KNOWN},
        },
        source=__name__,
    )


def fit(key: Any, candidate: Candidate, support: Any, *, rule: str) -> Any:
    """The candidate made ready to run: a `swarm.Rule`, or a first step size. Nothing of a function is seen."""
    del key, support
    if rule in references.METHODS:
        return candidate["sigma"]
    if rule == "program":
        return swarm.Rule(prepare(POPULATION, candidate["rule"]), candidate["select"] == SELECT.index("greedy"))
    tokens, constants = _known(rule)
    searched = [candidate.get(f"c{i}", c) for i, c in enumerate(constants)]
    code = Code(tokens, jnp.stack([jnp.float32(c) for c in searched]))
    return swarm.Rule(prepare(POPULATION, code), jnp.bool_(KNOWN[rule] == "greedy"))


def judge(key: Any, learned: Any, query: dict[str, Any], *, rule: str, instances: int) -> dict[str, Any]:
    """`loss`, `log_regret` and `decades` (see above) of one run on each of `instances` landscapes, averaged."""

    # Mapped, it is a loop over runs: of a function's many forms only the one that is asked for is worked out.
    @sequential_vmap
    def run(key: Any, learned: Any, query: Any) -> Any:
        draw_key, run_key = jax.random.split(key)
        landscapes = swarm.instances(draw_key, query, instances)
        if rule in references.METHODS:
            size = (query["individuals"].shape[0], query["progress"].shape[0])
            return references.search(run_key, rule, learned, landscapes, *size)
        return swarm.optimize(run_key, POPULATION, learned, landscapes, query["individuals"], query["progress"])

    log_regret = jnp.mean(run(key, learned, query))
    return {
        "loss": (log_regret + DECADES) / (query["random"] + DECADES),
        "log_regret": log_regret,
        "decades": log_regret - query["random"],
    }


# --- the space ---------------------------------------------------------------------------------------


def _space(rule: str, baseline: str) -> tuple[Space, Candidate]:
    if rule in references.METHODS:
        return Space({"sigma": log(0.1, 2 * BOUND)}), {"sigma": SIGMA}
    if rule == "program":
        space = Space({"rule": program(POPULATION), "select": categorical(SELECT)})
        return space, {"rule": _known(baseline), "select": KNOWN[baseline]}
    constants = {f"c{i}": float(c) for i, c in enumerate(_known(rule).constants) if c > 0}
    return Space({name: log(c / 5.0, c * 5.0) for name, c in constants.items()}), constants


def _known(name: str) -> Code:
    from evometa.programs.known import known
    from evometa.programs.listing import parse

    return assemble(parse(POPULATION, PSO_TWO) if name == "pso_two" else known(POPULATION, name))


# --- the domains -------------------------------------------------------------------------------------


def _word(name: str) -> str:
    return name.replace(":", "_")


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _domain(name: str, size: tuple[int, int, int]) -> Domain:
    function, dash, factor = name.partition("-")
    dimension, population, iterations = size
    if factor in ("d2", "d4"):
        dimension *= int(factor[1:])
    population = population * 10 // 3 if factor == "large" else population
    iterations = 5 * iterations if factor == "long" else iterations
    tags = {
        "family": function.partition(":")[0],
        "shift": SHIFTS[dash + factor] if function in TEST else "none",
        "dimension": str(dimension), "population": str(population), "iterations": str(iterations),
    }  # fmt: skip
    # A function, not arrays: how far random search gets is worked out when the domain is used and not before.
    return Domain(_word(name), _support, {QUERY: partial(_query, function, dimension, population, iterations)}, tags)


def _support() -> dict[str, np.ndarray]:
    return {"nothing": np.zeros((), np.float32)}


def _query(function: str, dimension: int, population: int, iterations: int) -> dict[str, np.ndarray]:
    """A function and the size of a run, as arrays; those of equal sizes have equal shapes."""
    made = shape_of(function, dimension)
    return {
        **made,
        "individuals": np.arange(population, dtype=np.int32),
        "progress": (np.arange(iterations) / iterations).astype(np.float32),
        "random": np.asarray(random_search(function, dimension, population * iterations), np.float32),
    }


def shape_of(function: str, dimension: int) -> dict[str, np.ndarray]:
    """`form` [], `scale` [D] and `rotated` [] of a function such as `rastrigin` or `rastrigin:separable`."""
    family, _, change = function.partition(":")
    drawn = landscape(f"{family}_1", dimension)
    rotated = {"rotated": True, "separable": False}.get(change, FAMILIES[family].rotated)
    # Schaffer's function of condition 10 becomes that of condition 1000 (BBOB f17, f18).
    scale = drawn["scale"] ** 3 if change == "steep" else drawn["scale"]
    return {"form": drawn["form"], "scale": scale, "rotated": np.asarray(rotated)}


@lru_cache(maxsize=256)
def random_search(function: str, dimension: int, evaluations: int) -> float:
    """Mean log10(1e-8 + best f) of uniform random search with that many evaluations, over 64 landscapes.

    Rounded to three decimals (its standard error is about 0.05), so that it is the same number everywhere.
    """
    word = int.from_bytes(hashlib.sha256(function.encode()).digest()[:4], "little")
    return round(float(_random_search(jax.random.key(word), shape_of(function, dimension), evaluations)), 3)


@partial(jax.jit, static_argnums=2)
def _random_search(key: Any, function: dict[str, Any], evaluations: int) -> Any:
    def one(key: Any) -> Any:
        draw_key, key = jax.random.split(key)
        landscapes = swarm.instances(draw_key, function, 1)
        size = function["scale"].shape[0]
        x = jax.random.uniform(key, (1, evaluations, size), minval=-BOUND, maxval=BOUND)
        return jnp.min(swarm.heights(x, landscapes))

    best = jax.lax.map(one, jax.random.split(key, 64))
    return jnp.mean(jnp.log10(jnp.float32(FLOOR) + best))


def _check(rule: Any, baseline: Any, shifts: Any, **sizes: Any) -> None:
    rules = ("program", *KNOWN, *references.METHODS)
    if isinstance(shifts, str) or not shifts:
        raise ConfigError(f'sym_bbo: expected a list of shifts, got {shifts!r}. Try ["functions"]')
    known = tuple(dict.fromkeys(SHIFTS.values()))
    asked = [("shifts", shift, known) for shift in shifts]
    for label, word, words in (("rule", rule, rules), ("baseline", baseline, tuple(KNOWN)), *asked):
        if word not in words:
            hint = did_you_mean(str(word), words)
            raise ConfigError(f"sym_bbo: expected {label} out of {', '.join(words)}; got {word!r}.{hint}")
    least = {"dimension": 2, "population": swarm.LEAST, "iterations": 2, "instances": 1}
    for label, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least[label]:
            raise ConfigError(f"sym_bbo: expected {label} as a whole number >= {least[label]}, got {number!r}")

"""Numerical test functions under shift of family: what strategies, and searches over strategies, are compared on.

Sources: after noiseless functions of BBOB (Hansen, Finck, Ros and Auger 2009, INRIA RR-6829), in a plainer form
(no oscillation, asymmetry, boundary penalty or second rotation: `FAMILIES` has the formulas); Rastrigin, Ackley
(1987) and Griewank (1981). A domain is one function: a family, a random optimum in [-4, 4] and, where the family
is rotated, a random rotation, drawn from a hash of the domain's name. Families train, validate and test apart.
Least value 0; x lies in [-5, 5].

Nothing is learned: `fit` hands the point on. Query `search` is what a search may see, `truth` the same without
noise. Loss: log10(1e-8 + f). Searched plainly, the task asks for one point that is good for all train
functions, which is seldom what one wants: give the search one function, or let a level above tune a search that
runs anew on each.

Numbers are float32: x is a multiple of about 5e-7, so searches of functions of condition 1e6 end around 1e-7.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.space import Candidate, Space, real

BOUND = 5.0  # of x, in every coordinate
FLOOR = 1e-8  # a gap that counts as solved (BBOB's final target)
GRID = 1024  # optima lie on multiples of 10 / GRID, which are exact as float32 points and genomes

TRAIN = ("sphere", "ellipsoid", "rotated_ellipsoid", "rosenbrock", "rastrigin")
VALIDATION = ("discus", "different_powers", "ackley")
TEST = ("bent_cigar", "sharp_ridge", "attractive_sector", "step_ellipsoid", "griewank", "schaffer")

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"dimension": 4, "instances": 1}, "generations": 3, "population": 8},
    "standard": {"task": {}, "generations": 60, "population": 32},
    "full": {"task": {"dimension": 20, "instances": 15}, "generations": 200, "population": 32},
}


def functions(
    *,
    dimension: int = 10,
    instances: int = 4,
    noise: float = 0.0,
    train: Sequence[str] = TRAIN,
    validation: Sequence[str] = VALIDATION,
    test: Sequence[str] = TEST,
) -> Task:
    """Test functions as a task; `dimension` numbers `x.0`, `x.1` ... in [-5, 5] to search.

    `instances`: functions per family, called `sphere_1`, `sphere_2` ... `noise`: standard deviation of ln f in
    `search` (f is multiplied by exp(noise * N(0, 1)), BBOB's Gaussian noise, drawn anew for every point and key);
    `truth` has none. `train`, `validation`, `test`: families of each role, a family in one of them.
    Raises `ConfigError` for an unknown family, one that has two roles, and sizes out of range.
    """
    _check(dimension, instances, noise)
    roles = {"train": train, "validation": validation, "test": test}
    names: dict[str, tuple[str, ...]] = {}
    for role, families in roles.items():
        _check_families(role, families)
        names[role] = tuple(f"{family}_{number}" for family in families for number in range(1, instances + 1))
    return Task(
        name="functions",
        space=Space({"x": {str(i): real(-BOUND, BOUND) for i in range(dimension)}}),
        domains=tuple(_domain(name, dimension, noise) for role in roles for name in names[role]),
        fit=fit,
        judge=judge,
        objective=Objective(query="search", reduction="mean"),
        # Neither the middle nor a corner: strategies that lean to one of them get nothing for it.
        baseline={"x": {str(i): 1.0 if i % 2 else -1.0 for i in range(dimension)}},
        split=Split(**names),
        source=__name__,
    )


def fit(key: Any, candidate: Candidate, support: Any) -> Any:
    """The candidate as a point `[D]`; the function is not looked at."""
    del key, support
    # By name: a column that a run holds fixed comes last in the dict.
    return jnp.stack([candidate["x"][str(i)] for i in range(len(candidate["x"]))])


def judge(key: Any, learned: Any, query: dict[str, Any]) -> dict[str, Any]:
    """`loss`: log10(1e-8 + f) of the point, with noise where the query has `noise`."""
    gap = value(learned, query)
    if "noise" in query:
        # All candidates of a generation share a key: without the point in it, noise could change no ranking.
        gap *= jnp.exp(query["noise"] * jax.random.normal(jax.random.fold_in(key, _word(learned))))
    return {"loss": jnp.log10(jnp.float32(FLOOR) + gap)}


def value(x: Any, landscape: dict[str, Any]) -> Any:
    """f of a point `[D]`, at least 0; `landscape` as `landscape` makes it. Traceable."""
    # A product and a sum, as fast as a matrix product here: accelerators round the factors of one to fewer bits.
    z = jnp.sum(landscape["rotation"] * (x - landscape["optimum"])[None, :], axis=1)
    return jax.lax.switch(landscape["form"], _FORMS, z, landscape["scale"])


def landscape(name: str, dimension: int) -> dict[str, np.ndarray]:
    """The function called `sphere_1` and so on: a dict of arrays, of equal shapes for all functions.

    `form` [] int32, `optimum` [D], `rotation` [D, D] (orthogonal; the identity where the family is not rotated)
    and `scale` [D] (what the form does with it is the form's affair), float32.
    """
    family = FAMILIES[name.rpartition("_")[0]]
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    luck = np.random.default_rng([word, dimension])
    steps = math.floor(0.8 * GRID / 2)
    optimum = luck.integers(-steps, steps + 1, dimension) * (2 * BOUND / GRID)
    # QR with positive diagonal: uniform over the orthogonal group (Mezzadri 2007).
    q, r = np.linalg.qr(luck.standard_normal((dimension, dimension)))
    rotation = q * np.sign(np.diag(r))[None, :] if family.rotated else np.eye(dimension)
    return {
        "form": np.asarray(_FORMS.index(family.form), np.int32),
        "optimum": optimum.astype(np.float32),
        "rotation": rotation.astype(np.float32),
        "scale": np.asarray(family.scale(dimension), np.float32),
    }


# --- the forms: z [D] is the rotated distance from the optimum, scale [D] belongs to the family ------------


def _quadratic(z: Any, scale: Any) -> Any:
    return jnp.sum(scale * z**2)


def _different_powers(z: Any, scale: Any) -> Any:
    # The exponents 2 .. 6 in scale; exp and log of |z| as pow would, with 0 where z is 0.
    return jnp.sqrt(jnp.sum(jnp.exp(scale * jnp.log(jnp.abs(z)))))


def _rosenbrock(z: Any, scale: Any) -> Any:
    w = scale * z
    # (w + 1)^2 - (next + 1) multiplied out: nothing cancels near the optimum.
    bend = w[:-1] * (2.0 + w[:-1]) - w[1:]
    return jnp.sum(100.0 * bend**2 + w[:-1] ** 2)


def _rastrigin(z: Any, scale: Any) -> Any:
    # 10 (1 - cos 2 pi z) = 20 sin^2 pi z, which cannot fall below zero by rounding.
    return jnp.sum(scale * z**2 + 20.0 * jnp.sin(jnp.pi * z) ** 2)


def _ackley(z: Any, scale: Any) -> Any:
    far = -20.0 * jnp.expm1(-0.2 * jnp.sqrt(jnp.mean(scale * z**2)))
    return far - math.e * jnp.expm1(-2.0 * jnp.mean(jnp.sin(jnp.pi * z) ** 2))


def _griewank(z: Any, scale: Any) -> Any:
    # scale is the frequency; the classical box of +-600 is our +-5.
    return jnp.sum((120.0 * z) ** 2) / 4000.0 + (1.0 - jnp.prod(jnp.cos(scale * z)))


def _sharp_ridge(z: Any, scale: Any) -> Any:
    return z[0] ** 2 + 100.0 * jnp.sqrt(jnp.sum(scale * z**2))


def _attractive_sector(z: Any, scale: Any) -> Any:
    return jnp.sum(jnp.where(z > 0, 1e4, 1.0) * scale * z**2) ** 0.9


def _step_ellipsoid(z: Any, scale: Any) -> Any:
    stretched = jnp.sqrt(jnp.sqrt(scale)) * z  # scale runs to 100, the stretching to sqrt(10)
    fine = jnp.floor(0.5 + 10.0 * stretched) / 10.0
    stepped = jnp.where(jnp.abs(stretched) > 0.5, jnp.floor(0.5 + stretched), fine)
    return 0.1 * jnp.maximum(jnp.abs(stretched[0]) / 1e4, jnp.sum(scale * stepped**2))


def _schaffer(z: Any, scale: Any) -> Any:
    square = scale * z**2
    radius = jnp.sqrt(square[:-1] + square[1:])
    ripple = jnp.sin(50.0 * jnp.exp(0.2 * jnp.log(radius))) ** 2
    return jnp.mean(jnp.sqrt(radius) * (1.0 + ripple)) ** 2


_FORMS = (
    _quadratic,
    _different_powers,
    _rosenbrock,
    _rastrigin,
    _ackley,
    _griewank,
    _sharp_ridge,
    _attractive_sector,
    _step_ellipsoid,
    _schaffer,
)


class Family(NamedTuple):
    """A kind of function: how z is summed up, with which numbers, and whether z is rotated."""

    form: Callable[[Any, Any], Any]
    scale: Callable[[int], Any]  # of the dimension: [D]
    rotated: bool
    text: str  # the function; t runs from 0 to 1 over the coordinates


def _even(dimension: int) -> Any:
    return np.ones(dimension)


def _powers_of(condition: float) -> Callable[[int], Any]:
    return lambda dimension: condition ** np.linspace(0.0, 1.0, dimension)


def _first(first: float, others: float) -> Callable[[int], Any]:
    return lambda dimension: np.where(np.arange(dimension) == 0, first, others)


FAMILIES: dict[str, Family] = {
    "sphere": Family(_quadratic, _even, False, "sum z^2 (BBOB f1)"),
    "ellipsoid": Family(_quadratic, _powers_of(1e6), False, "sum 10^(6t) z^2 (f2)"),
    "rotated_ellipsoid": Family(_quadratic, _powers_of(1e6), True, "sum 10^(6t) z^2 (f10)"),
    "discus": Family(_quadratic, _first(1e6, 1.0), True, "10^6 z_1^2 + sum of the other z^2 (f11)"),
    "bent_cigar": Family(_quadratic, _first(1.0, 1e6), True, "z_1^2 + 10^6 sum of the other z^2 (f12)"),
    "different_powers": Family(
        _different_powers, lambda d: np.linspace(2.0, 6.0, d), True, "sqrt(sum abs(z)^(2 + 4t)) (f14)"
    ),
    "rosenbrock": Family(
        _rosenbrock,
        lambda d: np.full(d, max(1.0, math.sqrt(d) / 8.0)),
        False,
        "sum 100 (w_i^2 - w_(i+1))^2 + (w_i - 1)^2, w = max(1, sqrt(D) / 8) z + 1 (f8)",
    ),
    "rastrigin": Family(_rastrigin, _even, True, "sum z^2 + 10 (1 - cos 2 pi z) (f15)"),
    "ackley": Family(
        _ackley, _even, True, "20 (1 - exp(-0.2 sqrt(mean z^2))) + e - exp(mean cos 2 pi z) (Ackley 1987)"
    ),
    "griewank": Family(
        _griewank,
        lambda d: 120.0 / np.sqrt(np.arange(1, d + 1)),
        True,
        "sum w^2 / 4000 + 1 - prod cos(w_i / sqrt(i)), w = 120 z (Griewank 1981)",
    ),
    "sharp_ridge": Family(_sharp_ridge, _first(0.0, 1.0), True, "z_1^2 + 100 sqrt(sum of the other z^2) (f13)"),
    "attractive_sector": Family(_attractive_sector, _even, True, "(sum (s z)^2)^0.9, s = 100 where z > 0, else 1 (f6)"),
    "step_ellipsoid": Family(
        _step_ellipsoid,
        _powers_of(1e2),
        True,
        "0.1 max(abs(w_1) / 10^4, sum 10^(2t) round(w)^2), w = 10^(t/2) z, round to 1, within 1/2 to 0.1 (f7)",
    ),
    "schaffer": Family(
        _schaffer,
        _powers_of(10.0),
        True,
        "mean(sqrt(s) (1 + sin^2(50 s^0.2)))^2, s^2 = w_i^2 + w_(i+1)^2, w = 10^(t/2) z (f17)",
    ),
}


# --- the domains -------------------------------------------------------------------------------------


def _domain(name: str, dimension: int, noise: float) -> Domain:
    family, _, number = name.rpartition("_")
    # Functions, not arrays: each query has memory of its own.
    queries = {"search": partial(_query, name, dimension, noise), "truth": partial(landscape, name, dimension)}
    return Domain(name, partial(_support, dimension), queries, {"family": family, "instance": number})


def _support(dimension: int) -> dict[str, np.ndarray]:
    # Nothing of the function: a fit that reads its support cannot read the optimum.
    return {"dimension": np.asarray(dimension, np.int32)}


def _query(name: str, dimension: int, noise: float) -> dict[str, np.ndarray]:
    data = landscape(name, dimension)
    # Absent rather than zero: a search without noise then pays nothing for it.
    return {**data, "noise": np.asarray(noise, np.float32)} if noise else data


def _word(x: Any) -> Any:
    """A uint32 that differs between points: the bits of `x` `[D]`, each coordinate times another odd number."""
    odd = 2 * np.arange(x.shape[0], dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA6B)
    return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * odd, dtype=jnp.uint32)


def _check(dimension: Any, instances: Any, noise: Any) -> None:
    for label, number, least in (("dimension", dimension, 2), ("instances", instances, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ConfigError(f"functions: expected {label} as a whole number >= {least}, got {number!r}")
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0.0 <= noise <= 10.0:
        raise ConfigError(f"functions: expected noise in 0 .. 10 (standard deviation of ln f), got {noise!r}")


def _check_families(role: str, families: Any) -> None:
    if isinstance(families, str):
        raise ConfigError(f"functions: expected a list of families as {role}, got {families!r}. Try [{families!r}]")
    for family in families:
        if family not in FAMILIES:
            hint = did_you_mean(str(family), FAMILIES)
            raise ConfigError(f"functions: {role} has no family {family!r}.{hint} Known: {', '.join(FAMILIES)}")

"""Small tables for networks to learn: from scikit-learn and from generators, brought to a wanted number of inputs.

Sources: iris, wine, breast cancer, diabetes and digits of scikit-learn (UCI; CC BY 4.0); clusters on random
places after Guyon 2003; the regression of Friedman 1991; `bumps` after MNIST-1D (Greydanus and Kobak 2020,
arXiv:2011.14439), written anew. Which rows are held out, and every number of a generator, follows from a hash of the
table's name. Statistics come from support rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """Where a table comes from: `make(luck, rows) -> x [rows, F], y`, y classes `[rows]` or numbers `[rows, C]`."""

    make: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    outputs: int
    origin: str  # of what it is made; equal for tables that are made of the same
    standard: bool = True  # each column to mean 0 and deviation 1; else only the middle is taken away


class Table(NamedTuple):
    """One table, split and scaled: x `[n, inputs]` of mean square 1, y `[n, outputs]` one-hot, or of variance 1."""

    support: tuple[np.ndarray, np.ndarray]
    query: tuple[np.ndarray, np.ndarray]
    classes: bool  # one-hot?


@lru_cache(maxsize=64)
def table(name: str, inputs: int, support: int, query: int) -> Table:
    """The table of that name with so many inputs, support rows and query rows, float32.

    More columns than `inputs` are brought down to the leading principal components, fewer are brought up by a random
    rotation: no input is idle.
    """
    source, luck = SOURCES[name], np.random.default_rng(_word(name))
    x, y = source.make(luck, support + query)
    if len(x) < support + query:
        raise ValueError(f"table {name!r} has {len(x)} rows, {support} + {query} were asked for")
    x, y = x[: support + query].astype(np.float64), y[: support + query]
    seen = x[:support]
    x = x - seen.mean(axis=0)
    if source.standard:
        deviation = seen.std(axis=0)
        x = x / np.where(deviation > 1e-9, deviation, 1.0)
    if x.shape[1] > inputs:
        x = x @ _directions(x[:support])[:inputs].T
    elif x.shape[1] < inputs:
        turn, _ = np.linalg.qr(luck.standard_normal((inputs, inputs)))
        x = x @ turn[: x.shape[1]]
    x = (x / np.sqrt((x[:support] ** 2).mean())).astype(np.float32)
    classes = y.ndim == 1
    if classes:
        targets = np.eye(source.outputs, dtype=np.float32)[y]
    else:
        targets = ((y - y[:support].mean(axis=0)) / y[:support].std(axis=0)).astype(np.float32)
    return Table((x[:support], targets[:support]), (x[support:], targets[support:]), classes)


def trivial(seen: np.ndarray, y: np.ndarray, classes: bool) -> float:
    """Loss on targets y `[n, C]` of the best constant answer to the targets seen `[m, C]`: cross-entropy in nats of
    the classes' frequencies (half a case added to each), or mean squared error of the mean."""
    if classes:
        share = (seen.sum(axis=0, dtype=np.float64) + 0.5) / (len(seen) + 0.5 * seen.shape[1])
        return float(-(y @ np.log(share)).mean())
    return float(((y.astype(np.float64) - seen.mean(axis=0, dtype=np.float64)) ** 2).mean())


def _word(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"learned_opt/{name}".encode()).digest()[:8], "little")


def _directions(x: np.ndarray) -> np.ndarray:
    """Principal directions of centred rows, `[F, F]`, the widest first; the largest entry of each is positive."""
    _, _, rows = np.linalg.svd(x, full_matrices=False)
    return rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])[:, None]


# --- what scikit-learn has -------------------------------------------------------------------------------


def _shipped(loader: str) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    def make(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn import datasets

        x, y = getattr(datasets, loader)(return_X_y=True)
        order = luck.permutation(len(x))[:rows]
        return x[order], y[order].astype(np.int64) if loader != "load_diabetes" else y[order, None]

    return make


def _completion(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits: from the 16 leading principal components to the next ten."""
    pixels, _ = _shipped("load_digits")(luck, rows)
    parts = (pixels - pixels.mean(axis=0)) @ _directions(pixels - pixels.mean(axis=0))[:26].T
    return parts[:, :16], parts[:, 16:]


# --- generators ------------------------------------------------------------------------------------------


def _spirals(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    y, radius = luck.integers(0, 3, rows), np.sqrt(luck.uniform(0.02, 1.0, rows))
    angle = 2 * np.pi * y / 3 + 4.0 * radius + 0.15 * luck.standard_normal(rows)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), y


def _rings(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    y, angle = luck.integers(0, 3, rows), luck.uniform(0, 2 * np.pi, rows)
    radius = y + 1.0 + 0.2 * luck.standard_normal(rows)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), y


def _moons(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    y, angle = luck.integers(0, 3, rows), luck.uniform(0, np.pi, rows)
    side = np.where(y == 1, -1.0, 1.0)
    x = np.stack([y + side * np.cos(angle), side * (np.sin(angle) - 0.25)], axis=1)
    return x + 0.12 * luck.standard_normal(x.shape), y


def _checkers(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x = luck.uniform(0.0, 3.0, (rows, 2))
    return x, np.floor(x).astype(np.int64).sum(axis=1) % 2


def _mixture(classes: int) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    def make(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        places = luck.standard_normal((classes, 2, 16))
        y, part = luck.integers(0, classes, rows), luck.integers(0, 2, rows)
        return places[y, part] + 0.8 * luck.standard_normal((rows, 16)), y

    return make


def _teacher(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x = luck.standard_normal((rows, 16))
    hidden = np.tanh(x @ luck.standard_normal((16, 12)) / 2.0)
    return x, (hidden @ luck.standard_normal((12, 10))).argmax(axis=1)


def _steep(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs whose covariance has condition 1000, in a random rotation; and the same inputs white."""
    white = luck.standard_normal((rows, 16))
    turn, _ = np.linalg.qr(luck.standard_normal((16, 16)))
    return (white * np.logspace(0.0, -1.5, 16)) @ turn, white, luck.standard_normal((16, 10)) / 4.0


def _steep_numbers(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, white, answer = _steep(luck, rows)
    return x, white @ answer + 0.1 * luck.standard_normal((rows, 10))


def _steep_classes(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, white, answer = _steep(luck, rows)
    return x, (4.0 * white @ answer + luck.gumbel(size=(rows, 10))).argmax(axis=1)


def _friedman(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x = luck.uniform(0.0, 1.0, (rows, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, (y + luck.standard_normal(rows))[:, None]


def _bumps(luck: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten smooth curves of 12 points, each time stretched, shifted along 40 places, scaled, tilted and noisy."""
    curves = luck.standard_normal((10, 12))
    y, x = luck.integers(0, 10, rows), np.empty((rows, 40))
    for row, kind in enumerate(y):
        length = int(luck.integers(16, 25))
        start = int(luck.integers(0, 40 - length + 1))
        signal = np.zeros(40)
        signal[start : start + length] = np.interp(np.linspace(0, 11, length), np.arange(12), curves[kind])
        tilt = luck.standard_normal() * 0.3 * np.linspace(-1, 1, 40)
        x[row] = luck.uniform(0.75, 1.25) * signal + tilt + 0.15 * luck.standard_normal(40)
    return x, y


SOURCES: dict[str, Source] = {
    "iris": Source(_shipped("load_iris"), 3, "sklearn/iris"),
    "wine": Source(_shipped("load_wine"), 3, "sklearn/wine"),
    "cancer": Source(_shipped("load_breast_cancer"), 2, "sklearn/breast_cancer"),
    "digits": Source(_shipped("load_digits"), 10, "sklearn/digits", standard=False),
    "completion": Source(_completion, 10, "sklearn/digits", standard=False),
    "diabetes": Source(_shipped("load_diabetes"), 1, "sklearn/diabetes"),
    "spirals": Source(_spirals, 3, "generated/spirals"),
    "rings": Source(_rings, 3, "generated/rings"),
    "moons": Source(_moons, 3, "generated/moons"),
    "checkers": Source(_checkers, 2, "generated/checkers"),
    "mixture3": Source(_mixture(3), 3, "generated/mixture3"),
    "mixture10": Source(_mixture(10), 10, "generated/mixture10"),
    "teacher": Source(_teacher, 10, "generated/teacher"),
    "steep_numbers": Source(_steep_numbers, 10, "generated/steep_numbers", standard=False),
    "steep_classes": Source(_steep_classes, 10, "generated/steep_classes", standard=False),
    "friedman": Source(_friedman, 1, "generated/friedman"),
    "bumps": Source(_bumps, 10, "generated/bumps", standard=False),
}


def arrays(part: tuple[np.ndarray, np.ndarray], seen: np.ndarray, classes: bool) -> dict[str, Any]:
    """What a learner or a judge receives of a part of a table: x, y, the kind of targets, and the trivial loss."""
    x, y = part
    return {
        "x": x,
        "y": y,
        "classes": np.asarray(classes),
        "trivial": np.asarray(trivial(seen, y, classes), np.float32),
    }

"""Problems for program synthesis: functions of two lists, as examples of what goes in and what comes out.

A problem is a NumPy function and, as a proof that it can be solved, a program of its dialect (synthesis.py); tests hold
the two against each other. Numbers in the lists are whole. What is shown and the query `home` are drawn alike, half of
the lists from -3 .. 3 (so that equal numbers are common), half from -9 .. 9; `away` from -6 .. 6 and -30 .. 30.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from evometa.tasks.parts.synthesis import LENGTH

SHOWN, HELD = 5, 12  # examples that a lifetime sees, and pairs that its program is judged on
RANGES = {"shown": (3, 9), "home": (3, 9), "away": (6, 30)}


class Problem(NamedTuple):
    """A function of lists `x`, `y` `[examples, LENGTH]`, and a program that computes it."""

    family: str
    program: str  # instructions, "; " between them
    function: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def steps(self) -> int:
        """How many instructions the known program has."""
        return self.program.count("=")


def _over(reduce: Callable[..., np.ndarray], x: np.ndarray) -> np.ndarray:
    return np.repeat(reduce(x, axis=1)[:, None], x.shape[1], axis=1)


def _before(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(x), 1)), x[:, :-1]], axis=1)


def _flip(x: np.ndarray) -> np.ndarray:
    return x[:, ::-1]


def _sort(x: np.ndarray) -> np.ndarray:
    return np.sort(x, axis=1)


def _sums(x: np.ndarray) -> np.ndarray:
    return np.cumsum(x, axis=1)


def _tops(x: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(x, axis=1)


TRAIN: dict[str, Problem] = {
    "sum": Problem("arithmetic", "out = add(x, y)", lambda x, y: x + y),
    "double-and-one": Problem("arithmetic", "p = add(x, x); out = add(p, one)", lambda x, y: 2 * x + 1),
    "distance": Problem("arithmetic", "p = sub(x, y); out = abs(p)", lambda x, y: abs(x - y)),
    "difference-of-squares": Problem(
        "arithmetic", "p = add(x, y); q = sub(x, y); out = mul(p, q)", lambda x, y: x**2 - y**2
    ),
    "reversed": Problem("order", "out = reverse(x)", lambda x, y: _flip(x)),
    "descending": Problem("order", "p = sort(x); out = reverse(p)", lambda x, y: _flip(_sort(x))),
    "larger": Problem("order", "out = max(x, y)", lambda x, y: np.maximum(x, y)),
    "sorted-sum": Problem("order", "p = add(x, y); out = sort(p)", lambda x, y: _sort(x + y)),
    "total": Problem("fold", "out = layer_sum(x)", lambda x, y: _over(np.sum, x)),
    "dot-product": Problem("fold", "p = mul(x, y); out = layer_sum(p)", lambda x, y: _over(np.sum, x * y)),
    "spread": Problem(
        "fold", "p = layer_max(x); q = layer_min(x); out = sub(p, q)", lambda x, y: _over(np.max, x) - _over(np.min, x)
    ),
    "steps": Problem("scan", "p = shift(x); out = sub(x, p)", lambda x, y: x - _before(x)),
    "running-total": Problem("scan", "out = cumsum(x)", lambda x, y: _sums(x)),
    "total-to-come": Problem(
        "scan", "p = reverse(x); p = cumsum(p); out = reverse(p)", lambda x, y: _flip(_sums(_flip(x)))
    ),
    "where-positive": Problem("filter", "out = where(x, y, p)", lambda x, y: np.where(x > 0, y, 0)),
}

VALIDATION: dict[str, Problem] = {
    "product-and-first": Problem("arithmetic", "p = mul(x, y); out = add(p, x)", lambda x, y: x * y + x),
    "two-places-on": Problem("order", "p = shift(x); out = shift(p)", lambda x, y: _before(_before(x))),
    "below-largest": Problem("fold", "p = layer_max(x); out = sub(p, x)", lambda x, y: _over(np.max, x) - x),
    "positive-total": Problem(
        "filter", "p = max(x, p); out = layer_sum(p)", lambda x, y: _over(np.sum, np.maximum(x, 0))
    ),
    "one-more-than-product": Problem("arithmetic", "p = mul(x, y); out = add(p, one)", lambda x, y: x * y + 1),
    "sum-magnitude": Problem("arithmetic", "p = add(x, y); out = abs(p)", lambda x, y: abs(x + y)),
    "late-larger": Problem("filter", "p = shift(x); out = max(p, y)", lambda x, y: np.maximum(_before(x), y)),
    "at-most-total": Problem(
        "filter", "p = layer_sum(y); out = min(x, p)", lambda x, y: np.minimum(x, _over(np.sum, y))
    ),
    "triple": Problem("arithmetic", "p = add(x, x); out = add(p, x)", lambda x, y: 3 * x),
    "smaller": Problem("order", "out = min(x, y)", lambda x, y: np.minimum(x, y)),
    "mirrored-sum": Problem("order", "p = reverse(x); out = add(x, p)", lambda x, y: x + _flip(x)),
    "above-smallest": Problem("fold", "p = layer_min(x); out = sub(x, p)", lambda x, y: x - _over(np.min, x)),
    "total-magnitude": Problem("fold", "p = abs(x); out = layer_sum(p)", lambda x, y: _over(np.sum, abs(x))),
    "sorted-running-total": Problem("scan", "p = sort(x); out = cumsum(p)", lambda x, y: _sums(_sort(x))),
    "backward-running-total": Problem("scan", "p = reverse(x); out = cumsum(p)", lambda x, y: _sums(_flip(x))),
}

TEST: dict[str, Problem] = {
    "running-total-of-squares": Problem(
        "scan", "p = mul(x, x); p = cumsum(p); out = add(p, y)", lambda x, y: _sums(x**2) + y
    ),
    "clamped-and-shifted": Problem(
        "filter", "p = layer_max(y); p = min(x, p); out = shift(p)",
        lambda x, y: _before(np.minimum(x, _over(np.max, y))),
    ),
    "chosen-running-total": Problem(
        "filter", "p = where(x, y, one); p = cumsum(p); out = sub(p, x)",
        lambda x, y: _sums(np.where(x > 0, y, 1)) - x,
    ),
    "second-steps": Problem(
        "scan", "p = shift(x); p = sub(x, p); q = shift(p); out = sub(p, q)",
        lambda x, y: x - 2 * _before(x) + _before(_before(x)),
    ),
    "spread-of-sum": Problem(
        "fold", "p = add(x, y); q = layer_max(p); p = layer_min(p); out = sub(q, p)",
        lambda x, y: _over(np.ptp, x + y),
    ),
    "descending-magnitudes": Problem(
        "order", "p = abs(x); p = sort(p); out = reverse(p)", lambda x, y: _flip(_sort(abs(x)))
    ),
    "descending-running-total": Problem(
        "scan", "p = sort(x); p = reverse(p); out = cumsum(p)", lambda x, y: _sums(_flip(_sort(x)))
    ),
    "products-to-come": Problem(
        "scan", "p = mul(x, y); p = reverse(p); p = cumsum(p); out = reverse(p)",
        lambda x, y: _flip(_sums(_flip(x * y))),
    ),
    "total-distance": Problem(
        "fold", "p = sub(x, y); p = abs(p); out = layer_sum(p)", lambda x, y: _over(np.sum, abs(x - y))
    ),
    "above-all-others": Problem(
        "filter", "p = layer_max(y); p = sub(x, p); out = where(p, x, q)",
        lambda x, y: np.where(x > _over(np.max, y), x, 0),
    ),
    "difference-of-square-totals": Problem(
        "fold", "p = add(x, y); q = sub(x, y); p = mul(p, q); out = layer_sum(p)",
        lambda x, y: _over(np.sum, x**2 - y**2),
    ),
    "mirror-distance": Problem(
        "order", "p = reverse(x); p = sub(x, p); out = abs(p)", lambda x, y: abs(x - _flip(x))
    ),
    "largest-gap": Problem(
        "order", "p = sort(x); q = shift(p); p = sub(p, q); out = layer_max(p)",
        lambda x, y: _over(np.max, _sort(x) - _before(_sort(x))),
    ),
    "running-loss": Problem(
        "scan", "p = abs(x); p = sub(p, x); out = cumsum(p)", lambda x, y: _sums(abs(x) - x)
    ),
    "largest-replaced": Problem(
        "filter", "p = layer_max(x); p = sub(p, x); out = where(p, x, y)",
        lambda x, y: np.where(x < _over(np.max, x), x, y),
    ),
    "cube-and-square": Problem(
        "arithmetic", "p = mul(x, x); q = mul(p, x); out = add(p, q)", lambda x, y: x**3 + x**2
    ),
    "square-and-product": Problem(
        "arithmetic", "p = add(x, y); p = mul(p, x); out = add(p, one)", lambda x, y: x**2 + x * y + 1
    ),
    "sorted-dot-product": Problem(
        "fold", "p = sort(x); q = sort(y); p = mul(p, q); out = layer_sum(p)",
        lambda x, y: _over(np.sum, _sort(x) * _sort(y)),
    ),
    "paired-extremes": Problem(
        "order", "p = sort(x); q = sort(y); q = reverse(q); out = add(p, q)", lambda x, y: _sort(x) + _flip(_sort(y))
    ),
    "distance-from-middle": Problem(
        "fold", "p = layer_max(x); q = layer_min(x); p = add(p, q); p = sub(p, x); out = sub(p, x)",
        lambda x, y: _over(np.max, x) + _over(np.min, x) - 2 * x,
    ),
}  # fmt: skip

DIALECT: dict[str, Problem] = {
    "difference": Problem("arithmetic", "out = sub(x, y)", lambda x, y: x - y),
    "squared-difference": Problem("arithmetic", "p = sub(x, y); out = square(p)", lambda x, y: (x - y) ** 2),
    "half-sum": Problem("arithmetic", "p = add(x, y); out = half(p)", lambda x, y: (x + y) // 2),
    "parity": Problem("arithmetic", "out = mod(x, two)", lambda x, y: x % 2),
    "half-square": Problem("arithmetic", "p = square(x); out = half(p)", lambda x, y: x**2 // 2),
    "descending-sum": Problem("order", "p = add(x, y); out = descend(p)", lambda x, y: _flip(_sort(x + y))),
    "largest": Problem("order", "p = descend(x); out = layer_first(p)", lambda x, y: _over(np.max, x)),
    "turned-difference": Problem("order", "p = rotate(x); out = sub(x, p)", lambda x, y: x - np.roll(x, -1, axis=1)),
    "odd-ones": Problem("fold", "p = mod(x, two); out = layer_sum(p)", lambda x, y: _over(np.sum, x % 2)),
    "how-many-smaller": Problem("fold", "p = less(x, y); out = layer_sum(p)", lambda x, y: _over(np.sum, 1 * (x < y))),
    "records": Problem("scan", "p = cummax(x); out = equal(x, p)", lambda x, y: 1 * (x == _tops(x))),
    "turned-tops": Problem("scan", "p = rotate(x); out = cummax(p)", lambda x, y: _tops(np.roll(x, -1, axis=1))),
    "descending-steps": Problem(
        "scan", "p = descend(x); out = delta(p)", lambda x, y: _flip(_sort(x)) - _before(_flip(_sort(x)))
    ),
    "lead": Problem("filter", "p = sub(x, y); out = relu(p)", lambda x, y: np.maximum(x - y, 0)),
    "is-largest": Problem(
        "filter", "p = descend(x); p = layer_first(p); out = equal(x, p)", lambda x, y: 1 * (x == _over(np.max, x))
    ),
}

PROBLEMS = {**TRAIN, **VALIDATION, **TEST, **DIALECT}


def examples(name: str, part: str) -> dict[str, Any]:
    """`x`, `y` and `out` `[examples, LENGTH]` float32 of a problem: what is `shown`, or the pairs of a query.

    Always the same. No pair of a query is among those shown.
    """
    problem, count = PROBLEMS[name], SHOWN if part == "shown" else HELD
    word = hashlib.sha256(f"dsl_godel {name} {part}".encode()).digest()[:8]
    draw = np.random.default_rng(int.from_bytes(word, "little"))
    taken = set() if part == "shown" else {_word(x, y) for x, y in zip(*_lists(examples(name, "shown")), strict=True)}
    x, y = np.zeros((2, count, LENGTH), np.int64)
    for row in range(count):
        most = RANGES[part][row % 2]
        while True:
            x[row], y[row] = draw.integers(-most, most + 1, (2, LENGTH))
            if _word(x[row], y[row]) not in taken:
                break
    out = problem.function(x, y)
    return {key: np.asarray(value, np.float32) for key, value in (("x", x), ("y", y), ("out", out))}


def _lists(made: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return made["x"], made["y"]


def _word(x: np.ndarray, y: np.ndarray) -> bytes:
    return np.concatenate([x, y]).astype(np.int64).tobytes()

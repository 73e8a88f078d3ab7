"""Small tables under covariate shift, in plain Python and NumPy: a network fitted in some milliseconds.

Source: the tables inside scikit-learn (iris, wine, breast cancer, diabetes, digits) and its generators
(moons; clusters on a hypercube, Guyon 2003; the regression of Friedman 1991, made into two classes). A
domain is one table. The fifth of its rows that lies furthest from the table's middle (in standard
deviations, over all columns) is `away`: the outskirts, where training saw little. Of the others a random
quarter is `home` and the rest is `support`. The learner knows means, scales and classes from support rows
alone. Loss: cross-entropy in nats; metric `error`: share of wrong answers.

No JAX is used here: it is the task to read before writing one in NumPy, scikit-learn or anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError
from evometa.space import Candidate, Space, categorical, integer, log, real

TRAIN = ("iris", "moons", "friedman", "digits_3_8")
VALIDATION = ("clusters", "digits_4_9")
TEST = ("wine", "breast_cancer", "diabetes", "three_classes")

COLUMNS: dict[str, Any] = {
    "rate": log(1e-3, 1.0),  # step size of SGD with momentum
    "momentum": real(0.0, 0.98),
    "decay": log(1e-6, 1.0),  # weight decay, per unit of rate
    "hidden": integer(2, 24),  # units
    "activation": categorical(("tanh", "relu", "sine")),
    "scaling": categorical(("none", "standard", "rank")),  # how columns are scaled
    "noise": real(0.0, 1.0),  # standard deviation added to scaled inputs in training
    "smoothing": real(0.0, 0.4),  # label smoothing
    "temperature": log(0.5, 4.0),  # logits are divided by it when judging
}
BASELINE: Candidate = {
    "rate": 0.1,
    "momentum": 0.9,
    "decay": 1e-4,
    "hidden": 16,
    "activation": "tanh",
    "scaling": "standard",
    "noise": 0.0,
    "smoothing": 0.0,
    "temperature": 1.0,
}

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"steps": 20, "rows": 80}, "generations": 2, "population": 6, "strategy": "tpe"},
    "standard": {"task": {}, "generations": 30, "population": 24, "strategy": "tpe"},
    "full": {"task": {"steps": 400}, "generations": 80, "population": 32, "strategy": "tpe"},
}

Rows = dict[str, np.ndarray]  # x [N, F] float64, y [N] int64


def tables(*, steps: int = 100, batch: int = 32, rows: int = 400) -> Task:
    """Small tables under covariate shift as a Python task; nine columns to search.

    `steps`, `batch`: inner training. `rows`: at most so many rows of each table are used (>= 40).
    """
    if rows < 40 or steps < 1 or batch < 1:
        raise ConfigError(f"tables: expected rows >= 40, steps >= 1 and batch >= 1, got {rows=}, {steps=}, {batch=}")
    return Task(
        name="tables",
        space=Space(COLUMNS),
        domains=tuple(_domain(name, rows) for name in (*TRAIN, *VALIDATION, *TEST)),
        fit=partial(fit, steps=steps, batch=batch),
        judge=judge,
        objective=Objective(query="away", reduction="mean"),
        baseline=BASELINE,
        split=Split(train=TRAIN, validation=VALIDATION, test=TEST),
        runs="python",
        metrics=("error",),
        source=__name__,
    )


# --- the learner -------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: (z > 0).astype(float)),
    "sine": (np.sin, np.cos),
}


def fit(key: int, candidate: Candidate, support: Rows, *, steps: int, batch: int) -> dict[str, Any]:
    """SGD with momentum on a network with one hidden layer, gradients by hand."""
    with np.errstate(all="ignore"):  # a training that diverges is a failed candidate, not a warning
        return _fit(key, candidate, support, steps, batch)


def _fit(key: int, candidate: Candidate, support: Rows, steps: int, batch: int) -> dict[str, Any]:
    luck = np.random.default_rng(key)
    scale = _Scaler(candidate["scaling"], support["x"])
    inputs, labels = scale(support["x"]), support["y"]
    classes, hidden = int(labels.max()) + 1, candidate["hidden"]
    smoothing = candidate["smoothing"]
    targets = np.eye(classes)[labels] * (1.0 - smoothing) + smoothing / classes
    weights = [
        luck.standard_normal((inputs.shape[1], hidden)) / inputs.shape[1] ** 0.5,
        np.zeros(hidden),
        luck.standard_normal((hidden, classes)) / hidden**0.5,
        np.zeros(classes),
    ]
    speeds = [np.zeros_like(w) for w in weights]
    function, slope = ACTIVATIONS[candidate["activation"]]
    order = luck.integers(0, len(inputs), (steps, batch))
    for step in range(steps):
        x = inputs[order[step]] + candidate["noise"] * luck.standard_normal((batch, inputs.shape[1]))
        z = x @ weights[0] + weights[1]
        h = function(z)
        wrong = (_softmax(h @ weights[2] + weights[3]) - targets[order[step]]) / batch
        back = (wrong @ weights[2].T) * slope(z)
        rate = candidate["rate"] * (1.0 - step / steps)
        for w, v, g in zip(weights, speeds, (x.T @ back, back.sum(0), h.T @ wrong, wrong.sum(0)), strict=True):
            v *= candidate["momentum"]
            v += g + candidate["decay"] * w
            w -= rate * v
    learned = {
        "weights": weights,
        "activation": candidate["activation"],
        "temperature": candidate["temperature"],
        "scale": scale,
        "inner_steps": steps,
    }
    return {**learned, "support_loss": _loss(learned, support)[0]}


def judge(key: int, learned: dict[str, Any], query: Rows) -> dict[str, float]:
    """Cross-entropy in nats (`loss`) and share of wrong answers (`error`) on a query."""
    del key
    with np.errstate(all="ignore"):
        loss, error = _loss(learned, query)
    return {
        "loss": loss,
        "error": error,
        "support_loss": learned["support_loss"],
        "inner_steps": float(learned["inner_steps"]),
    }


def _loss(learned: dict[str, Any], rows: Rows) -> tuple[float, float]:
    first, first_bias, second, second_bias = learned["weights"]
    function = ACTIVATIONS[learned["activation"]][0]
    hidden = function(learned["scale"](rows["x"]) @ first + first_bias)
    chances = _softmax((hidden @ second + second_bias) / learned["temperature"])
    # A class the support never showed has no output: it is charged as a chance of 1e-12.
    seen = rows["y"] < chances.shape[1]
    right = np.where(seen, chances[np.arange(len(seen)), np.minimum(rows["y"], chances.shape[1] - 1)], 0.0)
    return float(-np.log(np.maximum(right, 1e-12)).mean()), float((chances.argmax(1) != rows["y"]).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


class _Scaler:
    """Scaling of columns as the support has them; an object, so that it can be sent to another process."""

    def __init__(self, kind: str, x: np.ndarray) -> None:
        self.kind = kind
        self.mean, self.spread = x.mean(0), x.std(0) + 1e-9
        self.ordered = np.sort(x, axis=0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.kind == "none":
            return x
        if self.kind == "standard":
            return (x - self.mean) / self.spread
        places = [np.searchsorted(c, v) for c, v in zip(self.ordered.T, x.T, strict=True)]
        return np.stack(places, axis=1) / len(self.ordered) * 2.0 - 1.0


# --- the domains -------------------------------------------------------------------------------------


def _domain(name: str, rows: int) -> Domain:
    # Functions, not arrays: a table is read when its domain is used and not before.
    queries = {part: partial(_part, name, part, rows) for part in ("home", "away")}
    return Domain(name, partial(_part, name, "support", rows), queries, {"kind": KIND[name]})


def _part(name: str, part: str, rows: int) -> Rows:
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    luck = np.random.default_rng(word)
    x, y = _table(name, word % 2**31)
    chosen = luck.permutation(len(y))[:rows]
    x, y = x[chosen].astype(np.float64), y[chosen].astype(np.int64)
    scaled = (x - x.mean(0)) / (x.std(0) + 1e-9)
    order = np.argsort(np.sum(scaled**2, axis=1), kind="stable")
    near, far = order[: -len(order) // 5], order[-len(order) // 5 :]
    near = luck.permutation(near)
    held = len(near) // 4
    index = {"away": far, "home": near[:held], "support": near[held:]}[part]
    return {"x": x[index], "y": y[index]}


def _table(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[N, F]` and classes `[N]` of a table, in the order in which scikit-learn has them."""
    from sklearn import datasets

    makers: dict[str, Callable[..., Any]] = {
        "moons": partial(datasets.make_moons, 500, noise=0.25),
        "clusters": partial(datasets.make_classification, 500, 8, n_informative=4, flip_y=0.05),
        "three_classes": partial(datasets.make_classification, 500, 8, n_informative=5, n_classes=3, flip_y=0.05),
        "friedman": partial(datasets.make_friedman1, 500, n_features=8, noise=1.0),
    }
    if name in makers:
        x, y = makers[name](random_state=seed)
    else:
        loaders = {"digits_3_8": "load_digits", "digits_4_9": "load_digits"}
        x, y = getattr(datasets, loaders.get(name, f"load_{name}"))(return_X_y=True)
    if name in ("friedman", "diabetes"):
        y = y > np.median(y)
    if name.startswith("digits"):
        first, second = (int(digit) for digit in name.split("_")[1:])
        kept = (y == first) | (y == second)
        x, y = x[kept], y[kept] == second
    return x, y.astype(np.int64)


KIND = {
    "iris": "measured",
    "moons": "generated",
    "friedman": "generated",
    "digits_3_8": "measured",
    "clusters": "generated",
    "digits_4_9": "measured",
    "wine": "measured",
    "breast_cancer": "measured",
    "diabetes": "measured",
    "three_classes": "generated",
}

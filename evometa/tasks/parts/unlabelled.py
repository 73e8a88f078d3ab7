"""Examples without labels to learn from, and labelled ones to judge what was learned: the worlds of `local_rule`.

Sources: tables inside scikit-learn (digits: Alpaydin and Kaynak 1998; wine, iris, breast cancer, diabetes) and two
generated kinds: the waveforms of Breiman, Friedman, Olshen and Stone 1984, and tones, one period or more of a sine,
a square or a saw-tooth of random phase under noise. Digits are divided by rows into three stores, one for each of
train, validation and test, so that a sealed digit was never seen, whatever else its world changes.

A world also says which network looks at it: widths, nonlinearity, length of training. These are shapes or numbers
in its support, so worlds of equal shapes are compiled once.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from evometa.contract import Domain

CHANNELS = 64  # inputs that small tables are seen through: a random orthonormal map
SUPPORT = 320  # examples without labels; a smaller table is repeated
POOL = 120  # labelled examples, out of which the shots are drawn; a smaller table has fewer
SHOTS = 30  # labelled examples that a probe is fitted to, equally many of each class
REST = 90  # the others, which judge it
DRAWS = 8  # of shots
CLASSES = 10  # columns of the targets; those of absent classes are zero
NONLINEARITIES = ("tanh", "relu", "linear", "abs", "softsign")

STORES = {"train": (0, 1000), "validation": (1000, 1300), "test": (1300, 1797)}  # rows of the digits, shuffled


class World(NamedTuple):
    """One domain: what is looked at, by which network, and what that changes against the train worlds."""

    table: str  # digits, or the name of another table
    shift: str = "none"
    classes: tuple[int, ...] = tuple(range(10))  # of digits
    nonlinearity: str = "tanh"
    widths: tuple[int, ...] = (16,)
    change: str = ""  # what is done to the inputs: permuted, rotated, noisy
    longer: int = 1  # times as many steps
    native: bool = False  # small tables: their own columns as inputs, not CHANNELS of them


_LOW, _HIGH = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
_MIXED = (0, 2, 3, 6, 8)
TRAIN = {
    "digits_low": World("digits", classes=_LOW),
    "digits_high": World("digits", classes=_HIGH, nonlinearity="relu"),
    "wine": World("wine"),
    "waveform": World("waveform", nonlinearity="relu"),
}
VALIDATION = {
    "digits_odd": World("digits", "examples", (1, 3, 5, 7, 9)),
    "digits_even": World("digits", "examples", (0, 2, 4, 6, 8), "relu"),
    "iris": World("iris", "modality"),
}
TEST = {
    "digits_mixed": World("digits", "examples", _MIXED),
    "digits_ten": World("digits", "examples", nonlinearity="relu"),
    "digits_narrow": World("digits", "width", _MIXED, widths=(6,)),
    "digits_wide": World("digits", "width", _MIXED, widths=(64,)),
    "digits_two": World("digits", "depth", _MIXED, widths=(32, 16)),
    "digits_three": World("digits", "depth", _MIXED, "relu", widths=(24, 24, 16)),
    "digits_linear": World("digits", "nonlinearity", _MIXED, "linear"),
    "digits_abs": World("digits", "nonlinearity", _MIXED, "abs"),
    "digits_softsign": World("digits", "nonlinearity", _MIXED, "softsign"),
    "digits_permuted": World("digits", "pixels", _MIXED, change="permuted"),
    "digits_rotated": World("digits", "pixels", _MIXED, change="rotated"),
    "digits_noisy": World("digits", "pixels", _MIXED, change="noisy"),
    "digits_long": World("digits", "horizon", _MIXED, longer=5),
    "breast_cancer": World("breast_cancer", "modality", native=True),
    "diabetes": World("diabetes", "modality", widths=(8,), native=True),
    "tones": World("tones", "modality", nonlinearity="relu"),
}
WORLDS = {**TRAIN, **VALIDATION, **TEST}


def domain(name: str, steps: int) -> Domain:
    """The domain of a world, trained for `steps` steps (times `longer`); nothing is loaded before it is used.

    Support: `x` [SUPPORT, F] float32, `layers` (an array of each layer's width), `steps` (an array of that length),
    `nonlinearity` [] int32. Query `probe`: `x` [POOL, F], `target` [POOL, CLASSES] one-hot float32, `shots`
    [DRAWS, SHOTS] and `rest` [DRAWS, REST], row numbers. No row is in both.
    """
    world = WORLDS[name]
    tags = {"table": world.table, "shift": world.shift, "nonlinearity": world.nonlinearity}
    tags["widths"] = "-".join(map(str, world.widths))
    # What the ledger of openings knows a world's data by: each store of digits is data of its own.
    tags["data"] = f"{world.table} ({_role(name)} rows)" if world.table == "digits" else world.table
    return Domain(name, partial(_support, name, steps), {"probe": partial(_probe, name)}, tags, sealed=name in TEST)


def _support(name: str, steps: int) -> dict[str, Any]:
    world = WORLDS[name]
    x, _, _ = _parts(name)
    return {
        "x": np.resize(x, (SUPPORT, x.shape[1])),
        "layers": tuple(np.zeros(width, np.float32) for width in world.widths),
        "steps": np.zeros(steps * world.longer, np.float32),
        "nonlinearity": np.asarray(NONLINEARITIES.index(world.nonlinearity), np.int32),
    }


def _probe(name: str) -> dict[str, Any]:
    _, x, labels = _parts(name)
    luck = np.random.default_rng([_word(name), 2])
    classes = np.unique(labels)  # digits 1, 3 ... keep their own columns
    each = SHOTS // len(classes)
    shots, rest = [], []
    for _ in range(DRAWS):
        order = luck.permutation(len(labels))
        chosen = np.concatenate([order[labels[order] == c][:each] for c in classes])
        others = order[~np.isin(order, chosen)]
        shots.append(chosen)
        rest.append(np.resize(others, REST))
    target = (labels[:, None] == np.arange(CLASSES)[None, :]).astype(np.float32)
    empty = POOL - len(labels)  # rows that no draw names
    return {
        "x": np.pad(x, ((0, empty), (0, 0))),
        "target": np.pad(target, ((0, empty), (0, 0))),
        "shots": np.asarray(shots, np.int32),
        "rest": np.asarray(rest, np.int32),
    }


def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of its table a world shows without labels, and which it judges by: numbers, none in both."""
    world, (_, labels) = WORLDS[name], _table(name)
    luck = np.random.default_rng([_word(name), 1])
    if world.table == "digits":
        first, last = STORES[_role(name)]
        kept = np.random.default_rng(0).permutation(len(labels))[first:last]
        kept = kept[np.isin(labels[kept], world.classes)]
    else:
        kept = np.arange(len(labels))
    order = luck.permutation(kept)
    held = min(POOL, len(order) // 2)
    return order[held:], order[:held]


def _parts(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unlabelled inputs, labelled inputs and their labels, scaled as the unlabelled ones say."""
    world, (table, labels), (first, second) = WORLDS[name], _table(name), rows(name)
    luck = np.random.default_rng([_word(name), 3])
    seen, judged = table[first], table[second]
    middle, spread = seen.mean(0), seen.std(0) + 1e-9
    if world.table == "digits":  # one scale for all pixels: a rim that is nearly always empty stays small
        spread = np.sqrt(np.mean(spread**2))
    seen, judged = (seen - middle) / spread, (judged - middle) / spread
    width = seen.shape[1]
    if width < CHANNELS and not world.native:
        # Orthonormal, and scaled so that the inputs keep a mean square of 1.
        channels = _turn(luck, CHANNELS)[:width] * (CHANNELS / width) ** 0.5
        seen, judged = seen @ channels, judged @ channels
    if world.change == "permuted":
        places = luck.permutation(width)
        seen, judged = seen[:, places], judged[:, places]
    if world.change == "rotated":
        turn = _turn(luck, width)
        seen, judged = seen @ turn, judged @ turn
    if world.change == "noisy":
        seen, judged = ((x + luck.standard_normal(x.shape)) / 2.0**0.5 for x in (seen, judged))
    return seen.astype(np.float32), judged.astype(np.float32), labels[second]


def _turn(luck: np.random.Generator, size: int) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(luck.standard_normal((size, size)))[0]


def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[N, F]` and labels `[N]` of a world's whole table."""
    table = WORLDS[name].table
    made = {"waveform": _waveforms, "tones": _tones}
    return made[table](np.random.default_rng([_word(name), 0]), SUPPORT + POOL) if table in made else _bundled(table)


@lru_cache(maxsize=8)
def _bundled(table: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    rows, labels = getattr(datasets, f"load_{table}")(return_X_y=True)
    if table == "diabetes":  # how far the disease went on in a year: above the median or not
        labels = labels > np.median(labels)
    return np.asarray(rows, np.float64), np.asarray(labels, np.int64)


def _waveforms(luck: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Breiman et al. 1984, section 2.6.2: convex mixtures of two of three triangles of 21 points, noise N(0, 1)."""
    points = np.arange(1, 22)
    triangles = np.stack([np.maximum(6 - np.abs(points - peak), 0) for peak in (7, 15, 11)])
    labels = luck.integers(0, 3, count)
    share = luck.random((count, 1))
    first, second = np.array([0, 0, 1])[labels], np.array([1, 2, 2])[labels]
    clean = share * triangles[first] + (1.0 - share) * triangles[second]
    return clean + luck.standard_normal(clean.shape), labels


def _tones(luck: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines, squares, saw-teeth of 64 points, of one period and of two: six classes; any phase, noise N(0, 0.3^2)."""
    labels = luck.integers(0, 6, count)
    turns = (np.arange(CHANNELS)[None, :] / CHANNELS * (1 + labels // 3)[:, None] + luck.random((count, 1))) % 1.0
    shapes = np.stack(
        [np.sin(2 * np.pi * turns) * 2.0**0.5, np.where(turns < 0.5, 1.0, -1.0), (2 * turns - 1) * 3.0**0.5]
    )
    clean = shapes[labels % 3, np.arange(count)]
    return clean + 0.3 * luck.standard_normal(clean.shape), labels


def _role(name: str) -> str:
    return "train" if name in TRAIN else "validation" if name in VALIDATION else "test"


def _word(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")

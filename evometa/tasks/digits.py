"""Handwritten digits under shifts that training never shows: a small network trained by SGD.

Source: the 8 x 8 digits of scikit-learn (Alpaydin and Kaynak 1998, UCI, CC BY 4.0); the shifts are in the
manner of Hendrycks and Dietterich 2019. A domain is one kind of shift. Its `support` and `home` are plain
digits, its `away` is other digits rotated, blurred, covered ... as the domain's name says; no image is in
two parts of a domain. Loss: cross-entropy in nats; metric `error`: share of wrong answers.

A candidate (six trainings and twelve judgements) costs some milliseconds of one core: this is also the
task of the throughput benchmark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError
from evometa.space import Candidate, Space, log, real

SIDE = 8
PIXELS = SIDE * SIDE
CLASSES = 10
GROUPS = 8  # examples of a batch share noise within this many groups: random bits are dear on a CPU

TRAIN = ("rotate15", "noise", "blur", "shift", "occlude", "contrast")
VALIDATION = ("rotate30", "salt", "shear")
TEST = ("rotate45", "zoom", "stripes", "missing_rows", "ramp")

COLUMNS: dict[str, Any] = {
    "rate": {"hidden": log(1e-2, 10.0), "output": log(1e-2, 10.0)},  # SGD step size, per layer
    "momentum": real(0.0, 0.98),  # steps are multiplied by 1 - momentum, so the rate means the same at any momentum
    "decay": log(1e-6, 1e-1),  # weight decay, per unit of rate
    "anneal": real(0.0, 2.0),  # rate x (1 - step / steps) ** anneal
    "scale": {"hidden": log(0.1, 3.0), "output": log(0.1, 3.0)},  # of initial weights, x 1 / sqrt(inputs)
    "dropout": real(0.0, 0.6),  # of hidden units
    "noise": real(0.0, 0.6),  # standard deviation added to pixels in training; pixels lie in 0 .. 1
    "smoothing": real(0.0, 0.4),  # label smoothing
}
BASELINE: Candidate = {
    "rate": {"hidden": 2.0, "output": 2.0},
    "momentum": 0.9,
    "decay": 1e-4,
    "anneal": 1.0,
    "scale": {"hidden": 1.0, "output": 1.0},
    "dropout": 0.0,
    "noise": 0.0,
    "smoothing": 0.0,
}

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"steps": 20, "hidden": 8, "support": 128, "query": 64}, "generations": 3, "population": 8},
    "standard": {"task": {}, "generations": 60, "population": 64},
    "full": {"task": {"steps": 200, "hidden": 48}, "generations": 200, "population": 128},
}


class Sizes(NamedTuple):
    """What sets array shapes: the same for every candidate."""

    hidden: int
    batch: int
    steps: int


def digits(*, hidden: int = 24, batch: int = 32, steps: int = 80, support: int = 512, query: int = 256) -> Task:
    """Digits under shift as a task; ten numbers to search.

    `hidden`: units. `batch` (a multiple of 8), `steps`: inner training. `support`, `query`: images per
    domain and part (support + 2 query <= 1797).
    """
    if batch % GROUPS or batch < GROUPS:
        raise ConfigError(f"digits: expected batch a multiple of {GROUPS}, got {batch}")
    if support + 2 * query > 1797:
        raise ConfigError(f"digits: expected support + 2 * query <= 1797 images, got {support} + 2 * {query}")
    sizes = Sizes(hidden, batch, steps)
    return Task(
        name="digits",
        space=Space(COLUMNS),
        domains=tuple(_domain(name, support, query) for name in (*TRAIN, *VALIDATION, *TEST)),
        fit=partial(fit, sizes=sizes),
        judge=judge,
        objective=Objective(query="away", reduction="mean"),
        baseline=BASELINE,
        split=Split(train=TRAIN, validation=VALIDATION, test=TEST),
        source=__name__,
    )


# --- the learner -------------------------------------------------------------------------------------


def fit(key: Any, candidate: Candidate, support: dict[str, Any], *, sizes: Sizes) -> dict[str, Any]:
    """SGD with momentum on images `[N, 64]` and labels `[N]`; one tanh layer."""
    init_key, order_key, noise_key = jax.random.split(key, 3)
    shapes = {"hidden": (PIXELS, sizes.hidden), "output": (sizes.hidden, CLASSES)}
    keys = dict(zip(shapes, jax.random.split(init_key), strict=True))
    weights = {
        **{n: jax.random.normal(keys[n], s) * candidate["scale"][n] / s[0] ** 0.5 for n, s in shapes.items()},
        "hidden_bias": jnp.zeros(sizes.hidden),
        "output_bias": jnp.zeros(CLASSES),
    }
    order = jax.random.randint(order_key, (sizes.steps, sizes.batch), 0, support["label"].shape[0])
    bits = jax.random.bits(noise_key, (sizes.steps, GROUPS, PIXELS + sizes.hidden), jnp.uint8)
    batches = {
        "order": order,
        "bits": bits,
        "left": 1.0 - jnp.arange(float(sizes.steps)) / sizes.steps,
    }
    rates = candidate["rate"]
    rate = {layer + bias: rates[layer] for layer in shapes for bias in ("", "_bias")}

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        weights, speed = carry
        # Looked up here, step by step: all batches at once would not fit a core's cache.
        batch = {
            "image": support["image"][batch["order"]],
            "label": support["label"][batch["order"]],
            "luck": (batch["bits"].astype(jnp.float32) + 0.5) / 256.0,
            "left": batch["left"],
        }
        loss, gradient = jax.value_and_grad(_training_loss)(weights, candidate, batch, sizes)
        pull = jax.tree.map(lambda g, w: g + candidate["decay"] * w, gradient, weights)
        speed = jax.tree.map(lambda s, p: candidate["momentum"] * s + p, speed, pull)
        anneal = batch["left"] ** candidate["anneal"]
        # 1 - momentum: the rate then means the same at any momentum.
        size = anneal * (1.0 - candidate["momentum"])
        return (jax.tree.map(lambda w, s, r: w - size * r * s, weights, speed, rate), speed), loss

    (weights, _), losses = jax.lax.scan(step, (weights, jax.tree.map(jnp.zeros_like, weights)), batches)
    return {
        "weights": weights,
        "support_loss": jnp.mean(losses[-max(1, sizes.steps // 10) :]),
        "inner_steps": jnp.asarray(float(sizes.steps)),
    }


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    """Cross-entropy in nats (`loss`) and share of wrong answers (`error`) on a query."""
    del key
    logits = _logits(learned["weights"], query["image"])
    right = jnp.take_along_axis(logits, query["label"][:, None], axis=1)[:, 0]
    return {
        "loss": jnp.mean(jax.nn.logsumexp(logits, axis=1) - right),
        "error": jnp.mean((jnp.argmax(logits, axis=1) != query["label"]).astype(jnp.float32)),
        "support_loss": learned["support_loss"],
        "inner_steps": learned["inner_steps"],
    }


def _training_loss(weights: Any, candidate: Candidate, batch: Any, sizes: Sizes) -> Any:
    luck = jnp.repeat(batch["luck"], sizes.batch // GROUPS, axis=0)
    # A uniform variable of standard deviation 1 has half-width sqrt(3).
    noisy = batch["image"] + candidate["noise"] * (luck[:, :PIXELS] - 0.5) * (2.0 * 3.0**0.5)
    keep = jnp.where(luck[:, PIXELS:] < 1.0 - candidate["dropout"], 1.0 / (1.0 - candidate["dropout"]), 0.0)
    scores = jax.nn.log_softmax(_logits(weights, noisy, keep))
    right = jnp.take_along_axis(scores, batch["label"][:, None], axis=1)[:, 0]
    return -jnp.mean((1.0 - candidate["smoothing"]) * right + candidate["smoothing"] * jnp.mean(scores, axis=1))


def _logits(weights: Any, image: Any, keep: Any = 1.0) -> Any:
    hidden = jnp.tanh((image - 0.3) @ weights["hidden"] + weights["hidden_bias"][None]) * keep  # 0.3: mean brightness
    return hidden @ weights["output"] + weights["output_bias"][None]


# --- the domains -------------------------------------------------------------------------------------


def _domain(name: str, support: int, query: int) -> Domain:
    # Functions, not arrays: a shift is made when its domain is used and not before.
    pieces = {"support": (0, support), "home": (support, query), "away": (support + query, query)}
    parts = {part: partial(_images, name, part, *piece) for part, piece in pieces.items()}
    family = "rotation" if name.startswith("rotate") else name
    return Domain(name, parts.pop("support"), parts, {"shift": family})


@lru_cache(maxsize=1)
def _plain() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels, np.float64).reshape(-1, SIDE, SIDE) / 16.0, np.asarray(labels, np.int32)


def _images(domain: str, part: str, first: int, count: int) -> dict[str, np.ndarray]:
    """`image` [count, 64] float32 in 0 .. 1 and `label` [count] int32; only `away` is shifted."""
    images, labels = _plain()
    word = int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "little")
    rows = np.random.default_rng([word, 0]).permutation(len(labels))[first : first + count]
    chosen = images[rows]
    if part == "away":
        chosen = np.clip(SHIFTS[domain](chosen, np.random.default_rng([word, 1])), 0.0, 1.0)
    return {"image": chosen.reshape(count, PIXELS).astype(np.float32), "label": labels[rows]}


def _affine(matrix: list[list[float]]) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def shift(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
        from scipy.ndimage import affine_transform

        del luck
        centre = np.full(2, (SIDE - 1) / 2)
        offset: Any = centre - np.array(matrix) @ centre
        return np.stack([affine_transform(image, matrix, offset, order=1) for image in images])

    return shift


def _rotate(degrees: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    cosine, sine = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    return _affine([[cosine, -sine], [sine, cosine]])


def _noise(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    return images + 0.3 * luck.standard_normal(images.shape)


def _blur(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    del luck
    return gaussian_filter(images, (0, 1.0, 1.0))


def _shift(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    steps = luck.integers(-1, 2, (len(images), 2))
    return np.stack([np.roll(image, step, axis=(0, 1)) for image, step in zip(images, steps, strict=True)])


def _occlude(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    covered = images.copy()
    for image, (row, column) in zip(covered, luck.integers(0, SIDE - 2, (len(images), 2)), strict=True):
        image[row : row + 3, column : column + 3] = 0.0
    return covered


def _contrast(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    del luck
    return 0.3 + 0.35 * (images - 0.3)


def _salt(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    luck_of_pixel = luck.random(images.shape)
    return np.where(luck_of_pixel < 0.08, 1.0, np.where(luck_of_pixel > 0.92, 0.0, images))


def _stripes(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    phase = luck.integers(0, 4, (len(images), 1, 1))
    return images + 0.5 * ((np.arange(SIDE)[None, None, :] + phase) % 4 == 0)


def _missing_rows(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    missing = luck.permuted(np.tile(np.arange(SIDE) < 2, (len(images), 1)), axis=1)
    return np.where(missing[:, :, None], 0.0, images)


def _ramp(images: np.ndarray, luck: np.random.Generator) -> np.ndarray:
    del luck
    return images + np.linspace(0.0, 0.6, SIDE)[None, None, :]


SHIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "rotate15": _rotate(15.0),
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "occlude": _occlude,
    "contrast": _contrast,
    "rotate30": _rotate(30.0),
    "salt": _salt,
    "shear": _affine([[1.0, 0.0], [0.4, 1.0]]),
    "rotate45": _rotate(45.0),
    "zoom": _affine([[0.75, 0.0], [0.0, 0.75]]),
    "stripes": _stripes,
    "missing_rows": _missing_rows,
    "ramp": _ramp,
}

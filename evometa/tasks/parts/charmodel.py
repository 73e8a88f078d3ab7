"""A small character model, its Adam-like update rule, and honest probabilities.

An embedding per character, one tanh layer over the last few characters, a softmax (Bengio et al. 2003,
"A neural probabilistic language model"), trained by Adam (Kingma and Ba 2015) with decoupled weight decay
(Loshchilov and Hutter 2019). Everything that a candidate sets is documented in `neural.py`.

Probabilities are proper: over the end of word, the characters of the support's alphabet and one UNKNOWN
class they sum to 1. An unknown character then costs a further ln(ESCAPES) nats: a uniform choice among
ESCAPES letters, alike for all candidates and languages, so losses are code lengths that compare.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.tasks.parts.words import BOUNDARY, UNKNOWN

ESCAPES = 256
GROUPS = 8  # examples of a batch share dropout masks within this many groups: random bits are dear on a CPU
SECOND_MOMENT = 0.99  # Adam's beta2: half the memory of the usual 0.999, as runs are only hundreds of steps
TINY = 1e-8


class Sizes(NamedTuple):
    """What sets array shapes: the same for every candidate."""

    classes: int = 64  # end of word, unknown, and up to 62 characters
    context: int = 4  # characters seen
    embedding: int = 8
    hidden: int = 48
    batch: int = 64
    steps: int = 400


def fit(key: Any, candidate: dict[str, Any], support: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Train on support windows; returns weights, what prediction needs, and the training loss.

    A support may hold `phases` instead of windows of its own: the weights go through one after the other, each
    with a fresh optimizer. `controls.py` makes them.
    """
    init_key, order_key, drop_key = jax.random.split(key, 3)
    weights = _initial(init_key, candidate, sizes)
    losses: Any = jnp.zeros(1)
    steps = 0
    phases = support.get("phases", (support,))
    for left, phase in zip(reversed(range(len(phases))), phases, strict=True):
        # The last phase has the keys that a support without phases has.
        order, drop = [jax.random.fold_in(k, left) if left else k for k in (order_key, drop_key)]
        if "update" in phase:
            weights, steps = _update(order, weights, candidate, phase, sizes), steps + len(phase["update"])
        else:
            weights, losses = _train(order, drop, weights, candidate, phase, sizes)
            steps += losses.shape[0]
    return {
        "weights": weights,
        "output": candidate["output"],
        "fade": candidate["fade"],
        "counts": support["counts"],
        "alphabet": support["alphabet"],
        "support_loss": jnp.mean(losses[-max(1, losses.shape[0] // 10) :]),
        "inner_steps": jnp.asarray(float(steps)),
    }


def _train(
    order_key: Any, drop_key: Any, weights: Any, candidate: dict[str, Any], phase: dict[str, Any], sizes: Sizes
) -> tuple[Any, Any]:
    """Adam on one phase's windows, for `sizes.steps` steps or as many as its `schedule` is long: weights, losses."""
    steps = phase["schedule"].shape[0] if "schedule" in phase else sizes.steps
    zeros = jax.tree.map(jnp.zeros_like, weights)
    batches = _batches(order_key, phase, steps, sizes.batch)
    batches["bits"] = jax.random.bits(drop_key, (steps, GROUPS, sizes.hidden + sizes.context), jnp.uint8)
    valid = phase["alphabet"] > 0
    rate = _rates(candidate, phase, sizes)
    momentum = candidate["momentum"]

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        weights, first, second = carry
        # Looked up here, step by step: all batches at once would not fit a core's cache.
        rows = {name: phase[name][batch["order"]] for name in ("context", "target", "rank", "length")}
        batch = {**rows, "noise": batch["bits"].astype(jnp.float32) / 256.0, "number": batch["number"]}
        loss, gradient = jax.value_and_grad(_training_loss)(weights, candidate, batch, valid, sizes)
        first = jax.tree.map(lambda m, g: momentum * m + (1.0 - momentum) * g, first, gradient)
        second = jax.tree.map(lambda v, g: SECOND_MOMENT * v + (1.0 - SECOND_MOMENT) * g * g, second, gradient)
        number = batch["number"] + 1.0
        anneal = (1.0 - batch["number"] / steps) ** candidate["anneal"]
        unbias = 1.0 / (1.0 - momentum**number)
        unbias_second = 1.0 / (1.0 - SECOND_MOMENT**number)

        def move(w: Any, m: Any, v: Any, r: Any) -> Any:
            direction = m * unbias / (jnp.sqrt(v * unbias_second) + TINY)
            return w - anneal * r * (direction + candidate["decay"] * w)

        return (jax.tree.map(move, weights, first, second, rate), first, second), loss

    (weights, _, _), losses = jax.lax.scan(step, (weights, zeros, zeros), batches)
    return weights, losses


def _rates(candidate: dict[str, Any], phase: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Step size of every array: one number each, or one per weight of the hidden layer where the genome is rich."""
    rates = candidate["rate"]
    hidden = rates["hidden"]
    if "rich" in candidate:
        rich, shape = candidate["rich"], (sizes.context * sizes.embedding, sizes.hidden)
        part = np.arange(shape[0] * shape[1]) * rich.shape[0] // (shape[0] * shape[1])
        hidden = hidden * jnp.exp(rich)[part].reshape(shape)
    rate = {
        "embedding": rates["embedding"],
        "hidden": hidden,
        "hidden_bias": rates["hidden"],
        "output": rates["output"],
        "output_bias": rates["output"],
    }
    if "transfer" in candidate:
        rate = {name: r * candidate["transfer"] ** phase["scaled"] for name, r in rate.items()}
    return rate


def _update(key: Any, weights: Any, candidate: dict[str, Any], phase: dict[str, Any], sizes: Sizes) -> Any:
    """Plain gradient steps of size `update`: one on all windows, or one per minibatch where there are several."""
    valid, steps = phase["alphabet"] > 0, len(phase["update"])

    def nats(weights: Any, rows: dict[str, Any]) -> Any:
        logits = _logits(weights, candidate["fade"], rows["context"], None, None, sizes)
        logits = jnp.where(valid[None], logits, -1e9)
        chosen = jnp.take_along_axis(logits, rows["target"][:, None], axis=1)[:, 0]
        return jnp.sum((jax.nn.logsumexp(logits, axis=1) - chosen) * rows["weight"]) / jnp.sum(rows["weight"])

    def step(weights: Any, order: Any) -> tuple[Any, None]:
        rows = {name: phase[name][order] for name in ("context", "target", "weight")}
        gradient = jax.grad(nats)(weights, rows)
        return jax.tree.map(lambda w, g: w - candidate["update"] * g, weights, gradient), None

    if steps == 1:
        return step(weights, jnp.arange(phase["weight"].shape[0]))[0]
    return jax.lax.scan(step, weights, _batches(key, phase, steps, sizes.batch)["order"])[0]


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Nats per character, ends of words counted as characters; `support_loss` is the last tenth of training."""
    del key
    nats = -log_probability(learned, query, sizes) + math.log(ESCAPES) * (query["target"] == UNKNOWN)
    return {
        "loss": jnp.sum(nats * query["weight"]) / jnp.sum(query["weight"]),
        "support_loss": learned["support_loss"],
        "inner_steps": learned["inner_steps"],
    }


def log_probability(learned: dict[str, Any], query: dict[str, Any], sizes: Sizes) -> Any:
    """Log probability of each `target` class after each `context`, at each `position`: `[N]`.

    The softmax, sharpened or flattened by `temperature`, with the end of word shifted by `ending`, mixed
    with the support's own smoothed three-character counts and with a uniform `floor`.
    """
    rule = learned["output"]
    valid = learned["alphabet"] > 0
    target = query["target"]
    logits = _logits(learned["weights"], learned["fade"], query["context"], None, None, sizes) / rule["temperature"]
    early = (query["position"].astype(jnp.float32) - 5.0) / 5.0
    logits = logits.at[:, BOUNDARY].add(rule["ending"] + rule["ending_slope"] * early)
    logits = jnp.where(valid[None], logits, -jnp.inf)
    chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    neural = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=1))
    uniform = 1.0 / jnp.sum(valid)
    counted = _counted(learned["counts"], query["context"], target, rule["concentration"], uniform)
    mixed = (1.0 - rule["counts"]) * neural + rule["counts"] * counted
    return jnp.log((1.0 - rule["floor"]) * mixed + rule["floor"] * uniform)


def _counted(counts: Any, context: Any, target: Any, concentration: Any, uniform: Any) -> Any:
    """Counts after two, one and no characters, each smoothed by the next (Dirichlet, MacKay and Peto 1995)."""
    near, far = context[:, -1], context[:, -2]
    base = (counts["one"][target] + concentration * uniform) / (jnp.sum(counts["one"]) + concentration)
    after_one = (counts["two"][near, target] + concentration * base) / (counts["after_one"][near] + concentration)
    after_two = counts["three"][far, near, target] + concentration * after_one
    return after_two / (counts["after_two"][far, near] + concentration)


def _initial(key: Any, candidate: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    inputs = sizes.context * sizes.embedding
    shapes = {
        "embedding": (sizes.classes, sizes.embedding),
        "hidden": (inputs, sizes.hidden),
        "output": (sizes.hidden, sizes.classes),
    }
    scale = candidate["scale"]
    scales = {"embedding": 1.0, "hidden": scale["hidden"] / inputs**0.5, "output": scale["output"] / sizes.hidden**0.5}
    keys = jax.random.split(key, len(shapes))
    drawn = {name: scales[name] * jax.random.normal(k, shapes[name]) for k, name in zip(keys, shapes, strict=True)}
    return {**drawn, "hidden_bias": jnp.zeros(sizes.hidden), "output_bias": jnp.zeros(sizes.classes)}


def _batches(key: Any, support: dict[str, Any], steps: int, batch: int) -> dict[str, Any]:
    """Minibatches of `batch` rows for all steps: the windows in one random order, gone through again and again."""
    rows = support["weight"].shape[0]
    # Padding sorts to the end and is never reached.
    luck = jnp.where(support["weight"] > 0, jax.random.uniform(key, (rows,)), 2.0)
    filled = jnp.sum(support["weight"]).astype(jnp.int32)
    order = jnp.argsort(luck)[jnp.arange(steps * batch) % filled].reshape(steps, batch)
    return {"order": order, "number": jnp.arange(float(steps))}


def _training_loss(weights: Any, candidate: Any, batch: Any, valid: Any, sizes: Sizes) -> Any:
    drop, noise = candidate["dropout"], batch["noise"]
    keep_hidden = _keep(noise[:, : sizes.hidden], drop["hidden"])
    keep_context = _keep(noise[:, sizes.hidden :], drop["context"])
    logits = _logits(weights, candidate["fade"], batch["context"], keep_hidden, keep_context, sizes)
    logits = jnp.where(valid[None], logits, -1e9)
    total = jax.nn.logsumexp(logits, axis=1)
    hit = total - jnp.take_along_axis(logits, batch["target"][:, None], axis=1)[:, 0]
    spread = total - jnp.sum(jnp.where(valid[None], logits, 0.0), axis=1) / jnp.sum(valid)
    nats = (1.0 - candidate["smoothing"]) * hit + candidate["smoothing"] * spread
    # Which support words matter more: the rarer (tilt.rank > 0), the longer (tilt.length > 0).
    tilt = candidate["tilt"]
    log_importance = tilt["rank"] * jnp.log(batch["rank"]) + tilt["length"] * jnp.log(batch["length"])
    importance = jnp.exp(log_importance - jnp.max(log_importance))
    return jnp.sum(importance * nats) / jnp.sum(importance)


def _keep(noise: Any, rate: Any) -> Any:
    """Dropout factors from noise in [0, 1): 0, or what keeps the mean."""
    return jnp.where(noise < 1.0 - rate, 1.0 / (1.0 - rate), 0.0)


def _logits(weights: Any, fade: Any, context: Any, keep_hidden: Any, keep_context: Any, sizes: Sizes) -> Any:
    """Scores `[N, classes]` of contexts `[N, context]`; `keep_*` are dropout masks per group, None when judging."""
    distance = jnp.arange(sizes.context - 1, -1, -1, dtype=jnp.float32)
    inputs = weights["embedding"][context] * (fade**distance)[None, :, None]
    if keep_context is not None:
        inputs = inputs.reshape(GROUPS, -1, sizes.context, sizes.embedding) * keep_context[:, None, :, None]
    inputs = inputs.reshape(-1, sizes.context * sizes.embedding)
    hidden = jnp.tanh(inputs @ weights["hidden"] + weights["hidden_bias"][None])
    if keep_hidden is not None:
        hidden = (hidden.reshape(GROUPS, -1, sizes.hidden) * keep_hidden[:, None]).reshape(-1, sizes.hidden)
    return hidden @ weights["output"] + weights["output_bias"][None]

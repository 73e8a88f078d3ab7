"""The network of `local_rule`, and what learns without labels but is no neuron-local rule: references for a search.

Each is a `fit` of that task: from unlabelled examples to the `weights` of a network of no biases.

* `sanger`: Sanger 1989 ("Optimal unsupervised learning in a single-layer linear feedforward neural network"). Neurons
  have an order, and each sees what those before it have not explained. Local but for that order, which the vocabulary
  of plasticity does not have.
* `autoencoder`: the same layers and a linear map from the last one back to the inputs, trained by Adam on the squared
  error of reconstruction. Uses gradients through all layers.
* `pca`: as many principal components as the last layer is wide, in closed form. `raw`: the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from evometa.space import Candidate
from evometa.tasks.parts.unlabelled import NONLINEARITIES

FACTOR = 0.01  # of the rate, as known rules bring it along


def beginning(key: Any, support: Mapping[str, Any], batch: int) -> tuple[tuple[Any, ...], Any]:
    """First weights, a `[outputs, inputs]` for each layer, and which examples each step shows, `[steps, batch]`."""
    examples, layers, steps = support["x"], support["layers"], support["steps"].shape[0]
    first_key, order_key = jax.random.split(key)
    widths = (examples.shape[1], *(layer.shape[0] for layer in layers))
    weights = tuple(
        jax.random.normal(jax.random.fold_in(first_key, number), (there, here)) / here**0.5
        for number, (here, there) in enumerate(zip(widths[:-1], widths[1:], strict=True))
    )
    return weights, jax.random.randint(order_key, (steps, batch), 0, examples.shape[0])


def forward(weights: Any, form: Any, x: Any) -> list[Any]:
    """Activities `[N, width]` of every layer, inputs first; `form`: number of the nonlinearity."""
    functions = [_FUNCTIONS[name] for name in NONLINEARITIES]
    activities = [x]
    for w in weights:
        activities.append(jax.lax.switch(form, functions, activities[-1] @ w.T))
    return activities


_FUNCTIONS: dict[str, Any] = {
    "tanh": jnp.tanh,
    "relu": lambda z: jnp.maximum(z, 0.0),
    "linear": lambda z: z,
    "abs": jnp.abs,
    "softsign": lambda z: z / (1.0 + jnp.abs(z)),
}


def length(w: Any) -> Any:
    """Euclidean length of each neuron's weights, `[outputs, 1]`."""
    return jnp.sqrt(jnp.sum(w * w, axis=1, keepdims=True) + 1e-12)


def sanger(key: Any, candidate: Candidate, support: Mapping[str, Any], *, batch: int) -> dict[str, Any]:
    """w_i += 0.01 rate y_i (x - sum over k <= i of y_k w_k), y the activities, in every layer; then homeostasis."""
    weights, order = beginning(key, support, batch)
    lengths = [length(w) for w in weights]

    def step(weights: Any, rows: Any) -> tuple[Any, None]:
        activities = forward(weights, support["nonlinearity"], support["x"][rows])
        after = []
        for number, w in enumerate(weights):
            pre, post = activities[number], activities[number + 1]
            # Means over the batch of y_i x, and of y_i y_k for k <= i.
            together = jnp.tril(post.T @ post / batch)
            w = w + candidate["rate"] * FACTOR * (post.T @ pre / batch - together @ w)
            after.append(w * (lengths[number] / length(w)) ** candidate["homeostasis"])
        return tuple(after), None

    weights, _ = jax.lax.scan(step, weights, order)
    return _learned(weights, support["nonlinearity"], order.shape[0])


def autoencoder(key: Any, candidate: Candidate, support: Mapping[str, Any], *, batch: int) -> dict[str, Any]:
    """Reconstruction by a linear decoder, untied; Adam at 0.01 rate."""
    import optax

    weights, order = beginning(key, support, batch)
    examples, width = support["x"], weights[-1].shape[0]
    decoder = jax.random.normal(jax.random.fold_in(key, 2), (width, examples.shape[1])) / width**0.5
    optimizer = optax.scale_by_adam()

    def wrong(both: Any, x: Any) -> Any:
        weights, decoder = both
        return jnp.mean((forward(weights, support["nonlinearity"], x)[-1] @ decoder - x) ** 2)

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        both, state = carry
        moves, state = optimizer.update(jax.grad(wrong)(both, examples[rows]), state)
        return (jax.tree.map(lambda w, m: w - candidate["rate"] * FACTOR * m, both, moves), state), None

    both = (weights, decoder)
    ((weights, _), _), _ = jax.lax.scan(step, (both, optimizer.init(both)), order)
    return _learned(weights, support["nonlinearity"], order.shape[0])


def pca(key: Any, candidate: Candidate, support: Mapping[str, Any]) -> dict[str, Any]:
    """Principal components of the examples."""
    del key, candidate
    x = support["x"]
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    width = min(support["layers"][-1].shape[0], x.shape[1])
    _, vectors = jnp.linalg.eigh(centred.T @ centred / x.shape[0])  # smallest first
    return _learned((vectors[:, -width:].T,), NONLINEARITIES.index("linear"), 0)


def raw(key: Any, candidate: Candidate, support: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs."""
    del key, candidate
    return _learned((jnp.eye(support["x"].shape[1]),), NONLINEARITIES.index("linear"), 0)


REFERENCES: dict[str, Callable[..., dict[str, Any]]] = {
    "pca": pca, "raw": raw, "sanger": sanger, "autoencoder": autoencoder,
}  # fmt: skip


def _learned(weights: tuple[Any, ...], form: Any, steps: int) -> dict[str, Any]:
    return {
        "weights": weights,
        "nonlinearity": jnp.asarray(form, jnp.int32),
        "inner_steps": jnp.asarray(float(steps)),
        "refused": jnp.asarray(False),
    }

"""A network of fully connected layers whose weights are one flat vector, so that an update rule sees one array.

The layers of a rule are the network's arrays in their order: weights and biases of the first layer, of the second,
and so on. What the network is like arrives as data: `support["scales"]` holds, layer by layer, the standard
deviations of its units' initial weights, and so says how wide each is; `support["activation"]` which function the
hidden units have; `support["pace"]` factors of the steps (see `recipe`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = ("tanh", "relu", "gelu")
BASE_WIDTH = 32  # muP: at this width nothing changes
SOLVED = 0.01  # of the trivial loss: what a loss is softly bounded by from below
WORST = 100.0  # times the trivial loss: what a loss is cut at


class Network(NamedTuple):
    """Static sizes: `units[0]` inputs, then the units of each layer."""

    units: tuple[int, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the arrays: weights `[inputs, units]` and biases `[units]`, layer by layer."""
        return [shape for a, b in zip(self.units, self.units[1:], strict=False) for shape in ((a, b), (b,))]

    @property
    def layers(self) -> tuple[int, ...]:
        """How many numbers each array has."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def fan_in(self) -> np.ndarray:
        """Inputs of a unit, for each array `[layers]` float32; those of its units for a bias."""
        return np.repeat(np.array(self.units[:-1], np.float32), 2)

    def arrays(self, flat: Any) -> list[Any]:
        """The arrays of a flat vector `[N]`."""
        ends = np.cumsum(self.layers)
        return [flat[end - n : end].reshape(s) for s, n, end in zip(self.shapes, self.layers, ends, strict=True)]

    def start(self, key: Any, scales: Sequence[Any]) -> Any:
        """Initial weights `[N]`: normal, times the scale of each unit `[units]`; biases zero."""
        parts = []
        for number, (fan, scale) in enumerate(zip(self.units, scales, strict=False)):
            luck = jax.random.normal(jax.random.fold_in(key, number), (fan, scale.shape[0]))
            parts += [(luck * scale[None, :]).reshape(-1), jnp.zeros(scale.shape[0])]
        return jnp.concatenate(parts)

    def outputs(self, flat: Any, x: Any, activation: Any) -> Any:
        """Outputs `[n, units of the last layer]` on inputs x `[n, inputs]`; `activation`: index of `ACTIVATIONS`."""
        arrays = self.arrays(flat)
        for number in range(0, len(arrays), 2):
            x = x @ arrays[number] + arrays[number + 1][None, :]
            if number < len(arrays) - 2:
                x = jnp.where(activation == 0, jnp.tanh(x), jnp.where(activation == 1, jax.nn.relu(x), jax.nn.gelu(x)))
        return x


def network(support: dict[str, Any]) -> Network:
    """The network that a support describes."""
    return Network((support["x"].shape[-1], *(scale.shape[-1] for scale in support["scales"])))


def recipe(units: Sequence[int], activation: str, mup: bool) -> dict[str, Any]:
    """`activation`, `scales` and `pace` of a support for a network of these units, inputs first.

    Initial deviation is gain / sqrt(inputs), gain sqrt(2) for relu and gelu (He et al. 2015) and 1 for tanh and for
    the first layer. `pace` `[arrays]` multiplies steps: all 1; or, with `mup`, those of maximal update
    parametrization for rules whose step does not follow the gradient's size (Yang et al. 2022, arXiv:2203.03466,
    table 8): BASE_WIDTH / inputs for weights behind hidden units, the output's initial deviation times
    sqrt(BASE_WIDTH / inputs).
    """
    gain = 1.0 if activation == "tanh" else math.sqrt(2.0)
    scales, pace, last = [], [], len(units) - 2
    for number, (fan, width) in enumerate(zip(units, units[1:], strict=False)):
        wide = BASE_WIDTH / fan if mup and number else 1.0
        deviation = (gain if number else 1.0) / math.sqrt(fan) * (math.sqrt(wide) if number == last else 1.0)
        scales.append(np.full(width, deviation, np.float32))
        pace += [wide, 1.0]
    return {
        "activation": np.asarray(ACTIVATIONS.index(activation), np.int32),
        "scales": tuple(scales),
        "pace": np.array(pace, np.float32),
    }


def loss(outputs: Any, y: Any, classes: Any) -> Any:
    """Cross-entropy in nats for one-hot y `[n, C]`, mean squared error for numbers."""
    entropy = -jnp.mean(jnp.sum(y * jax.nn.log_softmax(outputs), axis=1))
    return jnp.where(classes, entropy, jnp.mean((outputs - y) ** 2))


def score(value: Any, trivial: Any) -> Any:
    """log10((value / trivial + 0.01) / 1.01), in -2 .. 2: decades below what a constant answer loses.

    A loss of 1/100 of the trivial one counts as solved, softly; 100 times it, or no number at all, is the worst.
    """
    ratio = jnp.where(jnp.isfinite(value), jnp.clip(value / trivial, 0.0, WORST), WORST)
    return jnp.log10((ratio + SOLVED) / (1.0 + SOLVED))

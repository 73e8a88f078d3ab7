"""What learns without labels and is no local rule: Sanger's rule and an autoencoder, against NumPy and theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.tasks.local_rule import forward, local_rule
from evometa.tasks.parts import unlabelled
from evometa.tasks.parts.unsupervised import REFERENCES, beginning, sanger


def cloud(features=5, count=300):
    """Points whose variance falls from axis to axis, then turned; and the axes, `[features, features]`."""
    luck = np.random.default_rng(3)
    turn = np.linalg.qr(luck.standard_normal((features, features)))[0]
    return (luck.standard_normal((count, features)) * 0.5 ** np.arange(features)) @ turn, turn


def support(x, widths, steps, nonlinearity="linear"):
    return {
        "x": jnp.asarray(x, jnp.float32),
        "layers": tuple(jnp.zeros(width) for width in widths),
        "steps": jnp.zeros(steps),
        "nonlinearity": jnp.int32(unlabelled.NONLINEARITIES.index(nonlinearity)),
    }


def fitted(rule, data, batch, **candidate):
    numbers = {name: jnp.float32(value) for name, value in candidate.items()}
    return jax.jit(lambda key: local_rule(rule=rule, batch=batch).fit(key, numbers, data))(jax.random.key(1))


def test_sangers_neurons_are_the_components_in_their_order():
    x, axes = cloud()
    (weights,) = fitted("sanger", support(x, (3,), 6000), 8, rate=2.0, homeostasis=0.0)["weights"]
    lengths = np.linalg.norm(weights, axis=1)
    alike = np.abs(weights / lengths[:, None] @ axes.T)
    assert np.allclose(lengths, 1.0, atol=0.15) and (np.diagonal(alike)[:3] > 0.95).all(), alike


def test_sangers_rule_by_hand():
    """Neuron by neuron through two layers of tanh, with homeostasis."""
    x, _ = cloud()
    data, rate, back = support(x, (4, 2), 5, "tanh"), 3.0, 0.3
    found = fitted("sanger", data, 2, rate=rate, homeostasis=back)["weights"]
    first, order = beginning(jax.random.key(1), data, 2)
    weights, lengths = [np.asarray(w, float) for w in first], [np.linalg.norm(w, axis=1) for w in first]
    for rows in np.asarray(order):
        layers = [x[rows]]
        for w in weights:
            layers.append(np.tanh(layers[-1] @ w.T))
        for number, w in enumerate(weights):
            change = np.zeros_like(w)
            for pre, post in zip(layers[number], layers[number + 1], strict=True):
                explained = np.zeros(len(pre))
                for i in range(len(post)):
                    explained = explained + post[i] * w[i]
                    change[i] += post[i] * (pre - explained) / 2
            w = w + 0.01 * rate * change
            weights[number] = w * ((lengths[number] / np.linalg.norm(w, axis=1)) ** back)[:, None]
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_an_autoencoder_finds_the_leading_plane():
    """A linear one spans the principal components (Baldi and Hornik 1989)."""
    x, axes = cloud()
    (weights,) = fitted("autoencoder", support(x, (2,), 3000), 16, rate=0.5)["weights"]
    plane = np.linalg.qr(np.asarray(weights).T)[0]
    assert np.linalg.svd(axes[:2] @ plane)[1].min() > 0.98
    assert [column.name for column in local_rule(rule="autoencoder").space.columns] == ["rate"]


@pytest.mark.parametrize("rule", REFERENCES)
def test_references_judge_like_rules(rule):
    """A reference goes through the same probe, has the shapes of its world, and beats a guess on wine."""
    task = local_rule(rule=rule, steps=200)
    data, query = (
        jax.tree.map(jnp.asarray, part())
        for part in (task.domain("wine").support, task.domain("wine").queries["probe"])
    )
    numbers = {name: jnp.float32(value) for name, value in task.baseline.items()}

    @jax.jit
    def both(key):
        made = task.fit(key, numbers, data)
        return made, task.judge(key, made, query)

    made, judged = both(jax.random.key(0))
    assert float(judged["loss"]) < 0.9 and not bool(made["refused"])
    assert np.isfinite(forward(made["weights"], made["nonlinearity"], data["x"])[-1]).all()


def test_one_pass_updates_all_layers():
    """The second layer learns from what the first sent before it changed."""
    x, _ = cloud()
    data = support(x, (4, 2), 1, "tanh")
    (one, two), order = beginning(jax.random.key(0), data, 1)
    made = jax.jit(lambda key: sanger(key, {"rate": 5.0, "homeostasis": 0.0}, data, batch=1))(jax.random.key(0))
    pre = np.tanh(x[np.asarray(order)[0]] @ np.asarray(one).T)
    post = np.tanh(pre @ np.asarray(two).T)[0]
    wanted = np.stack([post[i] * (pre[0] - sum(post[k] * np.asarray(two)[k] for k in range(i + 1))) for i in range(2)])
    np.testing.assert_allclose(made["weights"][1] - two, 0.05 * wanted, atol=1e-6)

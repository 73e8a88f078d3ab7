"""Learning without labels by a neuron-local rule that is searched as a program; judged by a few-shot linear probe.

Source: the question of Metz, Maheswaranathan, Cheung and Sohl-Dickstein 2019 ("Meta-learning update rules for
unsupervised representation learning", arXiv 1804.00222), in a small form. A network sees unlabelled examples.
Every connection changes by what the program `rule` (vocabulary `plasticity`) makes of its weight, the activities at
both of its ends and what the receiving layer says back; one program serves all connections of all layers. There is no
gradient, no label and no other learning. Then a ridge regression in closed form is fitted to the hidden features of
thirty labelled examples, and judged on others.

Loss: the share of the labels' variance that the probe leaves unexplained: squared error of its one-hot predictions over
that of the class shares, mean over draws of shots. 1 is chance, and a probe that is fitted to noise can exceed it.
Metric `error`: share of wrong answers; `diverged`: 1 where activities left float32, which counts as features that say
nothing, loss 1. Worlds (domains) and what is shifted in the sealed ones: `parts/unlabelled.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from evometa.contract import Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Code, Program, assemble
from evometa.programs.interpret import Machine, Ready, prepare
from evometa.programs.known import KNOWN, known
from evometa.programs.vocabularies import PLASTICITY
from evometa.programs.vocabulary import Vocabulary
from evometa.space import Candidate, Space, log, program, real
from evometa.tasks.parts.unlabelled import TEST, TRAIN, VALIDATION, domain
from evometa.tasks.parts.unsupervised import REFERENCES, beginning, forward, length

RIDGE = 0.3  # of the probe, per mean variance of a feature: the best of 0.03, 0.1, 0.3, 1 for random features
INPUTS = ("w", "pre", "post", "back", "modulator", "fan_in")
RIVALS = ("hebb", "oja", "subspace", "bcm")  # known rules that a search is compared with

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"steps": 20}, "generations": 2, "population": 8, "strategy": "linear_gp"},
    "standard": {"task": {}, "generations": 30, "population": 64, "strategy": "linear_gp"},
    "full": {"task": {}, "generations": 150, "population": 128, "strategy": "linear_gp"},
}


def local_rule(
    *, rule: str = "", start: str = "", steps: int = 400, batch: int = 1, vocabulary: str | Vocabulary = "plasticity"
) -> Task:
    """A neuron-local learning rule as a task.

    `rule`: "" searches the program; the name of a known rule (programs/known.py: "hebb", "oja", "subspace" ...) holds
    it, so that two numbers are searched; "sanger", "autoencoder", "pca" and "raw" are references that no such rule can
    be (parts/unsupervised.py). `start`: the known rule that the
    baseline holds; "" is the empty rule, which changes nothing: random features. `steps`, `batch`: inner training; a
    step shows `batch` examples.
    `vocabulary`: what programs may read and do; they can read `INPUTS` and write `change`.
    Raises `ConfigError` for unknown names, sizes below 1, and a vocabulary that does not fit.
    """
    _check(rule, start, steps, batch)
    column = program(vocabulary)
    words = column.vocabulary
    assert words is not None
    words.require("local_rule", INPUTS, ("change",))
    columns: dict[str, Any] = {
        "rate": log(1e-3, 1e2),  # what the rule's change is multiplied by; known rules bring a factor 0.01 of their own
        # How far back to its first length a neuron's weight vector is taken at every step, in the logarithm.
        "homeostasis": real(0.0, 1.0),
    }
    baseline: Candidate = {"rate": 1.0, "homeostasis": 0.0}
    fit: Any = partial(learn, batch=batch, vocabulary=words)
    if rule in REFERENCES:
        fit = REFERENCES[rule] if rule in ("pca", "raw") else partial(REFERENCES[rule], batch=batch)
        if rule == "autoencoder":  # its rate alone
            columns, baseline = {"rate": columns["rate"]}, {"rate": 1.0}
    elif rule:
        fit = partial(fit, rule=known_rule(words, rule))
    else:
        columns = {"rule": column, **columns}
        baseline = {"rule": known_rule(words, start) if start else empty_rule(words), **baseline}
    return Task(
        name="local_rule",
        space=Space(columns),
        domains=tuple(domain(name, steps) for name in (*TRAIN, *VALIDATION, *TEST)),
        fit=fit,
        judge=judge,
        objective=Objective(query="probe", reduction="mean"),
        baseline=baseline,
        split=Split(train=tuple(TRAIN), validation=tuple(VALIDATION), test=tuple(TEST)),
        controls={} if rule else {name: {"rule": name} for name in (*RIVALS, *REFERENCES)},
        source=__name__,
    )


def empty_rule(vocabulary: Vocabulary = PLASTICITY) -> Code:
    """The rule that changes nothing."""
    return assemble(Program(vocabulary, (), (), ()))


def known_rule(vocabulary: Vocabulary, name: str) -> Code:
    """A known rule as arrays. Raises `NotFound` for another name."""
    return assemble(known(vocabulary, name))


# --- the learner -------------------------------------------------------------------------------------


def learn(
    key: Any,
    candidate: Candidate,
    support: Mapping[str, Any],
    *,
    batch: int,
    vocabulary: Vocabulary,
    rule: Code | None = None,
) -> Any:
    """Change random weights by a rule, on examples `x` `[N, F]`; `rule` where the candidate holds none.

    Returns `weights`, a tuple of `[outputs, inputs]`, `nonlinearity`, `inner_steps`, and whether the rule is `refused`.
    """
    examples, layers, steps = support["x"], support["layers"], support["steps"].shape[0]
    weights, order = beginning(key, support, batch)
    widths = (examples.shape[1], *(layer.shape[0] for layer in layers))
    ready = prepare(vocabulary, candidate["rule"] if rule is None else rule)
    numbers = {name: jnp.asarray(candidate[name], jnp.float32) for name in ("rate", "homeostasis")}
    weights = _trainer(vocabulary, widths, batch)(ready, numbers, weights, examples, order, support["nonlinearity"])
    return {
        "weights": weights,
        "nonlinearity": support["nonlinearity"],
        "inner_steps": jnp.asarray(float(steps)),
        "refused": ready.refused,
    }


@lru_cache(maxsize=64)
def _trainer(vocabulary: Vocabulary, widths: tuple[int, ...], batch: int) -> Any:
    # One by one: a training's registers then stay in a core's cache, and its branches are true ones.
    return jax.jit(sequential_vmap(partial(_train, vocabulary, widths, batch)))


def _train(
    vocabulary: Vocabulary,
    widths: tuple[int, ...],
    batch: int,
    ready: Ready,
    numbers: Any,
    weights: Any,
    examples: Any,
    order: Any,
    form: Any,
) -> Any:
    shapes = [(there, here) for here, there in zip(widths[:-1], widths[1:], strict=True)]
    # An element is a connection under one example, a layer of the machine one receiving neuron under one example.
    machines = [Machine(vocabulary, (here,) * (batch * there)) for there, here in shapes]
    lengths = [length(w) for w in weights]
    count = order.shape[0]

    def shared(memory: Any, shape: tuple[int, int]) -> Any:
        """Memory `[memory, outputs, inputs]` as each example's own, `[memory, N]`."""
        wide = jnp.broadcast_to(memory[:, None], (memory.shape[0], batch, *shape))
        return wide.reshape(memory.shape[0], batch * shape[0] * shape[1])

    def step(carry: Any, now: Any) -> tuple[Any, None]:
        weights, memories = carry
        rows, left = now
        activities = forward(weights, form, examples[rows])
        after, kept = [], []
        for number, (machine, shape) in enumerate(zip(machines, shapes, strict=True)):
            w, memory = weights[number], memories[number]
            pre, post = activities[number], activities[number + 1]
            full = (batch, *shape)
            inputs = {
                "w": jnp.broadcast_to(w[None], full).reshape(-1),
                "pre": jnp.broadcast_to(pre[:, None, :], full).reshape(-1),
                "post": jnp.broadcast_to(post[:, :, None], full).reshape(-1),
                "back": jnp.broadcast_to((post @ w)[:, None, :], full).reshape(-1),
                "modulator": left,
                "fan_in": jnp.float32(shape[1]),
            }
            outputs, memory = machine.step(ready, shared(memory, shape), inputs)
            change = jnp.mean(outputs["change"].reshape(full), axis=0)
            # A connection has one memory: what the examples of a batch made of it is averaged, as the change is.
            kept.append(jnp.mean(memory.reshape(memory.shape[0], *full), axis=1))
            w = w + numbers["rate"] * change
            after.append(w * (lengths[number] / length(w)) ** numbers["homeostasis"])
        return (tuple(after), tuple(kept)), None

    memories = tuple(
        jnp.mean(
            machine.start(ready, {"fan_in": jnp.float32(shape[1])}).reshape(len(vocabulary.memory), batch, *shape),
            axis=1,
        )
        for machine, shape in zip(machines, shapes, strict=True)
    )
    left = 1.0 - jnp.arange(count, dtype=jnp.float32) / count
    (weights, _), _ = jax.lax.scan(step, (weights, memories), (order, left))
    return weights


# --- the probe ---------------------------------------------------------------------------------------


def judge(key: Any, learned: Mapping[str, Any], query: Mapping[str, Any]) -> dict[str, Any]:
    """Few-shot ridge regression on the last layer's activities: `loss` and `error`, see the top of this module."""
    del key
    features = forward(learned["weights"], learned["nonlinearity"], query["x"])[-1]
    # A rule that diverges in some world loses there; what is no rule at all fails.
    diverged = ~jnp.all(jnp.isfinite(features))
    features = jnp.where(diverged, 0.0, features)
    loss, error = jax.vmap(partial(probe, features, query["target"]))(query["shots"], query["rest"])
    return {
        "loss": jnp.where(learned["refused"], jnp.nan, jnp.mean(loss)),
        "error": jnp.mean(error),
        "diverged": diverged.astype(jnp.float32),
        "inner_steps": learned["inner_steps"],
    }


def probe(features: Any, target: Any, shots: Any, rest: Any) -> tuple[Any, Any]:
    """Loss and error on the rows `rest` of a ridge regression fitted to the rows `shots`.

    `features` `[N, H]`, `target` `[N, C]` one-hot. The ridge is RIDGE times the mean variance of a feature, so the
    features' scale does not matter.
    """
    # To a size near 1 first: squares of small or large activities would leave float32.
    features = features / (jnp.max(jnp.abs(features)) + 1e-30)
    seen, wanted = features[shots], target[shots]
    middle, shares = jnp.mean(seen, axis=0, keepdims=True), jnp.mean(wanted, axis=0, keepdims=True)
    seen = seen - middle
    second = seen.T @ seen / shots.shape[0]
    strength = RIDGE * jnp.trace(second) / second.shape[0] + 1e-9
    cross = seen.T @ (wanted - shares) / shots.shape[0]
    slope = jax.scipy.linalg.solve(second + strength * jnp.eye(second.shape[0]), cross, assume_a="pos")
    said, truth = (features[rest] - middle) @ slope + shares, target[rest]
    wrong = (jnp.argmax(said, axis=1) != jnp.argmax(truth, axis=1)).astype(jnp.float32)
    return jnp.sum((said - truth) ** 2) / jnp.sum((shares - truth) ** 2), jnp.mean(wrong)


def _check(rule: Any, start: Any, steps: Any, batch: Any) -> None:
    rules = tuple(KNOWN["plasticity"])
    for label, value, names in (("rule", rule, (*rules, *REFERENCES)), ("start", start, rules)):
        if value and value not in names:
            raise ConfigError(
                f"local_rule: expected {label} out of {', '.join(names)}, or none, got {value!r}."
                f"{did_you_mean(str(value), names)}"
            )
    if rule and start:
        raise ConfigError(
            f"local_rule: expected rule or start, got both ({rule!r}, {start!r}): a held rule has no start"
        )
    for label, number in (("steps", steps), ("batch", batch)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"local_rule: expected {label} as a whole number >= 1, got {number!r}")

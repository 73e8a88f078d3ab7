"""Neuron-local rules: the inner loop by hand, the probe by another library, rules whose outcome is known, sealed worlds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli

from evometa.archives.read import Archive
from evometa.errors import ConfigError
from evometa.programs.code import Code, Instruction, Program, assemble
from evometa.programs.vocabularies import OPTIMIZER, PLASTICITY
from evometa.programs.vocabulary import Register, Vocabulary
from evometa.study_plan import plan
from evometa.tasks import local_rule as module
from evometa.tasks.local_rule import empty_rule, forward, learn, local_rule, probe
from evometa.tasks.parts import unlabelled

pytest_plugins = ["shared"]

NOISE = np.array([0.5, 0.1, 0, 0, 0, 0], np.float32)


def rule(*lines, constants=NOISE):
    """A rule from lines such as `"x mul post w"`."""
    made = []
    for line in lines:
        place, operation, *operands = line.split()
        numbers = tuple(PLASTICITY.number(name) for name in operands)
        made.append(Instruction(PLASTICITY.operation(operation), PLASTICITY.number(place), numbers))
    return assemble(Program(PLASTICITY, (), tuple(made), tuple(float(c) for c in constants)))


HEBB = rule("change mul post pre")
OJA = rule("x mul post w", "x sub pre x", "change mul post x")
SUBSPACE = rule("x sub pre back", "change mul post x")
# Reads everything, remembers, and reduces over the inputs of a neuron.
BUSY = rule(
    "trace lerp trace post c1", "x sub post trace", "y mul x pre", "y mul y modulator", "z div back fan_in",
    "z mul z pre", "l layer_mean w", "y sub y z", "y sub y l", "change add change y",
)  # fmt: skip


def candidate(code, rate=0.05, homeostasis=0.0):
    return {"rule": code, "rate": np.float32(rate), "homeostasis": np.float32(homeostasis)}


def support(x, widths=(4,), steps=30, nonlinearity="tanh"):
    return {
        "x": jnp.asarray(x, jnp.float32),
        "layers": tuple(jnp.zeros(width) for width in widths),
        "steps": jnp.zeros(steps),
        "nonlinearity": jnp.int32(unlabelled.NONLINEARITIES.index(nonlinearity)),
    }


def learned(code, data, key=0, batch=1, **numbers):
    made = learn(jax.random.key(key), candidate(code, **numbers), data, batch=batch, vocabulary=PLASTICITY)
    return [np.asarray(w) for w in made["weights"]]


@cache
def cloud(features=6, count=200):
    """Points whose variance falls from axis to axis, then turned."""
    luck = np.random.default_rng(3)
    turn = np.linalg.qr(luck.standard_normal((features, features)))[0]
    return (luck.standard_normal((count, features)) * 0.6 ** np.arange(features) * 2.0) @ turn


# --- the inner loop ----------------------------------------------------------------------------------


def by_hand(data, key, batch, rate, homeostasis):
    """BUSY with NumPy, connection by connection of two layers."""
    x, steps = np.asarray(data["x"], np.float64), data["steps"].shape[0]
    widths = (x.shape[1], *(layer.shape[0] for layer in data["layers"]))
    first_key, order_key = jax.random.split(jax.random.key(key))
    weights = [
        np.asarray(jax.random.normal(jax.random.fold_in(first_key, i), (widths[i + 1], widths[i])), np.float64)
        / widths[i] ** 0.5
        for i in range(len(widths) - 1)
    ]
    order = np.asarray(jax.random.randint(order_key, (steps, batch), 0, len(x)))
    traces = [np.zeros(w.shape) for w in weights]
    lengths = [np.linalg.norm(w, axis=1, keepdims=True) for w in weights]
    for step in range(steps):
        acts = [x[order[step]]]
        for w in weights:
            acts.append(np.tanh(acts[-1] @ w.T))
        for n, w in enumerate(weights):
            changes, remembered = np.zeros((batch, *w.shape)), np.zeros((batch, *w.shape))
            for b, j, i in np.ndindex(batch, *w.shape):
                pre, post = acts[n][b, i], acts[n + 1][b, j]
                back = sum(acts[n + 1][b, k] * w[k, i] for k in range(w.shape[0]))
                trace = traces[n][j, i] + (post - traces[n][j, i]) * 0.1
                remembered[b, j, i] = trace
                modulated = (post - trace) * pre * (1.0 - step / steps)
                changes[b, j, i] = modulated - back / w.shape[1] * pre - w[j].mean()
            moved = w + rate * changes.mean(0)
            traces[n] = remembered.mean(0)
            weights[n] = moved * (lengths[n] / np.linalg.norm(moved, axis=1, keepdims=True)) ** homeostasis
    return weights


@pytest.mark.parametrize(("batch", "widths", "homeostasis"), [(1, (4,), 0.0), (3, (4, 2), 0.3)])
def test_a_rule_does_what_it_does_by_hand(batch, widths, homeostasis):
    """Every input, memory kept from step to step, layers, averages over the batch, the length kept."""
    data = support(cloud(), widths)
    expected = by_hand(data, 5, batch, 0.1, homeostasis)
    found = learned(BUSY, data, key=5, batch=batch, rate=0.1, homeostasis=homeostasis)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_the_empty_rule_leaves_random_features():
    data = support(cloud(), (4, 2))
    untouched, same = learned(empty_rule(), data, batch=3), learned(HEBB, data, rate=0.0, batch=3)
    for one, other in zip(untouched, same, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(untouched[0], learned(empty_rule(), data, key=1, batch=3)[0])
    assert not np.array_equal(untouched[0], learned(HEBB, data, batch=3)[0])


def test_homeostasis_keeps_the_length():
    data = support(cloud())
    start, free, kept = (
        np.linalg.norm(learned(HEBB, data, rate=rate, homeostasis=keep)[0], axis=1)
        for rate, keep in ((0.0, 0.0), (0.3, 0.0), (0.3, 1.0))
    )
    np.testing.assert_allclose(kept, start, rtol=1e-4)
    assert (free > 2 * start).all()


def test_principal_components_are_learned():
    """Linear neurons. Oja 1982: each comes to the first eigenvector, at length 1; Oja 1989: together to the subspace."""
    data = support(cloud(), (2,), steps=6000, nonlinearity="linear")
    axes = np.linalg.svd(cloud() - cloud().mean(0))[2]
    first, second = learned(OJA, data, rate=0.004)[0]
    for w in (first, second):
        assert abs(w @ axes[0]) / np.linalg.norm(w) > 0.98 and 0.9 < np.linalg.norm(w) < 1.1
    w = learned(SUBSPACE, data, rate=0.004)[0]
    angles = np.linalg.svd(np.linalg.qr(w.T)[0].T @ axes[:2].T)[1]
    assert angles.min() > 0.98
    assert abs(w[0] @ w[1]) < 0.2 * np.linalg.norm(w[0]) * np.linalg.norm(w[1])


@pytest.mark.parametrize("code", [BUSY, SUBSPACE], ids=["busy", "subspace"])
def test_rules_do_not_know_where_a_channel_is(code):
    """Local rules: channels in another order, initial weights with them, give the same weights in that order."""
    data = support(cloud(), (4,))
    places = np.random.default_rng(0).permutation(6)
    turned = {**data, "x": data["x"][:, places]}
    first_key, order_key = jax.random.split(jax.random.key(0))
    start = jax.random.normal(jax.random.fold_in(first_key, 0), (4, 6)) / 6**0.5
    order = jax.random.randint(order_key, (30, 1), 0, len(data["x"]))
    ready = module.prepare(PLASTICITY, code)
    numbers = {"rate": jnp.float32(0.05), "homeostasis": jnp.float32(0.0)}
    trainer = module._trainer(PLASTICITY, (6, 4), 1)
    one = trainer(ready, numbers, (start,), data["x"], order, data["nonlinearity"])[0]
    other = trainer(ready, numbers, (start[:, places],), turned["x"], order, data["nonlinearity"])[0]
    np.testing.assert_allclose(one[:, places], other, atol=1e-5)


def test_a_population_of_different_rules_is_each_rule_alone():
    """Of tokens that are no program nothing is learned; their neighbours are unharmed."""
    data = support(cloud(), (4,))
    refused = Code(np.full_like(empty_rule().tokens, 999), empty_rule().constants)
    codes = [HEBB, OJA, refused, SUBSPACE, empty_rule(), BUSY]
    stacked = jax.tree.map(lambda *x: np.stack(x), *[candidate(code) for code in codes])
    mapped = jax.jit(
        jax.vmap(lambda c: learn(jax.random.key(2), c, data, batch=1, vocabulary=PLASTICITY)["weights"][0])
    )
    for one, code in zip(mapped(stacked), codes, strict=True):
        np.testing.assert_allclose(one, learned(code, data, key=2)[0], atol=2e-6)
        assert np.isnan(one).all() == (code is refused)


# --- the probe ---------------------------------------------------------------------------------------


def test_the_probe_is_ridge_regression():
    from sklearn.linear_model import Ridge

    luck = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = np.float32(luck.standard_normal((60, 5)) + labels[:, None] * luck.standard_normal(5))
    target = np.float32(np.eye(4)[labels])
    shots, rest = np.arange(24), np.arange(24, 60)
    loss, error = probe(jnp.asarray(features), jnp.asarray(target), shots, rest)
    strength = module.RIDGE * features[shots].var(0).mean() * len(shots)
    said = Ridge(alpha=strength).fit(features[shots], target[shots]).predict(features[rest])
    left = ((said - target[rest]) ** 2).sum() / ((target[shots].mean(0) - target[rest]) ** 2).sum()
    assert float(loss) == pytest.approx(left, rel=1e-4) and 0.05 < left < 0.95
    assert float(error) == pytest.approx((said.argmax(1) != labels[rest]).mean())


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e25])
def test_the_scale_of_features_does_not_matter(scale):
    query = jax.tree.map(jnp.asarray, local_rule().domain("digits_odd").queries["probe"]())
    plain, scaled = (
        probe(query["x"] * jnp.float32(s), query["target"], query["shots"][0], query["rest"][0]) for s in (1.0, scale)
    )
    np.testing.assert_allclose(plain, scaled, rtol=1e-3)


@pytest.mark.parametrize("features", [np.zeros((120, 3)), np.ones((120, 3))])
def test_features_that_say_nothing_are_chance(features):
    query = local_rule().domain("digits_odd").queries["probe"]()
    loss, error = probe(
        jnp.asarray(features, jnp.float32), jnp.asarray(query["target"]), query["shots"][0], query["rest"][0]
    )
    assert float(loss) == pytest.approx(1.0, abs=1e-3) and 0.6 < float(error) < 1.0


# --- the task ----------------------------------------------------------------------------------------


@cache
def compiled(task_options):
    task = local_rule(**dict(task_options))
    return task, jax.jit(jax.vmap(lambda c, s, q: task.judge(None, task.fit(jax.random.key(0), c, s), q), (None, 0, 0)))


def losses(given=None, names=(*unlabelled.TRAIN, *unlabelled.VALIDATION), **task_options):
    """The loss on each of some worlds of equal shapes."""
    task, run = compiled(tuple(task_options.items()))
    domains = [task.domain(name) for name in names]
    data = [(domain.support(), domain.queries["probe"]()) for domain in domains]
    stacked = jax.tree.map(lambda *x: np.stack(x), *data)
    genome = given if isinstance(given, np.ndarray) else task.space.encode(given or task.baseline)
    given = task.space.decode(jnp.asarray(genome))
    return np.asarray(run(given, *stacked)["loss"])


def test_there_is_something_to_learn_and_principal_components_learn_it():
    """Without labels, some features are better than random ones; and a local rule can find them."""
    nothing, subspace, pca = losses(), losses(candidate(SUBSPACE, rate=0.02)), losses(rule="pca")
    assert subspace.mean() < nothing.mean() - 0.04 and pca.mean() < nothing.mean() - 0.04
    assert pca.mean() > 0.2 and nothing.mean() < 0.8
    assert (losses(candidate(HEBB, rate=0.2)) != nothing).all()
    # A rule that diverges loses; what is no rule fails, which evometa says of NaN.
    diverging = rule("change square pre", "change mul change change", "change mul change w", "change mul change w")
    np.testing.assert_allclose(losses(candidate(diverging, rate=100.0)), 1.0, atol=1e-6)
    refused = local_rule().space.encode(local_rule().baseline)
    refused[: 5 * PLASTICITY.length] = 999  # as a genome: a space encodes no such thing
    assert np.isnan(losses(refused)).all()


def test_known_rules_are_the_rules():
    data = support(cloud(), (4,))
    for name, code in (("hebb", HEBB), ("oja", OJA), ("subspace", SUBSPACE)):
        held = local_rule(rule=name)
        assert [column.name for column in held.space.columns] == ["rate", "homeostasis"]
        numbers = {"rate": np.float32(5.0), "homeostasis": np.float32(0.1)}  # 0.01 in the rule
        found = held.fit(jax.random.key(1), numbers, data)["weights"][0]
        np.testing.assert_allclose(found, learned(code, data, key=1, homeostasis=0.1)[0], atol=1e-6)
        begun = local_rule(start=name)
        np.testing.assert_array_equal(begun.baseline["rule"].tokens, held.fit.keywords["rule"].tokens)


def test_the_references_learn_in_closed_form():
    x = cloud()
    made = local_rule(rule="pca").fit(None, {}, support(x, (2,), nonlinearity="relu"))
    features = np.asarray(forward(made["weights"], made["nonlinearity"], jnp.asarray(x, jnp.float32))[-1])
    plane = np.linalg.svd(x - x.mean(0))[2][:2]
    np.testing.assert_allclose(features @ features.T, x @ plane.T @ plane @ x.T, atol=1e-3)
    made = local_rule(rule="raw").fit(None, {}, support(x, (2,)))
    np.testing.assert_allclose(forward(made["weights"], made["nonlinearity"], jnp.asarray(x))[-1], x, rtol=1e-6)


def test_the_controls_are_other_rules():
    controls = local_rule().controls
    assert set(controls) == {"hebb", "oja", "subspace", "bcm", "pca", "raw", "sanger", "autoencoder"}
    assert all(local_rule(**options).name == "local_rule" for options in controls.values())


def test_nonlinearities():
    x = np.linspace(-2, 2, 9)
    by_name = {"tanh": np.tanh(x), "relu": np.maximum(x, 0), "linear": x, "abs": abs(x), "softsign": x / (1 + abs(x))}
    assert set(by_name) == set(unlabelled.NONLINEARITIES)
    for number, name in enumerate(unlabelled.NONLINEARITIES):
        found = forward((jnp.ones((1, 1)),), jnp.int32(number), jnp.asarray(x[:, None], jnp.float32))[-1]
        np.testing.assert_allclose(found[:, 0], by_name[name], atol=1e-6)


# --- the worlds --------------------------------------------------------------------------------------


def test_construction_loads_nothing(monkeypatch):
    """SYS-2: a world is made when its domain is used and not before; sealed ones can be nothing but test domains."""
    monkeypatch.setattr(unlabelled, "_table", lambda *a: pytest.fail("loaded at construction"))
    task = local_rule()
    assert {d.name for d in task.domains if d.sealed} == set(task.split.test) == set(unlabelled.TEST)
    shifts = {task.domain(name).tags["shift"] for name in task.split.test}
    assert shifts == {"examples", "width", "depth", "nonlinearity", "pixels", "horizon", "modality"}
    assert {task.domain(name).tags["shift"] for name in task.split.train} == {"none"}


def test_the_ledger_tells_stores_of_digits_apart():
    """Having opened validation digits is no look at the sealed ones; one sealed digits world is a look at all."""
    task = local_rule()
    sources = {
        role: {task.domain(n).tags["data"] for n in getattr(task.split, role)}
        for role in ("train", "validation", "test")
    }
    assert not sources["test"] & (sources["train"] | sources["validation"])
    assert task.domain("digits_mixed").tags["data"] == task.domain("digits_wide").tags["data"] == "digits (test rows)"


def test_no_digit_is_in_two_roles_or_two_parts():
    """S0-2: sealed digits were never seen, labelled ones never shown without their label."""
    seen = {role: set() for role in ("train", "validation", "test")}
    roles = {"train": unlabelled.TRAIN, "validation": unlabelled.VALIDATION, "test": unlabelled.TEST}
    for role, worlds in roles.items():
        for name, world in worlds.items():
            shown, judged = (set(rows.tolist()) for rows in unlabelled.rows(name))
            assert shown and not shown & judged, name
            if world.table == "digits":
                seen[role] |= shown | judged
    assert not seen["train"] & seen["validation"] | seen["test"] & (seen["train"] | seen["validation"])
    tables = {role: {w.table for w in worlds.values()} - {"digits"} for role, worlds in roles.items()}
    assert not tables["train"] & tables["validation"] | tables["test"] & (tables["train"] | tables["validation"])


@pytest.mark.parametrize("name", unlabelled.WORLDS)
def test_worlds_are_well_formed(name):
    """Shapes and scales only: no loss of a sealed world is looked at."""
    world, domain = unlabelled.WORLDS[name], local_rule(steps=7).domain(name)
    data, query = domain.support(), domain.queries["probe"]()
    assert "target" not in data and not any("label" in part for part in data)  # nothing of the labels
    again = domain.support()
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(data), jax.tree.leaves(again), strict=True))
    assert np.abs(data["x"].mean(0)).max() < 0.25 and 0.85 < (data["x"] ** 2).mean() < 1.15
    assert [len(layer) for layer in data["layers"]] == list(world.widths) and len(data["steps"]) == 7 * world.longer
    labels = np.where(query["target"].sum(1) > 0, query["target"].argmax(1), -1)
    for shots, rest in zip(query["shots"], query["rest"], strict=True):
        assert len(set(shots)) == unlabelled.SHOTS and not set(shots) & set(rest)
        assert (labels[shots] >= 0).all() and (labels[rest] >= 0).all()
        counts = np.bincount(labels[shots])
        assert len(set(counts[counts > 0])) == 1
    assert len({shots.tobytes() for shots in query["shots"]}) == unlabelled.DRAWS


def test_searched_worlds_are_of_one_shape():
    """They are compiled once."""
    task = local_rule()
    shapes = [
        str(jax.tree.map(lambda x: (x.shape, x.dtype), (d.support(), d.queries["probe"]())))
        for d in task.domains
        if d.name in (*task.split.train, *task.split.validation)
    ]
    assert len(set(shapes)) == 1 and len(shapes) == 7


def test_permuted_pixels_are_the_same_pixels():
    plain, permuted = (
        np.sort(local_rule().domain(n).support()["x"].var(0)) for n in ("digits_mixed", "digits_permuted")
    )
    assert np.corrcoef(plain, permuted)[0, 1] > 0.98


ROOT = Path(__file__).parent.parent
STUDY = ROOT / "studies" / "local_rule.toml"


def test_every_world_is_in_the_documentation():
    page = (ROOT / "docs" / "local_rule.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")
    ]
    roles = {"train": unlabelled.TRAIN, "validation": unlabelled.VALIDATION, "sealed": unlabelled.TEST}
    expected = [
        [name, role, world.shift, "-".join(map(str, world.widths)), world.nonlinearity]
        for role, worlds in roles.items()
        for name, world in worlds.items()
    ]
    assert [row[:5] for row in rows] == expected


@pytest.mark.parametrize("profile", [None, "smoke", "standard", "full"])
def test_the_study_can_be_planned(profile):
    """Arms, controls, claims and budgets fit together; the small one opens no sealed world."""
    study = plan(STUDY, profile)
    assert len({v.evaluations for v in study.variants if v.searches and v.own.budget == "equal"}) == 1
    sealed = set(study.task.split.test)
    assert sealed == ({"digits_odd"} if profile == "smoke" else set(unlabelled.TEST))


def test_a_small_run(tmp_path, monkeypatch, compile_cache):
    """A search of programs from end to end: the archive has the rules as formulas."""
    monkeypatch.chdir(tmp_path)
    said = cli("run", "local_rule", "--profile", "smoke", "--strategy", "random_search", "--name", "small", "--json")
    assert said.code == 0, said.err
    texts = Archive(Path("runs/small")).table(["text"])["text"].to_pylist()
    assert len(texts) == 16 and all("change = " in text for text in texts)


SMALL = Vocabulary(
    "small", (Register("pre"), Register("post"), Register("w")), (Register("change"),), ("mul", "sub"), update=3
)


def test_another_vocabulary():
    """It may read less; what it reads, the task must give."""
    hebb = assemble(Program(SMALL, (), (Instruction(1, SMALL.number("change"), (0, 1)),), ()))
    options = {"vocabulary": SMALL, "steps": 5, "names": ("wine",)}
    assert losses(candidate(hebb), **options) != losses(**options)
    with pytest.raises(ConfigError, match=r"reads .*which this task does not give"):
        local_rule(vocabulary=OPTIMIZER)
    with pytest.raises(ConfigError, match="lacks the output change"):
        local_rule(vocabulary=Vocabulary("other", (Register("pre"),), (Register("step"),), ("copy",)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "ojas"}, 'Did you mean "oja"'),
        ({"start": "pca"}, "expected start out of hebb, .*subspace"),
        ({"rule": "oja", "start": "hebb"}, "expected rule or start, got both"),
        ({"steps": 0}, "steps as a whole number >= 1"),
        ({"batch": 1.5}, "batch as a whole number >= 1"),
        ({"batch": True}, "batch as a whole number >= 1"),
        ({"vocabulary": "plastic"}, 'Did you mean "plasticity"'),
    ],
)
def test_bad_options_say_what_was_expected(options, said):
    with pytest.raises(ConfigError, match=said):
        local_rule(**options)

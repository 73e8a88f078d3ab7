"""Optimizers as programs: data that are held out, rules that are what they are called, losses that mean what they say."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import cli

from evometa.errors import ConfigError
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vocabularies import OPTIMIZER
from evometa.study_plan import plan
from evometa.tasks import learned_opt as module
from evometa.tasks.learned_opt import PLACES, STARTS, TEST, TRAIN, VALIDATION, learned_opt
from evometa.tasks.parts import mlp, mlp_data
from evometa.tasks.parts.mlp_rules import RULES

pytest_plugins = ["shared"]

STUDY = Path(__file__).parent.parent / "studies" / "learned_opt.toml"


@cache
def part(name, which, steps=20, mup=False):
    return jax.tree.map(jnp.asarray, module._part(name, which, steps, mup))


@cache
def task_of(genome):
    return learned_opt(genome=genome)


@cache
def trainer(name):
    """Judgements and weights of genomes `[P, D]` on one domain, compiled once per task and shape."""
    task = task_of(name)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, None, None))
    def run(key, genome, support, query):
        learned = task.fit(key, task.space.decode(genome), support)
        return task.judge(key, learned, query), learned["weights"]

    def rows(genomes, domain="wine-16-relu"):
        filled = np.concatenate(
            [genomes, np.repeat(genomes[:1], 8 - len(genomes), axis=0)]
        )  # one shape, one compilation
        out = run(jax.random.key(0), jnp.float32(filled), part(domain, "support"), part(domain, "home"))
        return jax.tree.map(lambda x: np.asarray(x)[: len(genomes)], out)

    return rows


def trained(name, **candidate):
    """Judgement and weights of one candidate, the baseline where nothing else is said."""
    task = task_of(name)
    judged, weights = trainer(name)(task.space.encode({**task.baseline, **candidate})[None])
    return {k: float(v[0]) for k, v in judged.items()}, np.asarray(weights[0])


# --- data ----------------------------------------------------------------------------------------------


def test_construction_loads_nothing(monkeypatch):
    """SYS-2: a sealed domain's data are made when it is opened."""
    monkeypatch.setattr(mlp_data, "table", lambda *a: pytest.fail("loaded at construction"))
    assert len(learned_opt().domains) == len(PLACES)


def test_unseen_tasks_are_sealed_and_about_twenty():
    task = task_of("program")
    assert len(task.split.test) >= 20
    assert all(task.domain(name).sealed == (name in TEST) for name in PLACES)
    shifts = [task.domain(name).tags["shift"] for name in task.split.test]
    assert {"data", "width", "depth", "horizon", "all"} == set(shifts)
    assert {task.domain(name).tags["horizon"] for name in TEST} == {"1", "5", "25"}
    with pytest.raises(ConfigError, match="sealed"):
        learned_opt(train=["rings-16-relu"], test=[])
    searched = {place.data for place in (TRAIN | VALIDATION).values()}
    assert not searched & {PLACES[name].data for name in TEST if PLACES[name].shift in ("data", "all")}


@pytest.mark.parametrize("name", PLACES)
def test_every_table_is_split_scaled_and_not_constant(name):
    place = PLACES[name]
    made = mlp_data.table(place.data, place.inputs, *place.rows)
    seen, held = ({row.tobytes() for row in x} for x, _ in (made.support, made.query))
    assert made.support[0].shape == (place.rows[0], place.inputs) and made.query[0].shape[0] == place.rows[1]
    doubles = len(made.query[0]) - len(held)  # iris has one row twice
    assert len(seen & held) <= 1 and doubles <= 1, "rows are held out"
    assert np.mean(made.support[0] ** 2) == pytest.approx(1.0, rel=1e-4)
    for _, y in (made.support, made.query):
        assert np.isfinite(y).all() and (y.std(axis=0) > 0).all(), "every class, or number, is there"
        assert not made.classes or (y.sum(axis=1) == 1).all()
    if place.inputs < 64:  # raw pixels are as they are: some are always white
        assert (np.abs(made.support[0]).max(axis=0) > 0).all(), "no input is idle"


def test_scales_come_from_support_rows_alone(monkeypatch):
    """S0-1: other held-out rows change nothing of the support."""
    real = mlp_data.SOURCES["wine"]

    def other(luck, rows):
        x, y = real.make(luck, rows)
        x[96:] *= 100.0
        return x, y

    plain = mlp_data.table("wine", 16, 96, 54)
    monkeypatch.setitem(mlp_data.SOURCES, "wine", real._replace(make=other))
    changed = mlp_data.table.__wrapped__("wine", 16, 96, 54)
    np.testing.assert_array_equal(plain.support[0], changed.support[0])
    assert not np.array_equal(plain.query[0], changed.query[0])


def test_a_table_has_the_same_rows_whatever_else_is_asked():
    first, again = (mlp_data.table.__wrapped__("bumps", 40, 64, 32) for _ in range(2))
    np.testing.assert_array_equal(first.support[0], again.support[0])
    with pytest.raises(ValueError, match="150 rows"):
        mlp_data.table("iris", 16, 120, 60)


def test_the_trivial_loss_is_that_of_a_constant_answer():
    seen = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    share = np.array([3.5, 1.5]) / 5.0
    assert mlp_data.trivial(seen, seen, True) == pytest.approx(-(3 * np.log(share[0]) + np.log(share[1])) / 4)
    numbers = np.array([[1.0], [3.0]], np.float32)
    assert mlp_data.trivial(numbers, np.array([[4.0]], np.float32), False) == pytest.approx(4.0)


def test_the_search_compiles_three_shapes():
    shapes = {
        str(jax.tree.map(jnp.shape, {w: module._part(n, w, 100, False) for w in ("support", "home")})) for n in TRAIN
    }
    assert len(shapes) == 3


# --- the network -----------------------------------------------------------------------------------------


def test_the_flat_network_is_the_network():
    net = mlp.Network((3, 4, 2))
    assert net.layers == (12, 4, 8, 2) and net.fan_in.tolist() == [3, 3, 4, 4]
    flat, x = np.arange(26, dtype=np.float32) / 10.0, np.ones((5, 3), np.float32)
    hidden = np.tanh(x @ flat[:12].reshape(3, 4) + flat[12:16])
    np.testing.assert_allclose(net.outputs(flat, x, 0), hidden @ flat[16:24].reshape(4, 2) + flat[24:], rtol=1e-5)
    assert mlp.Network((3, 2)).shapes == [(3, 2), (2,)]


def test_losses_and_scores_by_hand():
    outputs, y = jnp.zeros((4, 2)), jnp.eye(2)[jnp.array([0, 1, 1, 0])]
    assert float(mlp.loss(outputs, y, True)) == pytest.approx(np.log(2))
    assert float(mlp.loss(outputs, y, False)) == pytest.approx(0.5)
    for value, expected in ((2.0, 0.0), (0.0, np.log10(0.01 / 1.01)), (np.nan, np.log10(100.01 / 1.01))):
        assert float(mlp.score(jnp.float32(value), jnp.float32(2.0))) == pytest.approx(expected, abs=1e-5)
    values = jnp.array([0.01, 0.1, 1.0, 1e3, jnp.inf])
    scores = np.asarray(mlp.score(values, jnp.float32(1.0)))
    assert (np.diff(scores[:4]) > 0).all() and scores[4] == scores[3], "the worst is the worst, however it came"


def test_initial_weights_have_the_deviations_of_their_recipe():
    made = mlp.recipe((64, 256, 256, 10), "relu", False)
    net = mlp.Network((64, 256, 256, 10))
    arrays = jax.jit(lambda key: net.arrays(net.start(key, made["scales"])))(jax.random.key(0))
    assert [float(a.std()) for a in arrays[::2]] == pytest.approx([1 / 8, 2**0.5 / 16, 2**0.5 / 16], rel=0.05)
    assert all(not np.asarray(bias).any() for bias in arrays[1::2])


def test_mup_changes_wide_layers_only():
    """At the base width it is the standard parametrization."""
    same = [mlp.recipe((16, mlp.BASE_WIDTH, 10), "tanh", mup) for mup in (False, True)]
    jax.tree.map(np.testing.assert_array_equal, *same)
    wide = mlp.recipe((16, 128, 128, 10), "tanh", True)
    assert wide["pace"].tolist() == [1, 1, 0.25, 1, 0.25, 1]
    plain = mlp.recipe((16, 128, 128, 10), "tanh", False)
    ratio = [float(a[0] / b[0]) for a, b in zip(wide["scales"], plain["scales"], strict=True)]
    assert ratio == pytest.approx([1, 1, 0.5])


def test_under_mup_the_same_rate_fits_more_widths():
    """What it is for: one step of sign descent moves the outputs alike, however wide the network is."""
    moved = {}
    for mup in (False, True):
        for width in (32, 512):
            net, made = mlp.Network((16, width, width, 1)), mlp.recipe((16, width, width, 1), "tanh", mup)
            x = np.random.default_rng(0).standard_normal((64, 16), np.float32)
            pace = np.repeat(made["pace"], net.layers)

            @jax.jit
            def change(key, net=net, x=x, pace=pace, made=made):
                weights = net.start(key, made["scales"])
                gradient = jax.grad(lambda w: net.outputs(w, x, 0).mean())(weights)
                return net.outputs(weights - 0.01 * pace * jnp.sign(gradient), x, 0) - net.outputs(weights, x, 0)

            moved[mup, width] = float(np.abs(change(jax.random.key(0))).mean())
    assert moved[False, 512] / moved[False, 32] > 4.0
    assert 0.4 < moved[True, 512] / moved[True, 32] < 2.5


# --- rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "numbers", "rate"), [
    ("sgd", {"lr": 0.3}, 30.0),
    ("adam", {"lr": 0.03, "forget1": 0.1, "forget2": 1e-3, "epsilon": 1e-8}, 30.0),
    ("adamw", {"lr": 0.03, "forget1": 0.1, "forget2": 1e-3, "epsilon": 1e-8, "decay": 1e-4}, 30.0),
])  # fmt: skip
def test_a_known_program_trains_as_the_rule_by_hand(name, numbers, rate):
    """The interpreter, the known listing and the rule of the control arm agree on a whole training."""
    by_hand, weights = trained(name, **numbers)
    interpreted, same = trained("program", rule=name, lr=rate)
    assert interpreted["loss"] == pytest.approx(by_hand["loss"], abs=2e-3)
    np.testing.assert_allclose(same, weights, atol=2e-3)
    assert by_hand["loss"] < -0.3, "and it learns"


def test_momentum_by_hand_keeps_the_rate():
    """At a constant gradient the step tends to -g, whatever the momentum."""
    memory, now = jnp.zeros((2, 1)), module.Now(jnp.zeros(1), jnp.ones(1), 1.0, 0.0)
    for _ in range(100):
        step, memory = RULES["momentum"].step({"forget1": 0.1}, memory, now)
    assert float(step[0]) == pytest.approx(-1.0, abs=1e-3)


def test_nadamw_is_that_of_optax():
    """At a constant rate (`anneal` 0), decay included: a training of 30 steps on moving gradients."""
    candidate = {"forget1": 0.1, "forget2": 1e-2, "epsilon": 1e-8, "decay": 0.05, "anneal": 0.0}
    theirs = optax.nadamw(1.0, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.05)
    w = other = jnp.linspace(-1.0, 1.0, 5)
    state, memory = theirs.init(other), jnp.zeros((2, 5))
    for t in range(1, 31):
        gradient = jnp.sin(3.0 * t + jnp.arange(5.0))
        step, memory = RULES["nadamw"].step(candidate, memory, module.Now(w, gradient, float(t), t / 30))
        moves, state = theirs.update(gradient, state, other)
        w, other = w + 0.01 * step, other + 0.01 * moves
    np.testing.assert_allclose(w, other, rtol=1e-4, atol=1e-6)


def test_annealing_falls_from_one_to_a_step():
    candidate = {**RULES["annealed"].baseline, "anneal": 1.0, "decay": 0.0, "epsilon": 0.0}
    sizes = []
    for t in (1, 50, 100):
        now = module.Now(jnp.zeros(1), jnp.ones(1), float(t), t / 100)
        step, _ = RULES["annealed"].step(candidate, jnp.array([[0.0], [0.0]]), now)
        plain, _ = RULES["adam"].step(candidate, jnp.array([[0.0], [0.0]]), now)
        sizes.append(float(step[0] / plain[0]))
    assert sizes == pytest.approx([1.0, 0.51, 0.01])


def test_a_program_sees_what_the_task_gives():
    """Every input of the vocabulary is handed over under its name."""
    OPTIMIZER.require("learned_opt", ("w", "g", "t", "progress", "fan_in"), ("step",))
    seen = {"fan_in": np.float32([3, 3, 4, 4]), **module.Now(jnp.ones(26), jnp.ones(26), 2.0, 0.5)._asdict()}
    assert set(seen) == {register.name for register in OPTIMIZER.inputs}
    ready = prepare(
        OPTIMIZER,
        task_of("program").space.decode(task_of("program").space.encode({"rule": "step = mul(g, fan_in)", "lr": 1.0}))[
            "rule"
        ],
    )
    step, _ = Machine(OPTIMIZER, (12, 4, 8, 2)).step(ready, Machine(OPTIMIZER, (12, 4, 8, 2)).start(ready, seen), seen)
    np.testing.assert_array_equal(step["step"], np.repeat(np.float32([3, 3, 4, 4]), (12, 4, 8, 2)))


def test_a_refused_program_fails_and_a_diverging_one_is_the_worst():
    task = task_of("program")
    genome = task.space.encode(task.baseline)
    broken = genome.copy()
    broken[0] = 500.0  # no such operation
    genomes = np.stack([genome, broken, task.space.encode({"rule": "step = mul(g, 1e2)", "lr": 1e3})])
    judged, _ = trainer("program")(genomes)
    loss, diverged = np.asarray(judged["loss"]), np.asarray(judged["diverged"])
    assert loss[0] < 0 and np.isnan(loss[1])
    assert loss[2] == pytest.approx(np.log10(100.01 / 1.01), abs=1e-4)
    assert diverged.tolist()[::2] == [0.0, 1.0]
    assert all(np.isfinite(np.asarray(value)).all() for name, value in judged.items() if name != "loss")


def test_held_out_rows_are_not_seen_by_training():
    """The support's own loss is another query than the held-out one."""
    task = task_of("adam")
    support = part("spirals-16-relu", "support", 200)
    queries = {q: part("spirals-16-relu", q) for q in ("home", "seen")}

    @jax.jit
    def both(genome):
        learned = task.fit(jax.random.key(0), task.space.decode(genome), support)
        return {q: task.judge(None, learned, query) for q, query in queries.items()}

    judged = both(task.space.encode(task.baseline))
    assert float(judged["seen"]["loss"]) < float(judged["home"]["loss"])
    assert float(judged["home"]["inner_steps"]) == 200


def test_a_sweep_takes_the_best_rate_for_each_query():
    best, _ = trained("swept_adam")
    every = [trained("adam", lr=float(0.03 * factor))[0]["loss"] for factor in module.SWEEP]
    assert best["loss"] == pytest.approx(min(every), abs=2e-3)
    assert max(every) - min(every) > 0.1


def test_every_start_learns():
    task = task_of("program")
    genomes = np.stack([task.space.encode(learned_opt(start=name).baseline) for name in STARTS])
    judged, weights = trainer("program")(genomes)
    losses = dict(zip(STARTS, np.asarray(judged["loss"]).tolist(), strict=True))
    assert losses.pop("nothing") > -0.1, "no step is taken"
    assert max(losses.values()) < -0.2, losses
    initial = mlp.network(support := part("wine-16-relu", "support")).start(
        jax.random.split(jax.random.key(0))[0], support["scales"]
    )
    np.testing.assert_allclose(weights[list(STARTS).index("nothing")], initial, atol=1e-6)


@pytest.mark.parametrize("genome", RULES)
def test_every_number_of_a_rule_matters(genome):
    """A gene that nothing reads would drift."""
    task = task_of(genome)
    base = task.space.encode(task.baseline)
    moved = np.stack(
        [
            base,
            *(
                base + 0.3 * np.eye(len(base), dtype=np.float32)[i] * np.where(base > 0.5, -1, 1)
                for i in range(len(base))
            ),
        ]
    )
    _, weights = trainer(genome)(moved)
    assert all(not np.array_equal(row, weights[0]) for row in np.asarray(weights)[1:])


# --- the task as a whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"genome": "adm"}, 'Did you mean "adam"'),
    ({"start": "sdg"}, 'Did you mean "sgd"'),
    ({"steps": 0}, "steps as a whole number >= 1, got 0"),
    ({"batch": 2.5}, "batch as a whole number >= 1, got 2.5"),
    ({"train": "iris-16-tanh"}, "expected a list of domains as train"),
    ({"train": ["iris-16-tan"]}, 'Did you mean "iris-16-tanh"'),
])  # fmt: skip
def test_bad_options_are_one_clear_line(options, words):
    with pytest.raises(ConfigError, match="learned_opt: ") as caught:
        learned_opt(**options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_controls_are_the_rules_and_their_sweeps():
    assert set(task_of("program").controls) == {*RULES, *(f"swept-{name}" for name in RULES)}
    for options in task_of("program").controls.values():
        assert learned_opt(**options).name == "learned_opt"


@pytest.mark.parametrize("profile", [None, "smoke", "standard", "full"])
def test_the_study_can_be_planned(profile, monkeypatch):
    """Arms, claims and equal budgets fit together; no table is made for it."""
    monkeypatch.setattr(mlp_data, "table", lambda *a: pytest.fail("loaded at planning"))
    study = plan(STUDY, profile)
    assert len({v.evaluations for v in study.variants if v.searches and v.own.budget == "equal"}) == 1
    assert set(study.task.split.test) == (set(TEST) if profile != "smoke" else {"rings-16-relu", "moons-16-gelu"})


def test_a_small_search_runs_and_is_opened(tmp_path, monkeypatch, compile_cache):
    """A numeric arm of the study, from the search to the sealed domains."""
    monkeypatch.chdir(tmp_path)
    small = ["--set", 'task_options.train=["steep_numbers"]', "--set", 'task_options.validation=["steep_classes"]']
    small += ["--set", 'task_options.test=["rings-16-relu"]', "--set", "task_options.steps=5"]
    said = cli(
        "run", "learned_opt", *small, "--set", "task_options.genome=sgd", "--strategy", "random_search",
        "--population", 4, "--generations", 2, "--name", "small",
    )  # fmt: skip
    assert said.code == 0, said.err
    said = cli("unseal", "runs/small", "--json")
    assert said.code == 0, said.err
    rows = said.data["domains"] if "domains" in said.data else said.data["results"][0]["domains"]
    assert [row["domain"] for row in rows] == ["rings-16-relu"] and abs(rows[0]["champion"]) <= 2.0

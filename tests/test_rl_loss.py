"""Losses of value-based learners: exact values, what a rule is handed, who is the TD error, sealed families stay sealed."""

import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evometa
from evometa.errors import ConfigError, EvometaError
from evometa.evaluate.cell import train_and_judge
from evometa.programs.code import Code, assemble
from evometa.programs.known import known
from evometa.programs.listing import parse
from evometa.programs.vocabularies import LOSS
from evometa.study_plan import plan
from evometa.tasks import rl_loss as module
from evometa.tasks.parts import bellman, mdps, qtable
from evometa.tasks.rl_loss import is_double_td, is_td, rl_loss_graph

pytest_plugins = ["shared"]

ROOT = Path(__file__).parent.parent
SMALL = {"instances": 2, "steps": 40, "actors": 16}
ERROR = "x = mul(discount, next_max)\nx = add(reward, x)\nx = sub(x, q)\n"


def coded(text):
    return assemble(parse(LOSS, text) if "=" in text else known(LOSS, text))


def data(family, instances=2, steps=40, size=(20, 3), walked=False):
    return module._support(family, walked, instances, steps, size), module._query(family, instances, size)


# --- the problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", mdps.FAMILIES)
def test_every_instance_is_a_decision_process_that_can_be_learned(family):
    size = next(v for k, v in module.SIZES.items() if family in getattr(module, k.upper()))
    for number in range(3):
        made = mdps.instance(family, number, *size)
        again = mdps.instance(family, number, *size)
        assert all(np.array_equal(made[name], again[name]) for name in made)
        assert np.allclose(made["chance"].sum(axis=2), 1.0, atol=1e-6) and np.isclose(made["start"].sum(), 1.0)
        real = int(made["states"])
        assert 0 < real <= size[0] and np.all(made["next"][:real] < real) and not made["start"][real:].any()
        assert set(np.unique(made["on"])) <= {0.0, 1.0} and 0.0 < made["discount"] < 1.0
        best, chance = mdps.solve(made)
        assert best > chance


def test_the_best_value_is_that_of_value_iteration_and_the_random_one_that_of_walks():
    made = mdps.instance("garnet", 0, 27, 3)
    step, reward = mdps.model(made)
    values = np.zeros((27, 4))
    for _ in range(3000):
        values = reward + step @ values.max(axis=1)
    best, chance = mdps.solve(made)
    assert best == pytest.approx(made["start"] @ values.max(axis=1), rel=1e-6)
    # By walks, from the arrays that a learner gets: 4,000 of 300 steps.
    luck = np.random.default_rng(0)
    s, gained, worth = luck.choice(27, 4000, p=made["start"] / made["start"].sum()), np.zeros(4000), np.ones(4000)
    for _ in range(300):
        a = luck.integers(0, 4, 4000)
        b = np.minimum((luck.random(4000)[:, None] > made["chance"][s, a].cumsum(axis=1)).sum(axis=1), 2)
        gained += worth * made["reward"][s, a, b]
        worth *= float(made["discount"]) * made["on"][s, a, b]
        s = made["next"][s, a, b]
    assert chance == pytest.approx(gained.mean(), abs=4 * gained.std() / 4000**0.5)


def test_the_deep_sea_pays_what_its_definition_says():
    made = mdps.instance("deep_sea", 0, 27, 3)
    side, discount, best = round(float(made["states"]) ** 0.5), float(made["discount"]), mdps.solve(made)[0]
    treasure = discount ** (side - 1)
    costs = 0.01 / side * sum(discount**t for t in range(side))
    assert best == pytest.approx((treasure - costs) * made["reward"].max() / (1 - 0.01 / side), rel=1e-4)


def test_a_shortfall_is_0_for_the_best_table_1_for_an_empty_one_and_none_for_a_broken_one():
    _, query = data("garnet")
    values = np.zeros((2, 20, 4))
    for _ in range(2000):
        values = query["reward"] + np.einsum("isat,it->isa", query["step"], values.max(axis=2))
    best, empty = jnp.asarray(values, jnp.float32), jnp.zeros((2, 20, 4))
    shortfall = jax.jit(qtable.shortfall)
    assert np.allclose(shortfall(best, query), 0.0, atol=1e-5)
    assert np.allclose(shortfall(empty, query), 1.0, atol=1e-5)
    assert np.all(shortfall(-best, query) > 1.0)
    assert np.isnan(shortfall(best.at[0, 0, 0].set(jnp.inf), query)).tolist() == [True, False]


# --- the learner -----------------------------------------------------------------------------------------


def learned(slope, family="maze", lr=0.4, actors=32, steps=80, **options):
    support, query = data(family, steps=steps, **options)
    tables = jax.jit(lambda key: qtable.learn(key, slope, lr, support, actors, 3.0))(jax.random.key(5))
    return np.asarray(tables), query


def by_hand(batch):
    return 2.0 * (batch["q"] - (batch["reward"] + batch["discount"] * batch["next_max"]))


def test_a_program_learns_as_the_same_rule_by_hand():
    task = rl_loss_graph(instances=2, steps=80, actors=32, start="td")
    support, _ = data("maze", steps=80)
    genome = jnp.asarray(task.space.encode({"rule": "td", "lr": 0.4}))
    found = jax.jit(lambda key: task.fit(key, task.space.decode(genome), support)["tables"])(jax.random.key(5))
    tables, query = learned(by_hand)
    assert np.allclose(found, tables, atol=1e-5)
    assert float(jax.jit(qtable.shortfall)(jnp.asarray(tables[-1]), query).mean()) < 0.2


def test_entries_move_by_the_mean_of_what_was_tried():
    # A derivative of 1: what is tried moves by lr, lr falling to zero.
    tables, _ = learned(lambda batch: jnp.ones_like(batch["q"]), lr=0.01, steps=40)
    moved = np.cumsum([0.01 * (1 - t / 40) for t in range(40)])[9::10]
    support, _ = data("maze")
    assert np.allclose(tables / -moved[:, None, None, None], support["rate"][None], atol=0.6)
    assert np.corrcoef(tables[-1].ravel(), support["rate"].ravel())[0, 1] < -0.9
    # Walkers: never more than that, and nothing where nobody walks.
    walked, _ = learned(
        lambda batch: jnp.ones_like(batch["q"]), "rooms", 0.01, steps=40, size=module.SIZES["test"], walked=True
    )
    assert walked.min() >= -moved[-1] - 1e-6 and walked.max() == 0.0 and np.any(walked[-1] < 0.0)
    walls = 64 - mdps.instance("rooms", 0, *module.SIZES["test"])["start"].astype(bool).sum()
    assert np.sum(np.all(walked[-1][0] == 0.0, axis=1)) >= walls - 1  # the goal is where no one starts


def test_what_a_loss_reads_is_what_the_vocabulary_says():
    seen = []

    def slope(batch):
        assert set(batch) == {register.name for register in LOSS.inputs}
        jax.debug.callback(lambda b: seen.append(b), batch)
        return by_hand(batch)

    learned(slope, family="frozen", size=module.SIZES["test"], walked=True, steps=40)
    jax.effects_barrier()
    batches = {name: np.concatenate([batch[name] for batch in seen]) for name in seen[0]}
    assert np.all(batches["next_max"] >= batches["next_online"]) and np.all(batches["next_max"] >= batches["next_mean"])
    assert np.all(batches["q_max"] >= batches["q"]) and np.all(batches["q_max"] >= batches["q_mean"])
    support, _ = data("frozen", size=module.SIZES["test"])
    assert set(np.unique(batches["discount"])) == {np.float32(0), *support["discount"]}
    assert np.any(batches["next_max"] > batches["next_online"])


# --- who is the TD error? --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "td", "double"),
    [
        ("td", True, False),
        ("double_td", False, True),
        ("expected_td", False, False),
        ("dqn_reg", False, False),
        ("huber_td", False, False),
        # The same error the other way round, scaled, with something added that does not depend on q.
        ("x = mul(discount, next_max)\nx = add(reward, x)\nx = sub(q, x)\nx = square(x)\nx = mul(x, 7.5)\n"
         "loss = add(x, reward)", True, False),
        # q^2 / 2 - q * target: not a square, but the same derivative.
        ("x = mul(next_max, discount)\nx = add(x, reward)\ny = mul(q, x)\nx = square(q)\n"
         "x = mul(x, 0.5)\nloss = sub(x, y)", True, False),
        # next_max is never below next_online.
        ("x = max(next_max, next_online)\nx = mul(discount, x)\nx = add(reward, x)\nx = sub(x, q)\nloss = square(x)",
         True, False),
        (f"{ERROR}loss = abs(x)", False, False),
        (f"{ERROR}x = square(x)\nloss = neg(x)", False, False),  # away from the target
        ("x = mul(next_max, 0.9)\nx = add(reward, x)\nx = sub(x, q)\nloss = square(x)", False, False),
        ("x = sub(q, reward)\nloss = square(x)", False, False),
        ("loss = copy(reward)", False, False),
    ],
)  # fmt: skip
def test_the_td_error_is_known_by_its_derivative(text, td, double):
    code = coded(text)
    assert (is_td(code), is_double_td(code)) == (td, double)
    assert is_td(known(LOSS, "td"))  # a Program as well


def test_an_error_is_the_share_that_is_not_td():
    weak = coded(f"{ERROR}x = square(x)\ny = mul(q, 0.001)\nloss = add(x, y)")
    strong = coded("dqn_reg")
    assert 1e-4 < bellman.error(weak, "next_max") < 0.02 < bellman.error(strong, "next_max") < 1.0
    assert bellman.error(Code(np.full((LOSS.length, 5), -1), np.zeros(3)), "next_max") == float("inf")


# --- the task ---------------------------------------------------------------------------------------------


@cache
def judge():
    task = rl_loss_graph(instances=4, steps=80)

    @jax.jit
    def one(key, genome, support, query):
        return train_and_judge(task, task.space.decode(genome), key, support, {"greedy": query})["greedy"]

    def on(rule, lr=0.4, family="layers"):
        genome = jnp.asarray(task.space.encode({"rule": coded(rule), "lr": lr}))
        return {k: float(v) for k, v in one(jax.random.key(2), genome, *data(family, 4, 80)).items()}

    return on


def test_each_part_of_the_td_error_helps():
    nothing, greedy, endless, td = (
        judge()(rule)
        for rule in ("loss = copy(reward)", "x = sub(q, reward)\nloss = square(x)",
                     "x = add(next_max, reward)\nx = sub(q, x)\nloss = square(x)", "td")
    )  # fmt: skip
    assert nothing["loss"] == pytest.approx(1.0, abs=1e-5) and nothing["area"] == pytest.approx(1.0, abs=1e-5)
    assert td["loss"] < 0.01 < 0.03 < min(endless["loss"], greedy["loss"]) < 1.0
    assert td["area"] > td["loss"] and td["inner_steps"] == 80


def test_a_loss_that_diverges_fails():
    assert np.isnan(judge()("x = sub(q, reward)\nx = square(x)\nx = square(x)\nloss = square(x)", lr=1.0)["loss"])


def test_sealed_families_are_others_larger_longer_and_untouched():
    module._instances.cache_clear()
    task = rl_loss_graph(**SMALL)
    split = task.split
    families = {role: {task.domain(n).tags["family"] for n in getattr(split, role)} for role in ("train", "validation")}
    sealed = {task.domain(name).tags["family"] for name in split.test}
    assert not sealed & (families["train"] | families["validation"]) and not families["train"] & families["validation"]
    assert module._instances.cache_info().currsize == 0  # a task is made without a look at its data
    first, last = task.domain(split.train[0]).support(), task.domain(split.test[-1]).support()
    assert last["clock"].size == 3 * first["clock"].size and last["next"].shape[1] > first["next"].shape[1]
    assert "epsilon" not in first and np.all(last["epsilon"] > 0.0)
    assert {task.domain(name).tags["experience"] for name in split.test} == {"swept", "walked"}


def test_a_search_runs_and_recommends_a_program(tmp_path):
    options = {"instances": 2, "steps": 8, "actors": 4, "start": "td"}
    run = evometa.run(
        "rl_loss_graph", strategy="random_search", population=4, generations=1, out=tmp_path, name="r",
        task_options=options,
    )  # fmt: skip
    champion = run.champion
    assert champion is not None and np.isfinite(champion.validation)
    assert is_td(run.params["rule"]) in (True, False) and 1e-3 <= run.params["lr"] <= 1.0


def test_a_known_rule_can_be_held_and_its_step_size_searched():
    task = rl_loss_graph(rule="dqn_reg", **SMALL)
    assert task.space.dimension == 1 and not task.controls
    held = task.space.decode(jnp.asarray(task.space.encode(task.baseline)))
    assert np.array_equal(held["rule"].tokens, coded("dqn_reg").tokens)
    assert {"td", "double-td", "dqn-reg"} == set(rl_loss_graph(**SMALL).controls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "tabula"}, "expected agent of tabular, network, got 'tabula'. Did you mean \"tabular\"?"),
        ({"start": "sarsa"}, "expected start of nothing, td, double_td, dqn_reg, got 'sarsa'"),
        ({"rule": "nothing"}, "expected rule of td, double_td, dqn_reg"),
        ({"steps": 30}, "expected steps as a multiple of 4, got 30"),
        ({"actors": 0}, "expected actors as a whole number >= 1, got 0"),
        ({"lag": 0.5}, "expected lag in 1 .. 10000 updates, got 0.5"),
        ({"env_steps": 100}, "expected env_steps as a multiple of 16, got 100"),
    ],
)
def test_options_out_of_range_are_told(options, message):
    with pytest.raises(ConfigError, match="rl_loss_graph: ") as told:
        rl_loss_graph(**options)
    assert message in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("profile", ["smoke", "standard", "full"])
def test_the_study_is_sound(profile):
    made = plan(ROOT / "studies" / "rl_loss_graph.toml", profile)
    assert len({v.evaluations for v in made.variants if v.searches}) == 1
    assert {v.arm for v in made.variants} >= {"gp-scratch", "gp-td", "td", "dqn-reg", "static", "random-search"}


# --- the network agent ------------------------------------------------------------------------------------


def test_without_gymnax_the_network_agent_says_what_to_type(monkeypatch):
    from evometa.tasks.parts import qnet

    qnet.environment.cache_clear()
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(EvometaError, match="agent='network' needs the package 'gymnax'.*evometa.rl"):
        rl_loss_graph(agent="network", small=True)


def test_a_network_learns_to_catch_and_does_not_when_told_nothing():
    task = rl_loss_graph(agent="network", small=True, env_steps=3200, hidden=32, episodes=16)
    assert task.split.test == ("frozen_lake",)
    place = task.domain("catch")

    @jax.jit
    def one(genome):
        candidate = task.space.decode(genome)
        return train_and_judge(task, candidate, jax.random.key(0), place.support, place.queries)["greedy"]

    td, nothing = (one(jnp.asarray(task.space.encode({"rule": coded(rule), "lr": 3e-3}))) for rule in ("td", ERROR))
    assert float(td["loss"]) < 0.4 < 0.6 < float(nothing["loss"])
    assert float(td["inner_steps"]) == 3200 / 16 * 4
    assert float(td["gained"]) == pytest.approx(1.0 - float(td["loss"]) * 1.59, abs=1e-4)

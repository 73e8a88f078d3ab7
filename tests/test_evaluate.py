"""Cells, plans, costs, settled scores and data: the numbers behind a fitness."""

from __future__ import annotations

from collections import deque
from datetime import date
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import evometa
from evometa import Domain, Failure, Objective, Split, real
from evometa.errors import ConfigError, ResumeMismatch
from evometa.evaluate import data as datasets
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.cost import cost
from evometa.evaluate.plan import Plan, derive
from evometa.evaluate.settle import Raw, reduce, settle
from evometa.judging import Judged
from evometa.keys import Stream, as_int, cell_keys, fit_and_judge_keys, stream_key
from evometa.types import Cell

# 3 domains, 2 queries, 2 replicates in the order of `layout`.
CELLS = [Cell(d, q, "train", r) for d in "abc" for q in ("home", "away") for r in range(2)]


def raw(loss, evaluated=None, failure=None):
    loss = jnp.asarray(loss, jnp.float32)
    evaluated = jnp.ones(loss.shape, bool) if evaluated is None else jnp.asarray(evaluated)
    return Raw(
        loss, {}, evaluated, jnp.zeros(len(loss), jnp.int8) if failure is None else jnp.asarray(failure, jnp.int8)
    )


# --- reductions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("away", (3.0 + 7.0 + 20.0) / 3),
        ("away:worst", 20.0),
        ("home", (0.5 + 5.5 + 9.5) / 3),
        ("away:cvar:0.34", 20.0),  # the worst of three domains
        ("away:cvar:0.67", (7.0 + 20.0) / 2),
        ("away:cvar:1", (3.0 + 7.0 + 20.0) / 3),
        ("away:cvar:0.01", 20.0),  # never fewer than one
    ],
)
def test_replicates_are_averaged_and_then_domains_are_reduced(text, expected):
    #           a: home, away       b: home, away      c: home, away
    loss = [[0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 6.0, 8.0, 9.0, 10.0, 15.0, 25.0]]
    assert float(reduce(jnp.asarray(loss), CELLS, Objective.parse(text))[0]) == pytest.approx(expected)


def test_worst_looks_at_domains_and_not_at_replicates():
    loss = np.zeros((1, 12))
    loss[0, 2:4] = [0.0, 9.0]  # a: mean 4.5
    loss[0, 6:8] = [5.0, 5.0]  # b: mean 5
    assert float(reduce(jnp.asarray(loss), CELLS, Objective("away", "worst"))[0]) == 5.0


# --- what failed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_fails_its_candidate_and_nobody_else(bad):
    loss = np.ones((3, 12), np.float32)
    loss[1, 0] = bad  # even in a cell that is no objective
    scores = settle(raw(loss), CELLS, [Objective("away")])
    assert scores.failure.tolist() == [Failure.OK, Failure.NONFINITE, Failure.OK]
    assert scores.fitness[:, 0].tolist() == [1.0, np.inf, 1.0]


def test_what_was_not_evaluated_is_no_failure_and_nothing_at_all_is_skipped():
    loss, evaluated = np.ones((2, 12), np.float32), np.ones((2, 12), bool)
    loss[0, 0], evaluated[0, 0] = np.nan, False
    loss[1], evaluated[1] = np.nan, False
    scores = settle(raw(loss, evaluated), CELLS, [Objective("away")])
    assert scores.failure.tolist() == [Failure.OK, Failure.SKIPPED]
    assert scores.fitness[:, 0].tolist() == [1.0, np.inf]


def test_what_the_backend_knows_stays_known():
    scores = settle(
        raw(np.ones((2, 12)), failure=[Failure.TIMEOUT, Failure.OK]), CELLS, [Objective("away"), Objective("home")]
    )
    assert scores.failure.tolist() == [Failure.TIMEOUT, Failure.OK]
    assert scores.fitness.tolist() == [[np.inf, np.inf], [1.0, 1.0]]


def test_a_sum_that_overflows_is_a_failure():
    scores = settle(raw(np.full((1, 12), 3e38)), CELLS, [Objective("away")])
    assert scores.failure.tolist() == [Failure.NONFINITE] and scores.fitness[0, 0] == np.inf


# --- compiled cells ----------------------------------------------------------------------------------------------------


def linear(domains, **fields):
    """fit: candidate times support's mean, plus luck; judge: its distance from the query's mean."""
    task = evometa.task(space={"x": real(0, 1)}, domains=domains, split=Split([d.name for d in domains]), **fields)
    task.fit(lambda key, c, support: c["x"] * jnp.mean(support) + 0.1 * jax.random.normal(key))
    task.judge(lambda key, learned, query: {"loss": (learned - jnp.mean(query)) ** 2, "mine": learned})
    return task.build()


DOMAINS = [
    Domain("a", np.arange(4, dtype=np.float32), {"home": np.float32(1), "away": np.float32(2)}),
    Domain("b", np.arange(6, dtype=np.float32), {"home": np.float32(1), "away": np.float32(3)}),
    Domain("c", np.arange(4, dtype=np.float32) + 1, {"away": np.float32(2)}),
]


def test_cells_equal_the_same_calculation_by_hand():
    """Groups of unequal shapes, a query that a domain lacks, replicates: every cell at its place."""
    task = linear(DOMAINS, replicates=2)
    loaded = datasets.load(task, task.split.train)
    cells = CompiledCells(task, loaded, Plan(2, 2, 1), 2)
    assert len(cells.groups) == 3 and cells.metrics == ("mine",)
    genomes = np.array([[0.0], [0.3], [1.0]], np.float32)
    key = stream_key(5, 2, Stream.EVALUATE)
    found = cells.host(key, genomes)
    assert found.loss.shape == (3, len(cells.cells)) == (3, 12)
    keys = cell_keys(key, ("a", "b", "c"), 2)
    for p, (x,) in enumerate(genomes):
        for c, cell in enumerate(cells.cells):
            d = "abc".index(cell.domain)
            domain = DOMAINS[d]
            if cell.query not in domain.queries:
                assert not found.evaluated[p, c] and np.isnan(found.loss[p, c])
                continue
            fit_key, _ = fit_and_judge_keys(keys[d, cell.replicate], ("home", "away"))
            learned = x * domain.support.mean() + 0.1 * float(jax.random.normal(fit_key))
            assert found.evaluated[p, c]
            assert found.loss[p, c] == pytest.approx((learned - domain.queries[cell.query]) ** 2, rel=1e-5)
            assert found.metrics["mine"][p, c] == pytest.approx(learned, rel=1e-5)
    assert (found.failure == Failure.OK).all()


def test_neither_position_nor_company_nor_devices_change_a_candidates_bits():
    """The determinism contract: a fixed chunk gives the same bits wherever a candidate falls."""
    task = linear(DOMAINS[:2])
    loaded = datasets.load(task, task.split.train)
    cells = CompiledCells(task, loaded, Plan(2, 2, 1), 1)
    genomes = np.random.default_rng(0).random((7, 1)).astype(np.float32)
    key = stream_key(0, 0, Stream.EVALUATE)
    loss = cells.host(key, genomes).loss
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    assert np.array_equal(cells.host(key, genomes[order]).loss, loss[order])
    assert np.array_equal(cells.host(key, genomes[:3]).loss, loss[:3])
    one = CompiledCells(task, loaded, Plan(2, 1, 1), 1)
    assert np.array_equal(one.host(key, genomes).loss, loss)
    assert not np.array_equal(cells.host(stream_key(0, 1, Stream.EVALUATE), genomes).loss, loss)


def test_a_metric_that_is_no_number_fails_its_candidate():
    task = linear(DOMAINS[:1])
    broken = task.with_(judge=lambda key, learned, query: {"loss": jnp.float32(1), "mine": jnp.log(learned)})
    cells = CompiledCells(broken, datasets.load(broken, ["a"]), Plan(1, 1, 1), 1)
    found = cells.host(stream_key(0, 0, Stream.EVALUATE), np.array([[0.0], [1.0]], np.float32))
    negative = 0.1 * float(
        jax.random.normal(fit_and_judge_keys(cell_keys(stream_key(0, 0, Stream.EVALUATE), ("a",), 1)[0, 0], ())[0])
    )
    assert found.failure.tolist() == [Failure.NONFINITE if negative <= 0 else Failure.OK, Failure.OK]


def test_a_metric_that_comes_with_one_query_only_is_missing_elsewhere_and_no_failure():
    task = linear(DOMAINS)

    def judge(key, learned, query):
        extra = {"bent": 1 / (query - 1)} if query.dtype == jnp.int32 else {}
        return {"loss": (learned - query) ** 2, **extra}

    domains = [Domain(d.name, d.support, {**d.queries, "away": np.int32(d.name == "b")}) for d in DOMAINS]
    task = task.with_(judge=judge, domains=tuple(domains))
    genomes = np.array([[0.5]], np.float32)
    for names, failure in ((["a", "c"], Failure.OK), (["a", "b"], Failure.NONFINITE)):  # 1 / 0 on b
        cells = CompiledCells(task, datasets.load(task, names), Plan(1, 1, 1), 1)
        found = cells.host(stream_key(0, 0, Stream.EVALUATE), genomes)
        assert found.failure.tolist() == [failure]
        away = np.array([cell.query == "away" for cell in cells.cells])
        assert np.isnan(found.metrics["bent"][0, ~away]).all() and not np.isnan(found.metrics["bent"][0, away]).any()


def test_a_failed_cell_spoils_its_own_domain_and_the_candidate_never_looks_whole():
    loss = np.ones((3, 12), np.float32)
    loss[1, 2] = np.inf  # a/away, replicate 0
    failure = np.array([Failure.OK, Failure.NONFINITE, Failure.NONFINITE], np.int8)  # the last by a metric
    judged = Judged(tuple(CELLS), loss, {}, failure, {})
    found = np.isfinite(judged.losses("away"))
    assert found.tolist() == [[[True, True]] * 3, [[False, True], [True, True], [True, True]], [[False, False]] * 3]
    assert not np.isfinite(judged.losses("home"))[1:].any(), "a failure elsewhere has no place among these cells"


def test_step_form_judges_at_its_marks():
    task = evometa.task(
        space={"x": real(0, 1)}, domains=DOMAINS[:1], split=Split(["a"]), marks=(2, 5),
    )  # fmt: skip
    task.init(lambda key, c, support: jnp.float32(0))
    task.step(lambda key, c, learner, support: learner + c["x"])
    task.judge(lambda key, learner, query: {"loss": learner})
    built = task.build()
    cells = CompiledCells(built, datasets.load(built, ["a"]), Plan(1, 1, 1), 1)
    found = cells.host(stream_key(0, 0, Stream.EVALUATE), np.array([[1.0]], np.float32))
    assert dict(zip([c.query for c in cells.cells], found.loss[0].tolist(), strict=True)) == {
        "home": 5.0, "away": 5.0, "home@2": 2.0, "away@2": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("strategy", ["cma_es", "genetic", "random_search", "tpe"])
def test_nothing_differentiates_through_inner_training(tmp_path, strategy):
    """SYS-1: a trainer that raises when transposed is searched as any other."""

    @jax.custom_vjp
    def barrier(x):
        return x

    def forwards(x):
        return x, None

    def backwards(_, slope):
        raise AssertionError("somebody differentiated through the inner training")

    barrier.defvjp(forwards, backwards)
    task = evometa.task(space={"x": real(0, 1)}, domains=DOMAINS[:2], split=Split(["a"], ["b"]))
    task.fit(lambda key, c, support: barrier(c["x"]))
    task.judge(lambda key, learned, query: {"loss": (learned - 0.7) ** 2})
    with pytest.raises(AssertionError, match="differentiated"):
        jax.grad(lambda x: task.build().fit(None, {"x": x}, None))(0.5)
    run = evometa.run(task, strategy=strategy, population=8, generations=6, out=tmp_path)
    assert run.top(1)[0]["fitness"] < 0.01


# --- keys ---------------------------------------------------------------------------------------------------------------


def test_keys_follow_seed_generation_stream_domain_and_replicate_and_nothing_else():
    words = {
        as_int(stream_key(seed, generation, stream))
        for seed in (0, 1, 2**32, 2**40 + 1, 2**63 - 1)
        for generation in (0, 1, 1000)
        for stream in Stream
    }
    assert len(words) == 5 * 3 * len(Stream)
    key = stream_key(0, 0, Stream.EVALUATE)
    three = jax.random.key_data(cell_keys(key, ("a", "b", "c"), 3))
    assert len({tuple(row) for row in np.asarray(three).reshape(-1, 2).tolist()}) == 9
    # A domain's luck does not depend on its neighbours, nor a replicate's on how many there are.
    assert np.array_equal(jax.random.key_data(cell_keys(key, ("c",), 1))[0, 0], three[2, 0])
    assert all(0 <= as_int(k) < 2**63 for k in cell_keys(key, ("a",), 3)[0])


# --- plans and costs -----------------------------------------------------------------------------------------------------


def plan(**changes):
    usual = {"flops": 1e6, "live_bytes": 1e4, "population": 32, "row_bytes": 100.0, "devices": 2, "platform": "cpu"}
    return derive(**{**usual, **changes})


def test_plans_fill_devices_without_filler_where_they_can():
    assert plan().chunk * 2 in (16, 32) and 32 % (plan().chunk * plan().devices) == 0
    assert plan(population=24).chunk in (12, 6, 4, 3, 2, 1)
    assert plan(live_bytes=1e7).chunk == 1, "one candidate alone is too large for the cache"
    assert plan(population=2, devices=8).chunk == 1
    assert plan(flops=1e12).block == 1 and plan(flops=1.0).block == 256
    assert plan(row_bytes=1e9).block == 1
    assert plan(platform="gpu").devices == 1 and plan(platform="gpu").chunk == 32
    for value in (plan(), plan(flops=3e5), plan(population=7)):
        assert value.block & (value.block - 1) == 0 and value == derive_again(value)


def derive_again(value):
    return Plan(**value.to_json())


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"devices": -1}, {"block": 2.0}, {"chunk": True}])
def test_wrong_plans(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Plan(**wrong)


def test_a_plan_for_other_devices_is_refused():
    with pytest.raises(ResumeMismatch, match="wants 9 cpu devices, this process has 2"):
        Plan(1, 9, 1).require()
    Plan(1, 2, 1).require()


def test_costs_count_loops_and_products():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    product = cost(lambda a: a @ a, x)
    assert product.flops == 2 * 64**3 and product.live_bytes >= 64 * 64 * 4
    many = cost(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=10)[0], x)
    assert 10 * product.flops <= many.flops < 11 * product.flops
    assert many.live_bytes < 6 * 64 * 64 * 4, "a loop's memory is that of one step"
    either = cost(lambda a: jax.lax.cond(a[0, 0] > 0, lambda b: b @ b, lambda b: b, a), x)
    assert product.flops <= either.flops < 1.1 * product.flops


# --- data -----------------------------------------------------------------------------------------------------------------


def digest_of(support, query=0.0):
    return datasets.digest([datasets.Loaded("a", "train", support, {"away": query})])


def test_data_digests_see_every_change_and_no_address(tmp_path):
    base = {"x": np.arange(4.0), "y": [1, "two", None, True]}
    assert digest_of(base) == digest_of({"y": [1, "two", None, True], "x": np.arange(4.0)})
    others = [
        {"x": np.arange(4.0) + 1e-12, "y": base["y"]}, {"x": np.arange(4.0, dtype=np.float32), "y": base["y"]},
        {"x": np.arange(4.0).reshape(2, 2), "y": base["y"]}, {"x": np.arange(4.0), "y": [1, "two", None, False]},
        {"x": np.arange(4.0), "z": base["y"]},
    ]  # fmt: skip
    digests = [digest_of(base), *map(digest_of, others), digest_of(base, 1.0)]
    assert len(set(digests)) == len(digests)

    class Mine:
        def __init__(self, size):
            self.size = size

    assert digest_of(Mine(1)) == digest_of(Mine(1)) != digest_of(Mine(2))
    file = tmp_path / "data.txt"
    file.write_text("one")
    before = digest_of(file)
    file.write_text("two")
    assert digest_of(file) != before


class Slotted:
    __slots__ = ("__hidden", "unset")

    def __init__(self, hidden):
        self.__hidden = hidden


def test_data_digests_see_into_every_common_kind_of_data():
    """Of each kind two equal ones and a different one."""
    frame = {"x": [1.0, 2.0], "y": ["a", "b"]}
    loop: list = [1]
    loop.append(loop)
    kinds = {
        "frame": (pd.DataFrame(frame), pd.DataFrame(frame), pd.DataFrame({**frame, "y": ["a", "c"]})),
        "index": (pd.DataFrame(frame), pd.DataFrame(frame), pd.DataFrame(frame, index=[1, 2])),
        "series": (pd.Series([1, 2], name="a"), pd.Series([1, 2], name="a"), pd.Series([1, 3], name="a")),
        "sparse": (sparse.csr_matrix(np.eye(3)), sparse.csr_matrix(np.eye(3)), sparse.csr_matrix(2 * np.eye(3))),
        "spread": (sparse.csr_array(np.eye(3)), sparse.csr_array(np.eye(3)), sparse.csr_array(np.eye(4))),
        "set": ({"a", "b", 3}, {3, "b", "a"}, {"a", "b", 4}),
        "sets": ({frozenset({"a"}), ("b",)}, {("b",), frozenset({"a"})}, {("b",), frozenset({"c"})}),
        "slots": (Slotted(1), Slotted(1), Slotted(2)),
        "masked": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2])),
        "queue": (deque([1, 2]), deque([1, 2]), deque([2, 1])),
        "date": (date(2026, 1, 1), date(2026, 1, 1), date(2026, 1, 2)),
        "closure": (closure(1), closure(1), closure(2)),
        "partial": (partial(max, 1), partial(max, 1), partial(max, 2)),
        "objects": (np.array([1, "a"], object), np.array([1, "a"], object), np.array([1, "b"], object)),
        "cuts": (["ab", "c"], ["ab", "c"], ["a", "bc"]),
        "nests": ([[1], 2], [[1], 2], [[1, 2]]),
        "loop": (loop, loop, [2, loop]),
        "opaque": (object(), object(), 1),
        "slash": (["/", ".", "", "x" * 300], ["/", ".", "", "x" * 300], ["."]),
    }
    for kind, (one, same, other) in kinds.items():
        assert digest_of(one) == digest_of(same), kind
        assert digest_of(one) != digest_of(other), kind


def closure(number):
    return lambda: number


def test_data_digests_see_names_and_contents_in_folders(tmp_path):
    (tmp_path / "one").write_text("1")
    before = digest_of(str(tmp_path))
    (tmp_path / "one").rename(tmp_path / "two")
    assert digest_of(str(tmp_path)) != before


def test_loaders_run_once_each_and_their_errors_are_named():
    calls = []

    def lazy():
        calls.append(1)
        return np.float32(1)

    task = linear([Domain("a", lazy, {"away": lazy}), DOMAINS[1]])
    assert not calls
    (loaded,) = datasets.load(task, ["a"])
    assert len(calls) == 2 and loaded.support == 1 and loaded.role == "train"
    broken = linear([Domain("a", lambda: 1 / 0, {"away": 1.0})])
    with pytest.raises(evometa.EvometaError, match="'a' of task 'task' failed to load: ZeroDivisionError"):
        datasets.load(broken, ["a"])

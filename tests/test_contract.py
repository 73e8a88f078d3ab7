"""Domains, splits, objectives and tasks: what they hold, what they refuse, and that nothing is loaded by making them."""

from __future__ import annotations

import numpy as np
import pytest

import evometa
from evometa import Domain, Objective, Space, Split, leave_one_out, real
from evometa.contract import default_split
from evometa.errors import ConfigError

SPACE = Space({"x": real(0, 1)})


def explode():
    raise AssertionError("a loader was called")


def world(name, *queries):
    return Domain(name, explode, {query: explode for query in queries or ("home", "away")})


def make(**changes):
    fields = {
        "space": SPACE,
        "domains": [world("a"), world("b"), world("c")],
        "split": Split(("a",), ("b",), ("c",)),
        "runs": "python",
        **changes,
    }
    return evometa.task(**fields)


def finished(builder=None, **functions):
    builder = builder or make()
    builder.fit(lambda key, candidate, support: None)
    builder.judge(lambda key, learned, query: {"loss": 0.0})
    return builder.build()


def stepwise(**changes):
    builder = make(**changes)
    builder.init(lambda key, candidate, support: 0)
    builder.step(lambda key, candidate, learner, support: learner + 1)
    builder.judge(lambda key, learner, query: {"loss": float(learner)})
    return builder


# --- making a task loads nothing -----------------------------------------------------------------------------------


def test_making_and_changing_a_task_calls_no_loader():
    """SYS-2."""
    task = finished()
    task.with_(replicates=3, split=Split(("c",), ("a",)))
    assert task.query_names == ("home", "away") and task.domain("b").name == "b"
    assert repr(task.split) and task.objectives == (Objective("away"),)


def test_the_short_way():
    task = finished(
        evometa.task(
            space={"x": real(0, 4)}, domains={"a": {"support": 1, "away": 2, "tags": {"kind": "odd"}}}, runs="python"
        )
    )
    assert task.baseline == {"x": 2.0} and task.split == Split(("a",)) and task.name == "task"
    assert task.objective == Objective("away") and task.domains[0].tags == {"kind": "odd"}
    assert list(task.domains[0].queries) == ["away"]
    only = evometa.task(space=SPACE, domains={"a": {"support": 1, "held": 2}}, runs="python")
    assert finished(only).objective == Objective("held"), "the only query is the objective"


def test_a_black_box_says_that_it_is_one():
    @evometa.objective(space={"x": real(0, 1)}, runs="python")
    def task(key, candidate):
        return candidate["x"]

    assert task.black_box and task.split.train == ("everything",) and task.objective == Objective("seen")
    assert task.judge(0, task.fit(0, {"x": 0.5}, None), None) == {"loss": 0.5}


# --- splits ----------------------------------------------------------------------------------------------------------


def test_a_domain_has_one_role():
    split = Split(["a"], ["b"], ["c"])  # type: ignore[arg-type]
    assert split.train == ("a",) and [split.role(name) for name in "abcd"] == ["train", "validation", "test", None]
    for wrong in (Split, lambda *_: Split(("a", "b"), ("b",)), lambda *_: Split(("a", "a"))):
        with pytest.raises(ConfigError, match="at least one train domain|one role"):
            wrong(())


def test_leave_one_out():
    splits = leave_one_out(["a", "b", "c", "v"], validation=["v"])
    assert [split.test for split in splits] == [("a",), ("b",), ("c",)]
    assert all(split.validation == ("v",) for split in splits)
    assert all(set(split.train) == {"a", "b", "c"} - set(split.test) for split in splits)
    with pytest.raises(ConfigError, match="at least two domains"):
        leave_one_out(["a", "v"], validation=["v"])


def test_the_default_split_follows_names_and_not_positions():
    names = [f"domain{n}" for n in range(10)]
    split = default_split(names)
    assert split == default_split(names[::-1]) == default_split(sorted(names, key=hash))
    assert (len(split.train), len(split.validation), len(split.test)) == (6, 2, 2)
    assert set(split.train) | set(split.validation) | set(split.test) == set(names)
    # A newcomer moves nobody but those at the edges: roles belong to names.
    others = default_split([name for name in names if name != split.train[0]] + ["newcomer"])
    assert sum(others.role(name) == split.role(name) for name in names) >= 7
    assert default_split(["a", "b"]) == Split(("a", "b")), "too few to hold anything back"
    three = default_split(["a", "b", "c"])
    assert len(three.train) == len(three.validation) == len(three.test) == 1


# --- objectives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["away", "home:worst", "away:cvar:0.5", "away@50"])
def test_objectives_are_read_and_written_alike(text):
    assert str(Objective.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("away:wurst", 'Did you mean "worst"?'),
        ("away:cvar:0", "0 < fraction <= 1"),
        ("away:cvar:1.5", "1.5"),
        ("away:cvar:x", "QUERY"),
    ],
)
def test_wrong_objectives(text, words):
    with pytest.raises(ConfigError) as caught:
        Objective.parse(text)
    assert words in str(caught.value)


# --- both forms ---------------------------------------------------------------------------------------------------------


def test_step_form_names_its_marks():
    task = stepwise(marks=(5, 10, 20)).build()
    assert task.query_names == ("home", "away", "home@5", "home@10", "away@5", "away@10")
    assert stepwise(marks=(5, 10), objective="away@5").build().objective.query == "away@5"


WRONG_TASKS = {
    "no judge": (lambda: make().build(), ["judge", "@task.judge"]),
    "neither form": (lambda: (b := make(), b.judge(len), b.build()), ["either fit, or init", "neither"]),
    "both forms": (lambda: (b := stepwise(marks=(1,)), b.fit(len), b.build()), ["both"]),
    "no marks": (lambda: stepwise().build(), ["marks"]),
    "marks that do not grow": (lambda: stepwise(marks=(5, 5)).build(), ["increasing", "(5, 5)"]),
    "marks from zero": (lambda: stepwise(marks=(0, 5)).build(), [">= 1", "(0, 5)"]),
    "twice": (lambda: (b := make(), b.fit(len), b.fit(len)), ["fit is given twice"]),
    "no replicate": (lambda: finished(make(replicates=0)), ["replicates >= 1", "0"]),
    "no space": (lambda: finished(make()).with_(space={"x": 1}), ["expected a Space", "dict"]),
    "a name with a path": (lambda: finished(make(name="a/b")), ["letters, digits", "'a/b'"]),
    "two of one name": (lambda: finished(make(domains=[world("a"), world("a")])), ["same name"]),
    "a split of others": (lambda: finished(make(split=Split(("a", "z")))), ["no domain 'z'", "It has a, b, c"]),
    "an unknown query": (lambda: finished(make(objective="awy")), ["'awy'", 'Did you mean "away"?', "--objective home"]),
    "an unknown mark": (lambda: stepwise(marks=(5, 10), objective="away@7").build(), ["'away@7'", "away@5"]),
    "a mark without marks": (lambda: finished(make(objective="away@7")), ["'away@7'", "home, away"]),
    "a test domain without the query": (
        lambda: finished(make(domains=[world("a"), world("b"), world("c", "home")])), ["'away'", "'c'"]
    ),
    "a baseline outside": (lambda: finished(make(baseline={"x": 2.0})), ["0 .. 1", "2"]),
    "an unknown field": (lambda: finished(make(replicate=2)), ["replicate", 'Did you mean "replicates"?']),
    "a domain without a query": (lambda: Domain("a", 1, {}), ["at least one query"]),
    "a domain with a path": (lambda: Domain("../a", 1, {"away": 1}), ["letters, digits", "'../a'"]),
    "a domain without support": (lambda: make(domains={"a": {"away": 1}}), ["'support'", "['away']"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TASKS)
def test_a_wrong_task_says_what_was_expected(case):
    build, fragments = WRONG_TASKS[case]
    with pytest.raises(ConfigError) as caught:
        build()
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_object_runs_without_a_file(tmp_path):
    """The API takes a task as it is; the step form and marks work in plain Python too."""
    builder = stepwise(marks=(2, 4), domains={n: {"support": 1.0, "away": 2.0} for n in "abc"})
    run = evometa.run(builder, strategy="random_search", population=3, generations=2, out=tmp_path)
    rows = run.lineage().to_pylist()
    cells = {cell["query"]: cell["loss"] for cell in rows[0]["scores"]}
    assert cells == {"away": 4.0, "away@2": 2.0} and all(row["fitness"] == 4.0 for row in rows)
    assert run.params.keys() == {"x"} and run.generations == 2 and run.top(1)[0]["generation"] == 0
    assert np.isclose(run.champion.validation, 4.0)
    assert evometa.resume(run.path, generations=3).generations == 3


def test_a_sealed_domain_is_for_the_test_alone():
    """Whatever split a run asks for: no search and no level may have it."""
    from evometa.names import strategy_factory
    from evometa.nest import World, nest
    from evometa.nest_search import Lower

    domains = [Domain(name, 0.0, {"away": 0.0}, sealed=name == "c") for name in "abc"]
    made = evometa.task(
        name="t", space={"x": evometa.real(0, 1)}, domains=domains, split=Split(("a",), ("b",), ("c",)), objective="away",
        fit=lambda key, candidate, support: candidate["x"], judge=lambda key, learned, query: {"loss": learned},
    ).build()  # fmt: skip
    for split in (Split(("c",)), Split(("a",), ("c",))):
        with pytest.raises(ConfigError, match="domain 'c' is sealed"):
            made.with_(split=split)
    lower = Lower(lambda space, **options: strategy_factory("cma_es")(space, population=4, **options), 2)
    worlds = {"b": World(("a",), ("b",)), "c": World(("a",), ("c",))}
    assert nest(made, lower, worlds, Split(("b",), (), ("c",))).domain("c").sealed
    with pytest.raises(ConfigError, match="domain 'c' is sealed"):
        nest(made, lower, worlds, Split(("c",)))

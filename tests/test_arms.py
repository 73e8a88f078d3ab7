"""Control arms by one word each, for any task, and what an arm comes to in the plan of a study."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import RIDGE
from study_samples import BASE, QUAD, STUDY, write

from evometa.errors import ConfigError
from evometa.names import load_task
from evometa.study_arms import GENERAL, changes
from evometa.study_plan import plan


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the task in it, as current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quad.py").write_text(QUAD)
    return tmp_path


def planned(text: str, profile: str | None = None):
    """The plan's variants by label."""
    write(Path.cwd(), text)
    return {variant.label: variant for variant in plan(Path("q.toml"), profile).variants}


def test_every_word_changes_what_it_says(place):
    task = load_task("quad.py:task")
    values = {**BASE, "strategy": "cma_es", "strategy_options": {"sigma": 0.3}, "objective": "away:worst"}
    assert changes("random-search", task, values) == {"strategy": "random_search", "strategy_options": {}}
    assert changes("placebo", task, values) == {"placebo": True}
    assert changes("home", task, values) == {"objective": "home:worst"}
    assert changes("home", task, BASE) == {"objective": "home"}
    assert changes("static", task, values)["strategy"] == "static"
    options = changes("one", task, {**values, "task_options": {"wide": 0.9}})
    assert options == {"task_options": {"wide": 0.9, "control": "one"}}
    with pytest.raises(ConfigError, match=r'"placebo".*Task \'quad\' has .*one, oracle'):
        changes("placbo", task, values)
    assert changes("walk", task, values) == {"placebo": "noise"}
    assert set(GENERAL) == {"random-search", "placebo", "walk", "home", "static"}
    without = task.with_(domains=tuple(d.__class__(d.name, d.support, {"away": 0}) for d in task.domains))
    with pytest.raises(ConfigError, match="needs a query called 'home'.*has away"):
        changes("home", without, values)


@pytest.mark.parametrize("word", [*GENERAL, "one", "oracle"])
def test_the_plan_holds_every_control_at_equal_evaluations(place, word):
    found = planned(STUDY.partition("[arms.random]")[0] + f'[arms.c]\ncontrol = "{word}"\n')
    main, control = found["main"], found["c"]
    assert main.spec.strategy == "genetic" and main.evaluations == 8
    if word == "static":
        assert control.evaluations == 1 and not control.searches
    else:
        assert control.evaluations == 8 and control.searches
    same = {"placebo", "objective", "task_options", "strategy", "population", "generations", "strategy_options"}
    one, other = main.spec.model_dump(exclude=same), control.spec.model_dump(exclude=same)
    assert one == other, "nothing else differs"
    assert control.oracle == (word == "oracle")


def test_an_arm_changes_keys_of_the_base_and_keeps_the_others(place):
    head = STUDY.partition("[arms.main]")[0].replace("[base]", "[base]\nstrategy_options = {sigma = 0.1}")
    tail = '[arms.main]\n[arms.wide]\ntask_options = {wide = 0.95}\n[arms.cma]\nstrategy = "cma_es"\n'
    found = planned(head + tail + "[arms.fine]\nstrategy_options = {elites = 2}\n")
    assert found["main"].spec.strategy_options == {"sigma": 0.1}
    assert found["wide"].spec.task_options == {"wide": 0.95} and found["wide"].spec.strategy_options == {"sigma": 0.1}
    assert found["cma"].spec.strategy_options == {}, "another method has other hyperparameters"
    assert found["fine"].spec.strategy_options == {"sigma": 0.1, "elites": 2}


def test_a_sweep_of_several_keys_is_their_product(place):
    text = STUDY.partition("[[claims]]")[0].replace("[arms.main]", "[sweep]\nreplicates = [1, 2]\n[arms.main]")
    text = text.replace("replicates = [1, 2]", 'replicates = [1, 2]\n"task_options.wide" = [0.95, 1.0]')
    found = planned(text)
    assert [label for label in found if label.startswith("main")] == [
        f"main, replicates={r}, wide={w}" for r in (1, 2) for w in ("0.95", "1.0")
    ]
    study = plan(Path("q.toml"))
    assert study.sweeps["replicates"]["main, wide=1.0"] == [
        (1.0, "main, replicates=1, wide=1.0"), (2.0, "main, replicates=2, wide=1.0")
    ]  # fmt: skip
    names = [run.name for run in study.runs]
    assert len(set(names)) == len(names) == 2 * 3 * 4 and "main-s1-replicates-2-wide-0.95" in names
    assert [run.seed for run in study.runs] == [0] * 12 + [1] * 12, "seed after seed"


def test_a_swept_budget_is_compared_at_equal_values(place):
    text = STUDY.partition("[[claims]]")[0].replace("[arms.main]", "[sweep]\npopulation = [4, 8]\n[arms.main]")
    assert {v.evaluations for v in planned(text).values() if v.searches} == {8, 16}
    with pytest.raises(ConfigError, match="unequal budgets"):
        planned(text.replace("[arms.random]", "[arms.random]\npopulation = 4"))
    free = text.replace("[arms.random]", '[arms.random]\npopulation = 4\nbudget = "free"\nwhy = "as published"')
    assert planned(free)["random"].own.why == "as published"


def test_names_are_valid_and_short_however_long_the_values(place):
    long = "x" * 60
    text = STUDY.partition("[[claims]]")[0].replace(
        "[arms.main]", f'[sweep]\nname_of = ["{long}a", "{long}b"]\n[arms.main]'
    )
    text = text.replace("name_of", "task_options.control")
    study = plan(write(place, text))
    names = {run.name for run in study.runs}
    assert len(names) == 12 and all(len(name) <= 37 for name in names)


def test_a_profile_changes_base_seeds_and_arms(place):
    text = STUDY + '[profiles.smoke]\nseeds = [3, 4]\nbase = {generations = 1}\narms.main = {why = "x"}\n'
    found = planned(text, "smoke")
    assert found["main"].spec.generations == 1 and found["main"].own.why == "x"
    assert [run.seed for run in plan(Path("q.toml"), "smoke").runs][:3] == [3, 3, 3]
    assert plan(Path("q.toml")).runs[0].spec.generations == 2, "without a profile the file stands"
    with pytest.raises(ConfigError, match="an arm that does not exist: 'man'"):
        planned(text.replace("arms.main = {why", "arms.man = {why"), "smoke")


def test_several_levels_are_matched_by_the_run_that_they_end_in(place):
    nested = '[arms.nested]\nlevels = 2\nbudget = "free"\nwhy = "a level more"\nnest = {strategy = "genetic", generations = 2, population = 4}\n'
    text = STUDY.partition("[[claims]]")[0] + nested
    (place / "ridge.py").write_text(RIDGE)
    text = text.replace("quad.py:task", "ridge.py")
    found = planned(text)
    assert found["nested"].evaluations == 8 and found["nested"].outer_evaluations == 8
    assert found["main"].outer_evaluations == 0
    deployed = planned(text + "deploy = {generations = 4, population = 4}\n")
    assert deployed["nested"].evaluations == 16
    with pytest.raises(ConfigError, match="unequal budgets: arm 'nested' of 2 levels"):
        planned(text.replace('budget = "free"\n', ""))
    runs = {run.name: run.judged for run in plan(write(place, text)).runs}
    assert runs["nested-s0"] == "nested-s0-deployed" and runs["main-s0"] == "main-s0"
    with pytest.raises(ConfigError, match="only an arm of two or more levels"):
        planned(text.replace("[arms.main]", "[arms.main]\ndeploy = {generations = 2}"))

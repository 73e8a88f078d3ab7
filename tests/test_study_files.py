"""The studies that come with evometa: each can be planned, and one is run, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import cli

from evometa.contract import Task
from evometa.study_plan import plan
from evometa.tasks.ladder import ladder
from evometa.tasks.parts import words

pytest_plugins = ["shared"]

STUDIES = Path(__file__).parent.parent / "studies"
PROFILES = [
    ("ngram.toml", None), ("ngram.toml", "smoke"), ("ngram.toml", "standard"),
    ("neural.toml", None), ("neural.toml", "smoke"), ("neural.toml", "standard"), ("neural.toml", "full"),
    ("size.toml", None), ("size.toml", "smoke"), ("law.toml", None), ("law.toml", "smoke"),
    ("shift.toml", "frequency"), ("shift.toml", "length"), ("shift.toml", "compound"), ("shift.toml", "smoke"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "profile"), PROFILES)
def test_every_study_can_be_planned(file, profile, monkeypatch):
    """Arms, controls, claims and budgets fit together; no word list is read for it."""
    monkeypatch.setattr(words, "_read", None)
    study = plan(STUDIES / file, profile)
    evaluations = {v.evaluations for v in study.variants if v.searches and v.own.budget == "equal"}
    assert len(evaluations) == 1
    sealed = set(study.task.split.test) - set(study.spec.apart)
    languages = {name.partition("-")[0] for name in sealed}
    assert languages == (set(words.TEST) if profile in ("smoke", "standard") else set(words.VAULT))
    if profile not in ("smoke", "standard"):
        assert {name.partition("-")[0] for name in study.spec.apart} == {"hi"}, "Hindi is reported apart"
        assert len({words.FAMILIES[language] for language in languages}) == 8


@pytest.mark.parametrize("profile", ["smoke", "standard", "full"])
@pytest.mark.parametrize("file", ["dsl_godel.toml", "open_ended_losses.toml", "open_ended_ladder.toml"])
def test_stepping_stones_are_compared_at_equal_evaluations(file, profile, monkeypatch):
    """Open-ended search against both ablations of the Darwin Goedel Machine (F-OES), and against other searches."""
    monkeypatch.setattr(words, "_read", None)
    study = plan(STUDIES / file, profile)
    own = {v.arm: v for v in study.variants if v.searches}
    assert len({v.evaluations for v in own.values()}) == 1
    if profile != "smoke":
        assert {"open-ended", "best-only", "no-self-modification", "random-search"} < set(own)
        assert {claim["name"] for claim in study.spec.claims} >= {"the repertoire pays", "self-modification pays"}


def test_the_vault_is_of_languages_that_nothing_else_reads():
    assert not set(words.VAULT) & set(words.SCRIPTS)
    assert len(words.VAULT) == 16


def test_a_study_of_shifts_runs_small(tmp_path, monkeypatch, compile_cache):
    """S0-10: searched under one shift, tested under another; the profile is small enough for a test."""
    monkeypatch.chdir(tmp_path)
    said = cli("study", STUDIES / "shift.toml", "--profile", "smoke", "--json")
    assert said.code == 0, said.err
    arms = {row["arm"] for row in said.data["results"]["arms"]}
    assert {"static", "frequency", "length", "baseline"} == arms
    assert [row["domain"] for row in said.data["results"]["domains"]] == [f"{name}-length" for name in words.TEST]


@pytest.mark.parametrize(
    ("name", "arms"), [("ngram", {"static", "away", "home", "oracle"}), ("neural", {"static", "away"})]
)
def test_the_experiment_runs_small(name, arms, tmp_path, monkeypatch, compile_cache):
    """The whole way of the two verdicts: runs, one opening, tables, claims; nearly all of the time is compilation."""
    monkeypatch.chdir(tmp_path)
    said = cli("study", STUDIES / f"{name}.toml", "--profile", "smoke", "--json")
    assert said.code == 0, said.err
    assert {row["arm"] for row in said.data["results"]["arms"]} >= arms
    assert {row["domain"] for row in said.data["results"]["domains"]} == set(words.TEST)


def size(task: Task) -> int:
    return task.space.dimension


@pytest.mark.parametrize("growth", [0, 1, 2, 3])
def test_the_size_law(growth):
    """S0-11: object parameters x 2^k, the meta level x 2^(growth k)."""
    base = size(ladder(hidden=16))
    for scale in (1, 2):
        made = ladder(hidden=16, scale=scale, growth=growth)
        assert size(made) == base * 2 ** (growth * scale)
        assert made.fit.keywords["sizes"].hidden == 16 * 2**scale

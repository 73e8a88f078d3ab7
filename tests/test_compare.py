"""Run folders as arms: what is read from them, what is refused, what a reader is told. Real runs, opened together."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import cli, one_line
from hostile import forge_diary

from evometa import api, compare
from evometa.archives.read import Archive, list_parts
from evometa.archives.write import commit
from evometa.errors import ConfigError, EvometaError, NotFound, UsageError
from evometa.statistics import crossed, over_domains
from evometa.unseal import unseal_together

pytest_plugins = ["shared"]

# Two queries, three test domains of two families, seven inner steps per training.
WORLD = '''"""A parabola per domain, and luck."""
import numpy as np
import evometa

task = evometa.task(
    name="world",
    runs="python",
    space={"x": evometa.real(-1, 1), "y": evometa.real(-1, 1)},
    domains={f"d{n}": {"support": n, "home": n, "away": n + 1, "tags": {"family": "odd" if n % 2 else "even"}} for n in range(6)},
    split=evometa.Split(("d0", "d1"), ("d2",), ("d3", "d4", "d5")),
    objective="away",
    metrics=("inner_steps",),
    baseline={"x": 0.5, "y": 0.5},
)

@task.fit
def fit(key, candidate, support):
    return candidate["x"] + 0.1 * candidate["y"] + 0.02 * np.random.default_rng(key).normal()

@task.judge
def judge(key, learned, query):
    return {"loss": (learned + 0.05 * query) ** 2 + 0.01 * np.random.default_rng(key).normal(), "inner_steps": 7.0}
'''
SEEDS = (4, 7, 9)
ARMS = {"genetic": ("--strategy", "genetic"), "random_search": ("--strategy", "random_search")}


def search(name, seed, *more):
    arguments = ("--population", 6, "--generations", 3, "--seed", seed, "--name", name)
    said = cli("run", "world.py", *arguments, *more)
    assert said.code == 0, said.err
    return Path("runs") / name


def open_together(*paths):
    unseal_together([(Path(path), api.reopen(Path(path))) for path in paths])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opened")
    with contextlib.chdir(folder):
        Path("world.py").write_text(WORLD)
        paths = [search(f"{arm}-s{seed}", seed, *more) for arm, more in ARMS.items() for seed in SEEDS]
        open_together(*paths)
    return folder


@pytest.fixture
def folder(opened, enter_copy):
    """A copy of the opened runs, as current folder; may be changed."""
    return enter_copy(opened)


GENETIC, RANDOM = ([f"runs/{arm}-s{seed}" for seed in SEEDS] for arm in ARMS)
ALL = [*GENETIC, *RANDOM]


def by_hand(run, label, query):
    """`[N, S]` of a run's first opening, from its rows."""
    rows = [r for r in Archive(run).judgements().to_pylist() if (r["phase"], r["opening"]) == ("test", 1)]
    grid = np.full((3, 10), np.nan)
    for row in rows:
        if (row["label"], row["query"]) == (label, query):
            grid[("d3", "d4", "d5").index(row["domain"]), row["replicate"]] = row["loss"]
    return grid


def mend(run, column, change):
    """Another column in the part that holds the opening: a judgement that went differently."""
    part = next(p for p in list_parts(Path(run) / "judgements") if "test" in p.read(["phase"])["phase"].to_pylist())
    rows = part.read().to_pylist()
    for row in rows:
        row[column] = change(row)
    schema = part.read().schema
    part.path.unlink()
    commit(Path(run) / "judgements", pa.Table.from_pylist(rows, schema), part.first)


# --- what is read -----------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_arm(folder):
    """In whatever order they are given; the baseline is an arm too."""
    found = compare.load([RANDOM[2], *GENETIC[::-1], *RANDOM[:2]])
    assert list(found.arms) == ["random_search", "genetic", "baseline"]
    assert found.domains == ("d3", "d4", "d5") and set(found.queries) == {"home", "away"} and found.query == "away"
    for name, paths in (("genetic", GENETIC), ("random_search", RANDOM)):
        arm = found.arms[name]
        assert arm.seeds == SEEDS
        for query in ("home", "away"):
            assert np.array_equal(arm.losses[query], [by_hand(path, "champion", query) for path in paths])
    baseline = found.arms["baseline"]
    assert baseline.seeds == SEEDS
    assert np.array_equal(baseline.losses["away"], [by_hand(path, "baseline", "away") for path in RANDOM])
    assert found.notes == () and found.looks == {"d3": 1, "d4": 1, "d5": 1} and found.opening == 1


def test_results_equal_a_calculation_by_hand(folder):
    data = compare.results(compare.load(ALL), groups=compare.families(ALL[0], "family"))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    cells = np.array([(by_hand(p, "champion", "away") - by_hand(p, "baseline", "away")).mean(1) for p in GENETIC])
    row = data["differences"][0]
    expected = crossed(cells)
    assert row["arm"] == "genetic" and row["unit"] == "search seed x domain"
    assert [row[k] for k in ("difference", "low", "high", "p_value")] == pytest.approx(
        [*expected[:3], expected.p_value]
    )
    assert [p["difference"] for p in row["per_domain"]] == pytest.approx(list(cells.mean(0)))
    assert row["wins"] == int((cells.mean(0) < 0).sum()) and row["improvement"]["value"] == (cells < 0).mean()
    by_family = np.stack([cells[:, [0, 2]].mean(1), cells[:, 1]], axis=1)
    assert row["families"]["low"] == pytest.approx(crossed(by_family).low)
    p = [found["p_value"] for found in data["differences"]]
    assert min(found["p_holm"] for found in data["differences"]) == pytest.approx(min(1, 2 * min(p)))
    assert row["detectable"] > 0 and row["gap"] is None
    summary = data["arms"][0]["queries"]["home"]
    assert summary["mean"] == pytest.approx(np.mean([by_hand(p, "champion", "home") for p in GENETIC]))
    against = compare.results(compare.load(ALL), rival="random_search", query="home")
    assert [found["arm"] for found in against["differences"]] == ["genetic"], "the baseline is nobody's arm then"


def test_one_search_seed_speaks_of_its_champion_only(folder):
    data = compare.results(compare.load([GENETIC[1], RANDOM[1]], ["one", "two"]), rival="two")
    cells = by_hand(GENETIC[1], "champion", "away") - by_hand(RANDOM[1], "champion", "away")
    row = data["differences"][0]
    assert (row["unit"], row["searches"], row["detectable"]) == ("domain", 1, None)
    assert [row["low"], row["high"]] == pytest.approx(over_domains(cells)[1:3])


def test_an_oracle_closes_gaps(folder):
    names = ["oracle"] * 3 + ["plain"] * 3
    data = compare.results(compare.load(ALL, names))
    gaps = {row["arm"]: row["gap"] for row in data["differences"]}
    means = {row["arm"]: row["queries"]["away"]["mean"] for row in data["arms"]}
    assert gaps["oracle"] is None
    whole = means["baseline"] - means["oracle"]
    assert gaps["plain"]["value"] == pytest.approx((means["baseline"] - means["plain"]) / whole)


def test_what_each_run_used(folder):
    """SYS-6. A training is judged on two queries and counted once; scores are counted by query."""
    longer = search("longer", 4, "--strategy", "genetic", "--generations", 5)
    used = compare.budgets([GENETIC[0], str(longer)], ["short", "long"])
    short, long_ = used
    assert (short.run, short.arm, short.seed) == ("genetic-s4", "short", 4)
    assert (short.evaluations, short.trainings, short.inner_steps, short.told) == (18, 36, 36 * 7, {"away": 36})
    finalists = {
        r["label"] + str(r["genome"])
        for r in Archive(GENETIC[0]).judgements().to_pylist()
        if r["phase"] == "validation" and r["label"] != "baseline"
    }
    assert short.chosen == {"away": len(finalists) * 5} and short.seconds > 0
    assert (long_.evaluations, long_.trainings, long_.told) == (30, 60, {"away": 60})
    lines = compare.unequal(used)
    assert "candidates scored per run are unequal: short 18; long 30" in lines
    assert any(line.startswith("inner steps per run are unequal: short 252; long 420") for line in lines)
    assert compare.unequal(compare.budgets(ALL, ["a"] * 6)) == []


# --- what arms are called ------------------------------------------------------------------------------------------


def test_arms_are_called_by_the_shortest_difference(folder):
    more = [
        search("mild", 4, "--strategy", "genetic", "--set", "strategy_options.sigma=0.2"),
        search("home", 4, "--strategy", "genetic", "--objective", "home"),
        search("long", 4, "--strategy", "genetic", "--generations", 5),
    ]
    assert compare.label(ALL) == ["genetic"] * 3 + ["random_search"] * 3
    assert compare.label(GENETIC) == ["genetic"] * 3
    assert compare.label([GENETIC[0], more[1]]) == ["objective=away", "objective=home"]
    assert compare.label([GENETIC[0], more[2]]) == ["length=3", "length=5"]
    assert compare.label([GENETIC[0], more[0]]) == ["sigma=default", "sigma=0.2"]
    labels = compare.label([GENETIC[0], RANDOM[0], more[1]])
    assert len(set(labels)) == 3 and labels[2] == "genetic, objective=home" or labels[2] == "objective=home, genetic"
    assert compare.label([GENETIC[0], RANDOM[0]], ["mine", None]) == ["mine", "random_search"]


def test_a_seed_twice_in_one_arm_is_refused(folder):
    with pytest.raises(UsageError, match="genetic-s4 and genetic-s4 are both search seed 4 of 'genetic'.*NAME=RUN"):
        compare.load([GENETIC[0], GENETIC[0]])
    with pytest.raises(UsageError, match="genetic-s4 and random_search-s4 are both search seed 4 of 'x'"):
        compare.load(ALL, ["x"] * 6)
    with pytest.raises(UsageError, match="cannot be called 'baseline'"):
        compare.load(ALL[:1], ["baseline"])
    with pytest.raises(UsageError, match=r"one name per run \(6\), got 1"):
        compare.load(ALL, ["x"])
    with pytest.raises(UsageError, match="at least one run"):
        compare.load([])


def test_arms_of_other_baselines_keep_them_apart(folder):
    Path("world.py").write_text(WORLD.replace('"x": 0.5, "y"', '"x": -0.5, "y"'))
    other = search("moved", 4, "--strategy", "genetic")
    open_together(other)
    found = compare.load([*GENETIC, other], ["one"] * 3 + ["two"])
    assert list(found.arms) == ["one", "two", "baseline", "baseline of two"]
    assert found.notes == ("the arms do not share one baseline; 'baseline' is that of one",)
    assert np.array_equal(found.arms["baseline of two"].losses["away"][0], by_hand(other, "baseline", "away"))


# --- openings and looks -----------------------------------------------------------------------------------------------


def test_a_run_that_was_not_opened_is_refused_with_the_cure(folder):
    closed = search("closed", 4)
    with pytest.raises(EvometaError, match="closed has not been opened.*Type: evometa unseal runs/closed"):
        compare.load([*GENETIC, closed])
    with pytest.raises(NotFound):
        compare.load(["runs/nobody"])


def test_other_test_domains_are_refused(folder):
    other = search("other", 4, "--set", 'split.train=["d0"]', "--set", 'split.test=["d4","d5"]')
    open_together(other)
    with pytest.raises(
        EvometaError, match="genetic-s4 was opened on d3, d4, d5, other on d4, d5: only runs with the same"
    ):
        compare.load([GENETIC[0], other])


def test_other_data_under_the_same_names_are_refused(folder):
    Path("world.py").write_text(WORLD.replace('"away": n + 1', '"away": n + 2'))
    other = search("other", 4)
    open_together(other)
    with pytest.raises(EvometaError, match="domain 'd3' held other data"):
        compare.load([GENETIC[0], other])


def test_other_data_under_one_name_may_be_opened_together(folder):
    """As one look, on purpose (a control arm whose task holds the data otherwise): said, not refused."""
    Path("other.py").write_text(WORLD.replace('"away": n + 1', '"away": n + 2'))
    said = cli(
        "run", "other.py", "--population", 4, "--generations", 2, "--strategy", "genetic", "--seed", 4, "--name", "b"
    )
    assert said.code == 0, said.err
    shutil.rmtree("runs/genetic-s4")
    Path("runs/openings.jsonl").unlink()
    mine = search("a", 4)
    open_together(mine, "runs/b")
    found = compare.load([mine, "runs/b"], ["a", "b"])
    assert found.looks == {"d3": 1, "d4": 1, "d5": 1}
    assert "hold different data under one name, opened together: d3, d4, d5" in "; ".join(found.notes)


def test_every_look_is_shown(folder):
    """Opened once more, by one of the runs: the data are no longer unseen, for all of them."""
    before = compare.load(ALL)
    assert cli("unseal", GENETIC[0]).code == 0
    again = compare.load(ALL)
    assert again.looks == {"d3": 2, "d4": 2, "d5": 2} and again.opening == 1, "the newest that all have"
    assert np.array_equal(again.arms["genetic"].losses["away"], before.arms["genetic"].losses["away"])
    said = cli("compare", *ALL)
    assert "Opened more than once, so no longer unseen: d3, d4, d5." in said.out
    assert compare.load([GENETIC[0]]).opening == 2


def test_looks_without_their_ledger_are_not_known(folder):
    shutil.move("runs/openings.jsonl", "elsewhere.jsonl")
    found = compare.load(ALL)
    assert set(found.looks.values()) == {None} and "looks are not known" in found.notes[0]
    said = cli("compare", *ALL)
    assert said.code == 0 and "looks are not known" in said.out


def test_the_fewest_inner_seeds_are_compared(folder):
    more = search("more", 4)
    unseal_together([(more, api.reopen(more))], 12)
    found = compare.load([GENETIC[0], more], ["a", "b"])
    assert found.arms["b"].losses["away"].shape == (1, 3, 10) and "the first 10 of each" in found.notes[0]
    assert list(found.arms) == ["a", "b", "baseline"], "the same keys gave the same baseline"


def test_failed_cells_are_not_averaged(folder):
    mend(
        GENETIC[0],
        "loss",
        lambda r: math.nan if (r["label"], r["domain"], r["replicate"]) == ("champion", "d4", 2) else r["loss"],
    )
    data = compare.results(compare.load(ALL))
    assert data["differences"][0]["low"] is None and data["differences"][1]["low"] is not None
    assert data["arms"][0]["queries"]["away"]["failed"] == 1
    said = cli("compare", *ALL)
    assert "genetic failed in 1 cells of away" in said.out and "No interval: 1 of" in said.out
    # A failure that no cell shows spoils the arm, as at the opening itself.
    mend(RANDOM[0], "failure", lambda r: "error" if r["label"] == "champion" else r["failure"])
    assert compare.results(compare.load(ALL))["differences"][1]["low"] is None


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "another"), ("label", None), ("domain", "d0"), ("query", None), ("replicate", -1), ("replicate", None)],
)
def test_forged_judgements_are_one_line(folder, column, value):
    mend(GENETIC[0], column, lambda row: value)
    one_line(cli("compare", *ALL), 5, "opening 1 has judgements of ", GENETIC[0])


def test_a_forged_number_of_inner_seeds_is_one_line(folder):
    for run in ALL:
        forge_diary(Path(run), lambda entry: {**entry, "seeds": 2**40} if entry["kind"] == "opening" else entry)
    one_line(cli("compare", *ALL), 5, "expected at most 1000000 inner seeds of opening 1, got 1099511627776")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_table_names_estimand_unit_budgets_and_looks(folder):
    files = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    said = cli("compare", *ALL, "--families", "family")
    assert said.code == 0, said
    for words in (
        "Opening 1 of 3 test domains, 10 inner seeds",
        "method against method, on new search seeds and new domains like these; unit: search seed x domain.",
        "Difference: arm - baseline on away, paired, in units of the loss; below zero is better.",
        "over families",
        "home mean",
        "p (Holm) is corrected for the 2 comparisons of this table",
        "away 36",
    ):
        assert words in said.out, words
    assert "no longer unseen" not in said.out and "unequal" not in said.out.replace("scores that chose", "")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == files, "it only reads"


def test_json_is_the_results(folder):
    said = cli(
        "compare", *[f"a={path}" for path in GENETIC], *[f"b={path}" for path in RANDOM], "--rival", "b", "--json"
    )
    assert said.data == json.loads(json.dumps(compare.results(compare.load(ALL, list("aaabbb")), "b")))


def test_the_page_and_the_figure(folder):
    pytest.importorskip("vl_convert")
    said = cli("compare", *ALL, "--markdown", "out/page.md", "--figure", "out/drawn/f.svg")
    assert said.code == 0, said
    page = Path("out/page.md").read_text()
    assert page.startswith("# Comparison\n") and "![differences from baseline](drawn/f.svg)" in page
    assert "| arm | search seeds |" in page and "unit: search seed x domain" in page
    drawn = Path("out/drawn/f.svg").read_text()
    assert drawn.startswith("<svg") and "genetic" in drawn and "arm - baseline" in drawn
    assert cli("compare", *ALL, "--figure", "f.png").code == 0
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    assert cli("compare", *ALL, "--figure", "f.json").code == 0
    values = [layer["data"]["values"] for layer in json.loads(Path("f.json").read_text())["layer"]]
    assert sorted(map(len, values)) == [1, 2, 2, 6], "zero, two intervals, two means, two arms on three domains"


def test_without_the_extra_one_line_says_what_to_install(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "altair", None)
    one_line(cli("compare", *ALL, "--figure", "f.svg"), 2, "pip install 'evometa[reports]'")


def test_what_cannot_be_compared(folder):
    one_line(cli("compare", "nobody"), 3, "no run is called 'nobody'")
    one_line(cli("compare", "genetic-s44"), 3, 'Did you mean "genetic-s4"?')
    one_line(cli("compare", *ALL, "--rival", "genetik"), 2, "no arm is called 'genetik'", 'Did you mean "genetic"?')
    one_line(cli("compare", *ALL, "--query", "aways"), 2, "no query is called 'aways'", 'Did you mean "away"?')
    one_line(cli("compare", *ALL[:4], "--rival", "genetic"), 1, "same search seeds, but only 'genetic' has 7, 9")
    one_line(cli("compare", *ALL, "--figure", "f.pdf"), 2, "to end in .svg, .png, .json")
    one_line(cli("compare", *ALL, "--families", "famly"), 4, "no domain of world has a tag 'famly'", 'mean "family"')
    one_line(cli("compare", "=genetic-s4"), 2, "expected NAME=RUN")
    with pytest.raises(ConfigError):
        compare.families(ALL[0], "script")

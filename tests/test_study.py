"""Studies: arms x seeds at equal budgets, one opening together, and whatever may go wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import RIDGE, cli, one_line, start
from study_samples import STUDY, write
from test_kill import wait_for

import evometa
import evometa.study
from evometa.archives import events, ledger
from evometa.archives.read import Archive
from evometa.study_plan import plan

pytest_plugins = ["shared"]

ARMS = STUDY.replace(
    "[arms.random]",
    '[arms.placebo]\ncontrol = "placebo"\n\n[arms.oracle]\ncontrol = "oracle"\n\n[arms.random]',
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, as current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory, compile_cache):
    """A folder with a finished study in it: never to be changed."""
    folder = tmp_path_factory.mktemp("study")
    write(folder, ARMS)
    with contextlib.chdir(folder):
        said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    return folder, said.data


@pytest.fixture
def copy(done, tmp_path, monkeypatch):
    """A copy of it, as current folder."""
    shutil.copytree(done[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def without_time(data):
    """A report without what differs from one execution to the next."""
    if isinstance(data, dict):
        return {key: without_time(value) for key, value in data.items() if key not in ("seconds", "path")}
    return [without_time(value) for value in data] if isinstance(data, list) else data


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_folder_of_ordinary_runs_with_a_record(done):
    folder, data = done
    study = folder / "runs/q"
    arms = ["main", "placebo", "random", "nothing", "oracle"]
    names = [path.parent.name for path in study.glob("*/run.json")]
    assert sorted(names) == sorted(f"{arm}-s{seed}" for arm in arms for seed in (0, 1))
    assert [row["arm"] for row in data["arms"]] == arms, "oracles last"
    specs = {name: evometa.open(study / name).record["spec"] for name in names}
    assert {specs[f"{arm}-s1"]["seed"] for arm in arms} == {1}
    assert specs["random-s0"]["strategy"] == "random_search" and specs["main-s0"]["strategy"] == "genetic"
    assert specs["placebo-s0"]["placebo"] is True and specs["oracle-s0"]["task_options"] == {"control": "oracle"}
    assert evometa.open(study / "main-s0").generations == 2 and evometa.open(study / "nothing-s0").generations == 1
    record = json.loads((study / "study.json").read_text())
    assert record["study"]["base"]["population"] == 4 and len(record["runs"]) == 10
    assert {path.name for path in study.iterdir()} >= {"report.md", "report.json", "study.json"}
    assert json.loads((study / "report.json").read_text()) == data


def test_all_runs_are_opened_together_once_and_the_oracle_after_that(done):
    """One look for everybody; an oracle's use of the test data is entered before it begins, and told apart."""
    folder, data = done
    entries = ledger.read(folder / "runs")
    assert [entry.get("use") for entry in entries] == [None, "search", None]
    assert len(entries[0]["runs"]) == 8 and entries[1]["runs"] == entries[2]["runs"] == ["oracle-s0", "oracle-s1"]
    began = min(e["time"] for s in (0, 1) for e in events.read(folder / f"runs/q/oracle-s{s}"))
    assert entries[0]["time"] <= entries[1]["time"] <= began
    openings = [
        event["opening"] for path in (folder / "runs/q").glob("*-s?") for event in events.read(path)
        if event["kind"] == "opened"
    ]  # fmt: skip
    assert openings == [1] * 10
    assert [row["looks"] for row in data["results"]["domains"]] == [1, 1, 1] and data["opened_before"] == {}
    text = (folder / "runs/q/report.md").read_text()
    assert "oracle: searched on the test domains' own data" in text


def test_equal_seeds_are_judged_on_equal_cells(done):
    """The baseline of one search seed lost the same in every arm, so differences are paired."""
    folder, data = done
    assert [row["arm"] for row in data["results"]["arms"]][-1] == "baseline" and data["results"]["notes"] == []
    rows = [Archive(folder / f"runs/q/{arm}-s0").judgements().to_pylist() for arm in ("main", "nothing", "oracle")]
    losses = [
        {(r["domain"], r["query"], r["replicate"]): r["loss"] for r in some if r["phase"] == "test" and r["label"] == "baseline"}
        for some in rows
    ]  # fmt: skip
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 3 * 2 * 10


def test_the_report_has_budgets_and_the_verdict_as_declared(done):
    _, data = done
    used = {row["arm"]: row for row in data["results"]["budgets"]}
    assert used["main"]["evaluations"] == used["placebo"]["evaluations"] == [8, 8] and used["nothing"][
        "evaluations"
    ] == [1, 1]
    assert used["main"]["told"] == {"away": [16, 16]}
    assert used["main"]["inner_steps"] == [8 * 2 * 7, 8 * 2 * 7] and used["main"]["seconds"] > 0
    about = {row["arm"]: row for row in data["arms"]}
    assert about["main"]["free"] is False and about["nothing"] == {**about["nothing"], "free": True, "why": "no search"}
    verdict = data["verdict"]
    assert (
        verdict["confirms"] == ["searching helps"] and [c["name"] for c in verdict["claims"]][1] == "random is as good"
    )
    found = {row["arm"]: row for row in data["results"]["differences"]}
    assert verdict["claims"][0]["figure"] == pytest.approx(found["main"]["difference"])
    assert verdict["outcome"] == ("confirmed" if verdict["claims"][0]["holds"] else "undecided")
    gap = found["main"]["gap"]
    assert gap is not None and np.isfinite(gap["value"]), "an arm called oracle ends the gap"


def test_called_again_it_changes_nothing_and_reports_the_same(copy, done):
    before = {k: v for k, v in files_of(copy / "runs").items() if "report" not in k and "figure" not in k}
    said = cli("study", "q.toml", "--json")
    assert said.code == 0 and said.data == done[1]
    after = {k: v for k, v in files_of(copy / "runs").items() if "report" not in k and "figure" not in k}
    assert after == before
    assert "VERDICT" in cli("study", "q.toml").out


def test_every_arm_has_its_generalization_gap(copy, done):
    """S0-11: away - home, paired by cell; claims may ask for it as for a query."""
    folder, data = done
    arms = {row["arm"]: row for row in data["results"]["arms"]}
    for row in arms.values():
        means = row["queries"]
        assert row["gap"]["difference"] == pytest.approx(means["away"]["mean"] - means["home"]["mean"], abs=1e-9)
        assert row["gap"]["low"] <= row["gap"]["difference"] <= row["gap"]["high"]
    text = (folder / "runs/q/report.md").read_text()
    assert "| away - home |" in text and "the generalization gap" in text
    asking = ARMS.replace('rival = "baseline"', 'rival = "baseline"\nquery = "away-home"', 1)
    found = _findings(plan(write(copy, asking, "asked.toml")), copy / "runs" / "q")
    assert found[0]["figure"] == pytest.approx(
        arms["main"]["gap"]["difference"] - arms["baseline"]["gap"]["difference"]
    )


def _findings(study, path):
    arms = evometa.study.compare.load(*evometa.study.study_record.arms_of(path)).arms
    return evometa.study._verdict(study, arms, "away", {})["claims"]


def test_a_run_that_searches_on_sealed_data_is_a_look(place, compile_cache):
    """Outside a study, too: it is in the ledger before the first candidate, and whoever opens the data is told."""
    from evometa import api, unseal
    from evometa.session import prepare
    from evometa.spec import build

    write(place)
    quad = (place / "quad.py").read_text()
    kin = '{"kin": "odd" if n % 2 else "even"}'
    (place / "quad.py").write_text(quad.replace(kin, kin[:-1] + ', **({"copy_of": name[:2]} if "-" in name else {})}'))
    values = {"task": "quad.py:task", "strategy": "random_search", "population": 4, "generations": 2}
    cheat, plain = (build({**values, "task_options": {"control": c}}) for c in ("oracle", ""))
    run = api.begin(cheat.model_copy(update={"name": "cheat"}), place / "runs")
    if not ledger.read(place / "runs"):  # where `begin` does not say it itself
        unseal.enter_search(run.path, prepare(cheat))
    (entry,) = ledger.read(place / "runs")
    assert entry["use"] == "search" and entry["runs"] == ["cheat"] and set(entry["domains"]) == {"d3", "d4", "d5"}
    assert [e["domains"] for e in events.read(run.path) if e["kind"] == "searched"] == [["d3", "d4", "d5"]]
    fair = api.begin(plain.model_copy(update={"name": "fair"}), place / "runs")
    unseal.enter_search(fair.path, prepare(plain))
    unseal.enter_search(run.path, prepare(cheat))
    assert len(ledger.read(place / "runs")) == 1, "one has searched on its own data, the other was entered before"
    assert fair.unseal()["looks"] == 2, "equal data: the second look"
    run.unseal()
    said = cli("compare", "cheat=runs/cheat", "fair=runs/fair")
    assert said.code == 0, said.err
    assert "a bound and no method: cheat" in said.out and "no longer unseen: d3, d4, d5" in said.out


def test_a_single_run_of_a_study_counts_in_the_ledger_beside_it(copy):
    assert cli("unseal", "runs/q/main-s0", "--json").data["looks"] == 4
    assert not (copy / "runs/q/openings.jsonl").exists() and len(ledger.read(copy / "runs")) == 4


def test_another_study_under_the_same_name_is_refused(copy):
    write(copy, ARMS.replace("population = 4", "population = 8"))
    before = files_of(copy / "runs")
    one_line(cli("study", "q.toml"), 6, "base.population", "was 4, is 8", "name = ")
    assert files_of(copy / "runs") == before


def test_a_run_that_was_carried_on_is_noticed(copy):
    assert cli("resume", "runs/q/main-s0", "--generations", 3).code == 0
    one_line(cli("study", "q.toml"), 1, "main-s0", "3 generations", "the study has 2")


SMALL = STUDY.partition("[[claims]]")[0]


@pytest.mark.parametrize(
    ("change", "code", "fragments"),
    [
        (("[arms.random]", "[arms.random]\npopulation = 8"), 4, ["unequal budgets", "'main'", "8 evaluations", "'random' 16"]),
        (('"random-search"', '"randm-search"'), 4, ["q.toml:14", "'randm-search'", 'mean "random-search"', "placebo", "oracle"]),
        (('rival = "baseline"', 'rival = "basline"'), 4, ["q.toml:20", "searching helps", "'basline'", 'mean "baseline"']),
        (('confirms = ["searching helps"]', 'confirms = ["searching"]'), 4, ["q.toml", "no claim", "'searching'"]),
        (('[arms.main]', '[arms.main]\ntask_options = {test = ["d3"]}'), 4, ["different test domains", "d3", "'random'"]),
        (('[arms.main]', '[arms.main]\nbudget = "free"'), 4, ["q.toml:11", "reason", "why"]),
        (("seeds = 2", "seeds = 1"), 4, ["q.toml:3", "at least 2 search seeds"]),
        (("seeds = 2", "seeds = [1, 1]"), 4, ["q.toml:3", "different seeds"]),
        (("seeds = 2", "seed = 2"), 4, ["q.toml:3", "unknown key 'seed'", 'mean "seeds"']),
        (("population = 4", "popluation = 4"), 4, ["q.toml:8", "unknown key 'popluation'", 'mean "population"']),
        (("population = 4", "seed = 4"), 4, ["q.toml:8", "base.seed is set by the study"]),
        (('strategy = "genetic"', 'strategy = "gentic"'), 3, ["'gentic'", 'mean "genetic"']),
        (("seeds = 2", "seeds = 2\ninner_seeds = 5"), 4, ["inner_seeds", "10", "got 5"]),
        (("seeds = 2", 'seeds = 2\nrival = "man"'), 4, ["q.toml:4", "'man'", "main"]),
        (("[base]", '[sweep]\npopulation = 4\n[base]'), 4, ["sweep.population", "list of values"]),
        (("[arms.main]", '[arms.main]\ncontrol = "oracle"\n[arms.x]\ncontrol = "home"\nobjective = "awy"'), 4, ["'awy'", 'mean "away"']),
        (("name = \"q\"", "name = \"a/b\""), 4, ["q.toml:2", "expected a name", "'a/b'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_run(place, change, code, fragments):
    assert change[0] in STUDY
    write(place, STUDY.replace(*change, 1))
    one_line(cli("study", "q.toml"), code, *fragments)
    assert not (place / "runs").exists()


def test_other_calls_that_cannot_work(place):
    write(place)
    one_line(cli("study", "r.toml"), 3, "no spec file", "r.toml")
    one_line(cli("study", "q.toml", "--profile", "smoke"), 3, "no profile 'smoke'", "It has none")
    write(place, SMALL.replace('"random_search"', '"genetic"') + "\n[verdict]\nconfirms = []\n")
    one_line(cli("study", "q.toml"), 4, "a verdict needs claims")
    text = (
        (place / "quad.py")
        .read_text()
        .replace('split=evometa.Split(train, ("d2",), test)', "split=evometa.Split(train)")
    )
    (place / "quad.py").write_text(text)
    (place / "q.toml").write_text(SMALL)
    one_line(cli("study", "q.toml"), 4, "no test domain")


def test_equal_inner_steps(place):
    """Measured on the baseline before anything is run; a task that does not count them cannot have this budget."""
    slow = SMALL.replace("seeds = 2", 'seeds = 2\nbudget = "inner_steps"').replace(
        "[arms.random]", "[arms.random]\ntask_options = {steps = 9}"
    )
    write(place, slow)
    one_line(cli("study", "q.toml"), 4, "'main'", "112 inner steps", "'random'", "144")
    (place / "quad.py").write_text((place / "quad.py").read_text().replace(', "inner_steps": steps', ""))
    one_line(cli("study", "q.toml"), 4, "does not report inner_steps")
    assert not (place / "runs").exists()


def test_a_dry_run_says_what_it_will_cost_and_leaves_nothing(place, compile_cache, monkeypatch):
    write(place, ARMS)
    (place / "quad.py").write_text((place / "quad.py").read_text().replace(
        "time.sleep", 'os.mkdir(f"saw-{support}-{time.monotonic_ns()}"); time.sleep'))  # fmt: skip
    before = set(files_of(place))
    said = cli("study", "q.toml", "--dry-run", "--json")
    assert said.code == 0, said.err
    assert said.data["runs"] == 10 and said.data["evaluations"] == 2 * (4 * 8 + 1)
    rows = {row["arm"]: row for row in said.data["arms"]}
    assert rows["main"]["trainings"] == 16 and rows["main"]["inner_steps"] == 16 * 7
    assert said.data["minutes"] > 0 and all(row["minutes"] > 0 for row in said.data["arms"])
    assert {path.name.split("-")[1] for path in place.glob("saw-*")} == {"0", "1"}, (
        "no test domain, not even the oracle's copies"
    )
    assert {name for name in files_of(place) if "__pycache__" not in name} == before
    assert "10 runs, 66 evaluations" in cli("study", "q.toml", "--dry-run").out


SWEEP = """
name = "sweep"
seeds = [1]

[base]
task = "quad.py:task"
strategy = "random_search"
population = 4
generations = 2

[arms.main]

[arms.fixed]
task_options.wide = 0.92

[sweep]
task_options.wide = [0.95, 1.0]

[profiles.smoke]
seeds = [5]
sweep = {task_options.wide = [0.96, 0.98, 1.0]}
base = {population = 5}

[[claims]]
name = "wider is worse"
kind = "trend"
arm = "main"
over = "task_options.wide"
direction = "rises"
"""


def test_a_sweep_is_arms_times_values_and_a_profile_changes_it(place, compile_cache):
    write(place, SWEEP)
    said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    names = {path.parent.name for path in Path("runs/sweep").glob("*/run.json")}
    assert names == {f"main-s{s}-wide-{v}" for s in (1,) for v in ("0.95", "1.0")} | {"fixed-s1"}
    assert [row["arm"] for row in said.data["arms"]] == ["main, wide=0.95", "main, wide=1.0", "fixed"]
    points = said.data["sweeps"]["task_options.wide"]
    assert points == {"main": [[0.95, "main, wide=0.95"], [1.0, "main, wide=1.0"]]}
    assert said.data["verdict"]["declared"] is False and said.data["verdict"]["claims"][0]["kind"] == "trend"
    text = Path("runs/sweep/report.md").read_text()
    assert "## Sweep of task_options.wide" in text and "## Claims" in text
    record = evometa.open("runs/sweep/main-s1-wide-0.95").record
    assert record["spec"]["task_options"] == {"wide": 0.95} and record["seed"] == 1
    plan = cli("study", "q.toml", "--profile", "smoke", "--dry-run", "--json").data
    assert plan["study"] == "sweep-smoke" and plan["seeds"] == [5]
    assert [(row["arm"], row["population"]) for row in plan["arms"]] == [
        ("main, wide=0.96", 5), ("main, wide=0.98", 5), ("main, wide=1.0", 5), ("fixed", 5)
    ]  # fmt: skip


def test_data_that_were_seen_before_cannot_confirm(place, compile_cache):
    """A study marks domains that the ledger knows, and says so; only a rule that allows it beforehand confirms."""
    text = (
        SMALL.partition("[arms.random]")[0]
        .replace("seeds = 2", "seeds = 3")
        .replace("generations = 2", "generations = 4")
    )
    claim = STUDY.partition("[[claims]]")[2].partition("[[claims]]")[0]
    text += f'[[claims]]{claim}\n[verdict]\nconfirms = ["searching helps"]\n'
    write(place, text)
    first = cli("study", "q.toml", "--json")
    assert first.code == 0, first.err
    assert first.data["verdict"]["outcome"] == "confirmed" and first.data["opened_before"] == {}
    shutil.rmtree(place / "runs/q")  # deleting a study makes nobody forget
    again = cli("study", "q.toml", "--json").data
    assert again["opened_before"] == {"d3": 1, "d4": 1, "d5": 1}
    assert [row["looks"] for row in again["results"]["domains"]] == [2, 2, 2]
    assert again["verdict"]["outcome"] == "undecided" and "opened before" in again["verdict"]["why"]
    assert "Opened before this study: d3 (1 look)" in Path("runs/q/report.md").read_text()
    write(place, text.replace('name = "q"', 'name = "allowed"').replace("[verdict]", "[verdict]\nallow_opened = true"))
    assert cli("study", "q.toml", "--json").data["verdict"]["outcome"] == "confirmed"


def test_killed_anywhere_it_comes_to_the_same_report(place, compile_cache, done):
    """In the middle of a run, between the opening's judgements, among the oracles: one look, the same numbers."""
    write(place, ARMS)
    study = place / "runs/q"
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def opened(name):
        return any(event["kind"] == "opened" for event in events.read(study / name))

    for reached in (
        lambda: any((study / "random-s0/cells").glob("**/*")),
        lambda: opened("placebo-s0") and not opened("nothing-s1"),
        lambda: (study / "oracle-s0/run.json").exists(),
    ):
        process = start(place, "study", "q.toml", **env, EVOMETA_TEST_SLEEP="0.02")
        wait_for(reached, process)
        assert reached(), process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    assert without_time(said.data) == without_time(done[1])
    assert len(ledger.read(place / "runs")) == 3
    assert cli("archive", "check", "runs/q/random-s0").code == 0


def test_a_signal_says_how_to_go_on(place, compile_cache):
    write(place, SMALL)
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = start(place, "study", "q.toml", **env, EVOMETA_TEST_SLEEP="0.03")
    wait_for(lambda: any((place / "runs/q/random-s0/cells").glob("**/*")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", err
    last = err.strip().splitlines()[-1]
    assert last == "evometa: stopped after 1 of 6 runs. Go on with: evometa study q.toml", err


NESTED = """
name = "nested"
seeds = 1

[base]
task = "ridge.py"
strategy = "random_search"
population = 4
generations = 2

[arms.nested]
levels = 2
budget = "free"
why = "a level more"
champion = {observed = 1, replicates = 2}
nest = {strategy = "random_search", tunes = {}, generations = 3, population = 3}
deploy = {generations = 2, population = 4}
"""


def test_an_arm_of_two_levels_ends_in_the_run_that_it_deploys(place, compile_cache):
    """The upper search is never opened; the run with its champion's settings is the arm's figure."""
    (place / "ridge.py").write_text(RIDGE)
    write(place, NESTED)
    said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    upper, below = evometa.open("runs/nested/nested-s0"), evometa.open("runs/nested/nested-s0-deployed")
    assert upper.record["spec"]["levels"] == 2 and "levels" not in below.record["spec"]
    assert below.generations == 2 and below.record["strategy"]["population"] == 4
    assert upper.champion is not None
    assert upper.record["spec"]["champion"] == {"observed": 1, "replicates": 2}
    assert below.record["spec"]["champion"] == {"observed": 4, "replicates": 5}, "chosen as any ordinary run's is"
    assert below.record["spec"]["start"] == pytest.approx([float(x) for x in upper.champion.genome])
    assert [e["kind"] for e in events.read(upper.path)].count("opening") == 0
    assert said.data["results"]["budgets"][0]["runs"] == ["nested-s0-deployed"]
    assert said.data["upper_budgets"][0]["evaluations"] == [8, 8]
    assert "evaluations above" in Path("runs/nested/report.md").read_text()
    assert cli("study", "q.toml", "--json").data == said.data


def test_how_a_deployed_runs_champion_is_chosen_is_in_the_record(place):
    """A study says it where it differs from the arm's own way; where it does not, the record is what it always was."""
    (place / "ridge.py").write_text(RIDGE)
    deploy = "deploy = {generations = 2, population = 4"
    own = ", champion = {observed = 1, replicates = 2}"

    def recorded(text):
        return plan(write(place, text)).record()["study"]["arms"]["nested"]["deploy"]

    assert recorded(NESTED.replace(deploy, deploy + own)) == {"generations": 2, "population": 4}
    assert recorded(NESTED)["champion"] == {"observed": 4, "replicates": 5}
    other = recorded(NESTED.replace(deploy, deploy + ", champion = {observed = 7}"))
    assert other["champion"] == {"observed": 7, "replicates": 5}
    plain = NESTED.replace("champion = {observed = 1, replicates = 2}\n", "").replace(deploy + "}\n", "")
    assert recorded(plain) is None
    write(place, NESTED.replace(deploy, deploy + ", champion = {obsrved = 7}"))
    one_line(cli("study", "q.toml"), 4, "q.toml:", "obsrved", 'mean "observed"')


def test_a_profile_may_keep_some_arms(place):
    """Claims go with the arms that they need, and a verdict with any of its claims: a rule holds whole or not at all."""
    kept = plan(write(place, STUDY + '\n[profiles.two]\nonly = ["random", "nothing"]\n'), "two")
    assert [variant.arm for variant in kept.variants] == ["random", "nothing"]
    assert kept.spec.claims == [] and kept.spec.verdict is None and kept.rule is None
    kept = plan(write(place, STUDY + '\n[profiles.two]\nonly = ["main", "nothing"]\n'), "two")
    assert [claim["name"] for claim in kept.spec.claims] == ["searching helps"]
    assert kept.rule is not None and kept.rule.confirms == ("searching helps",)
    refuting = STUDY + 'refutes = ["random is as good"]\n\n[profiles.two]\nonly = ["main", "nothing"]\n'
    assert plan(write(place, refuting), "two").spec.verdict is None
    write(place, STUDY + '\n[profiles.two]\nonly = ["mian"]\n')
    one_line(cli("study", "q.toml", "--profile", "two"), 4, "q.toml:", "keeps an arm", "'mian'", 'mean "main"')


def test_two_processes_do_not_run_one_study(copy):
    from evometa.folder import locked

    with locked(copy / "runs/q"):
        one_line(cli("study", "q.toml"), 1, "another process is running q", str(os.getpid()))


def test_compare_takes_a_study_for_its_runs(copy, done):
    said = cli("compare", "runs/q", "--json")
    assert said.code == 0, said.err
    shown = {row["arm"]: row["difference"] for row in said.data["differences"]}
    wanted = {row["arm"]: row["difference"] for row in done[1]["results"]["differences"]}
    assert shown == pytest.approx(wanted, rel=1e-12)  # sums over the same numbers, in another order in memory


def test_a_domain_apart_is_shown_and_never_averaged(place, compile_cache):
    write(place, STUDY.replace('name = "q"', 'name = "q"\napart = ["d4"]\nfamilies = "kin"'))
    said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    results, apart = said.data["results"], said.data["apart"]
    assert [row["domain"] for row in results["domains"]] == ["d3", "d5"]
    assert {row["domain"] for row in apart} == {"d4"} and {"main", "baseline"} <= {row["arm"] for row in apart}
    main = next(row for row in apart if row["arm"] == "main")
    assert main["difference"] < 0 and main["low"] <= main["difference"] <= main["high"]
    lost = [
        [row["loss"] for row in Archive(place / "runs" / "q" / f"main-s{seed}").judgements().to_pylist() if wanted(row)]
        for seed in (0, 1)
    ]
    mean = next(row for row in results["arms"] if row["arm"] == "main")["queries"]["away"]["mean"]
    assert mean == pytest.approx(np.mean(lost)), "the others alone"
    assert "SHOWN APART" in cli("study", "q.toml").out


def wanted(row):
    return row["phase"] == "test" and row["label"] == "champion" and row["query"] == "away" and row["domain"] != "d4"


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ('apart = ["d9"]', ("apart: no test domain is called 'd9'", "d3, d4, d5")),
        ('apart = ["d3", "d4", "d5"]', ("at least one test domain that is averaged",)),
        ("evaluations = 10", ("10 do not divide into generations of 4", "Try 8")),
    ],
)
def test_domains_apart_and_budgets_that_cannot_be(place, line, fragments):
    write(place, STUDY.replace('name = "q"', f'name = "q"\n{line}'))
    one_line(cli("study", "q.toml"), 4, "q.toml:", *fragments)


def test_a_budget_sets_the_generations_of_every_arm(place, compile_cache):
    write(place, STUDY.replace('name = "q"', 'name = "q"\nevaluations = 12'))
    said = cli("study", "q.toml", "--json")
    assert said.code == 0, said.err
    used = {row["arm"]: row["evaluations"] for row in said.data["results"]["budgets"]}
    assert used["main"] == used["random"] == [12, 12] and used["nothing"] == [1, 1]


def test_a_session_serves_every_seed(place, compile_cache):
    """What a study traces once per arm gives what a run of its own gives."""
    from evometa import api
    from evometa.session import prepare, reseeded
    from evometa.spec import build

    (place / "ridge.py").write_text(RIDGE)
    values = {"task": "ridge.py", "population": 4, "generations": 3}
    first = prepare(build({**values, "seed": 0}))
    spec = build({**values, "seed": 5})
    shared = api.begin(spec, place / "a", session=reseeded(first, spec))
    alone = api.begin(spec, place / "b")
    tables = [run.lineage(["genome", "scores", "seed"]) for run in (shared, alone)]
    assert tables[0].equals(tables[1]) and shared.record == {**alone.record}
    assert shared.champion.genome.tobytes() == alone.champion.genome.tobytes()
    api.resume(shared.path, generations=4)
    with pytest.raises(ValueError, match="more than their seed"):
        reseeded(first, build({**values, "population": 8}))


def test_a_later_look_never_replaces_the_studys_own(copy, done):
    """What somebody opens afterwards is another look: the verdict stays with the first."""
    for run in (copy / "runs" / "q").glob("*-s?"):
        assert cli("unseal", run).code == 0
    again = cli("study", "q.toml", "--json")
    assert again.code == 0, again.err
    assert again.data["results"]["opening"] == 1
    assert again.data["results"]["differences"] == done[1]["results"]["differences"]


def test_without_the_ledger_nothing_is_confirmed(copy):
    """An oracle's use of the data could not be entered, and who looked before could not be told."""
    from evometa.study import _verdict

    study = plan(copy / "q.toml")
    arms = evometa.study.compare.load(*evometa.study.study_record.arms_of(copy / "runs" / "q")).arms
    assert _verdict(study, arms, "away", {})["outcome"] == "confirmed"
    assert "not beside the study" in _verdict(study, arms, "away", None)["why"]
    assert _verdict(study, arms, "away", None)["outcome"] == "undecided"
    (copy / "runs" / "openings.jsonl").unlink()
    one_line(cli("study", "q.toml"), 1, "the ledger openings.jsonl", "Put it back beside the study")


def test_the_same_words_are_the_same_data_whatever_is_made_of_them(place):
    """A task that names what its domains are made of is known by it, also where the arrays differ."""
    from evometa.archives import ledger

    line = {"data_digest": "x", "seeds": 10}
    ledger.append(place, {**line, "domains": {"a": "1"}, "sources": {"a": "list/a"}, "announced": ["first"]})
    ledger.append(place, {**line, "domains": {"a": "2"}, "sources": {"a": "list/a"}, "announced": ["second"]})
    ledger.append(place, {**line, "domains": {"a": "3"}, "announced": ["third"]})
    assert ledger.before(place, ["first"]) == {}
    assert ledger.before(place, ["second"]) == {"a": 1}
    assert ledger.before(place, ["third"]) == {}
    assert ledger.before(place, ["nobody"]) is None


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("[arms.main]", '[sweep]\n"task_options.wide" = [1.0, 1.0]\n[arms.main]', ("two runs would be called",)),
        ("[arms.random]", '[arms.c]\ntask_options = {control = "copied"}\n[arms.random]', ("searches on copies",)),
        ("[arms.random]", "[arms.deep]\nlevels = 2\n[arms.random]", ("unequal budgets", "of 2 levels", "free")),
    ],
)
def test_what_would_spoil_a_study_is_refused(place, old, new, fragments):
    path = write(place, STUDY.replace(old, new))
    quad = (place / "quad.py").read_text()
    quad = quad.replace('if control == "oracle":', 'if control in ("oracle", "copied"):')
    kin = '{"kin": "odd" if n % 2 else "even"}'
    (place / "quad.py").write_text(quad.replace(kin, kin[:-1] + ', **({"copy_of": name[:2]} if "-" in name else {})}'))
    one_line(cli("study", path), 4, "q.toml:", *fragments)

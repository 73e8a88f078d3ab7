"""The test domains: opened by one module, recorded before anything is seen, counted wherever they were opened."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import cli, lineage_files, one_line
from scipy import stats

import evometa
from evometa import api, unseal
from evometa.archives import events, ledger
from evometa.archives.read import Archive
from evometa.errors import EvometaError
from evometa.evaluate import data as datasets
from evometa.folder import locked

pytest_plugins = ["shared"]

# Loaders that say so in $EVOMETA_TEST_LOADS.
LAZY = """
import os
import numpy as np
import evometa

def loader(name, part):
    def load():
        with open(os.environ["EVOMETA_TEST_LOADS"], "a") as file:
            file.write(f"{name} {part}\\n")
        return float(len(name))
    return load

task = evometa.task(
    name="lazy", runs="python", space={"x": evometa.real(0, 1)}, objective="away",
    domains=[evometa.Domain(n, loader(n, "support"), {"away": loader(n, "away")}) for n in ("tr", "val", "sealed", "unused")],
    split=evometa.Split(("tr",), ("val",), ("sealed",)),
)

@task.fit
def fit(key, candidate, support):
    return candidate["x"]

@task.judge
def judge(key, learned, query):
    return {"loss": (learned - 0.3) ** 2 + np.random.default_rng(key).normal() * query * 0.01}
"""


def test_nobody_but_unseal_loads_a_test_domain(tmp_path, monkeypatch):
    """SYS-2: run, resume, replay, fork, report, check, watch and every look at the archive leave the data alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOMETA_TEST_LOADS", str(tmp_path / "loads.txt"))
    Path("lazy.py").write_text(LAZY)

    def loads():
        return {line.split()[0] for line in Path("loads.txt").read_text().splitlines()}

    base = ("--population", 4, "--generations", 3, "--strategy", "genetic")
    for arguments in (
        ("run", "lazy.py", *base, "--dry-run"),
        ("run", "lazy.py", *base, "--name", "x"),
        ("resume", "x", "--generations", 4),
        ("run", "lazy.py", "--population", 4, "--generations", 5, "--strategy", "genetic", "--from", "x@2"),
        ("archive", "show", "x", "1:1", "--replay"),
        *[(command, "x") for command in ("report", "watch")],
        *[("archive", command, "x") for command in ("ls", "top", "check", "scores")],
        ("archive", "query", "x", "SELECT * FROM judgements"),
        ("archive", "lineage", "x", "2:1"),
        ("runs",),
        ("tasks", "lazy.py"),
    ):
        said = cli(*arguments)
        assert said.code == 0, said
        assert loads() <= {"tr", "val"}, arguments
    assert loads() == {"tr", "val"}
    run = evometa.open("runs/x")
    assert run.params.keys() == {"x"} and run.champion is not None and run.lineage().num_rows == 16
    run._repr_html_()
    assert loads() == {"tr", "val"}
    assert cli("unseal", "x").code == 0
    assert loads() == {"tr", "val", "sealed"}, "a domain without a role is loaded by nobody"


def test_a_permission_is_made_in_one_place():
    """Only unseal.py constructs an `Opening`; without one, loading a test domain raises."""
    package = Path(evometa.__file__).parent
    makers = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if name == "Opening":
                makers.add(path.relative_to(package).as_posix())
    assert makers == {"unseal.py"}
    world = evometa.Domain("a", 1, {"away": explode}), evometa.Domain("b", explode, {"away": explode})
    task = evometa.task(
        space={"x": evometa.real(0, 1)}, domains=world, split=evometa.Split(("a",), (), ("b",)), runs="python"
    )
    task.fit(lambda key, candidate, support: 0)
    task.judge(lambda key, learned, query: {"loss": 0.0})
    built = task.build()
    with pytest.raises(EvometaError, match="'b' is sealed: only `evometa unseal RUN`"):
        datasets.load(built, ["b"])
    with pytest.raises(EvometaError, match="no role"):
        datasets.load(built.with_(split=evometa.Split(("a",))), ["b"], datasets.Opening(1))


def explode():
    raise AssertionError("a sealed loader was called")


def rows_of(run, opening=1):
    rows = [
        row for row in Archive(run).judgements().to_pylist() if row["phase"] == "test" and row["opening"] == opening
    ]
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    seeds = 1 + max(row["replicate"] for row in rows)
    loss = np.full((2, len(domains), seeds), np.nan)
    for row in rows:
        if row["query"] == "away":
            loss[["champion", "baseline"].index(row["label"]), domains.index(row["domain"]), row["replicate"]] = row[
                "loss"
            ]
    return domains, loss


@pytest.mark.parametrize("seeds", [10, 12])
def test_the_result_equals_a_calculation_by_hand(copies, seeds):
    """Paired differences on the stored cells; unit: domain where there are several (design, section 8)."""
    said = cli("unseal", "plain", "--seeds", seeds, "--json")
    assert said.code == 0, said.err
    result = said.data
    domains, loss = rows_of(copies / "runs/plain")
    assert domains == ["d3", "d4"] and loss.shape == (2, 2, seeds) and np.isfinite(loss).all()
    difference = loss[0] - loss[1]
    assert {"run", "opening", "seeds", "domains", "overall"} <= set(result)
    assert (result["run"], result["opening"], result["seeds"]) == ("plain", 1, seeds)
    for d, row in enumerate(result["domains"]):
        assert list(row) == ["domain", "champion", "baseline", "difference", "low", "high"]
        half = stats.t.ppf(0.975, seeds - 1) * difference[d].std(ddof=1) / np.sqrt(seeds)
        expected = [
            loss[0, d].mean(),
            loss[1, d].mean(),
            difference[d].mean(),
            difference[d].mean() - half,
            difference[d].mean() + half,
        ]
        assert row["domain"] == domains[d]
        assert np.allclose([row[k] for k in list(row)[1:]], expected, rtol=1e-6)
    means = difference.mean(axis=1)
    half = stats.t.ppf(0.975, 1) * means.std(ddof=1) / np.sqrt(2)
    overall = result["overall"]
    assert list(overall) == ["difference", "low", "high", "estimand", "unit"] and overall["unit"] == "domain"
    assert np.allclose(
        [overall[k] for k in ("difference", "low", "high")],
        [means.mean(), means.mean() - half, means.mean() + half],
        rtol=1e-6,
    )


def test_a_single_domain_has_the_inner_seed_as_its_unit(copies):
    result = cli("unseal", "ridge", "--json").data
    assert [row["domain"] for row in result["domains"]] == ["w5"]
    assert result["overall"]["unit"] == "inner seed" and "these domains only" in result["overall"]["estimand"]
    _, loss = rows_of(copies / "runs/ridge")
    assert np.isclose(result["overall"]["difference"], (loss[0] - loss[1]).mean(), rtol=1e-6)


def test_the_same_opening_gives_the_same_numbers_and_another_one_others(copies):
    shutil.copytree(copies / "runs", copies / "other")
    one, two = cli("unseal", "plain", "--json").data, cli("unseal", "plain", "--json").data
    again = cli("unseal", "other/plain", "--json").data
    assert one == again and one["domains"] != two["domains"]
    assert (one["opening"], two["opening"]) == (1, 2)


def test_every_look_is_counted_also_from_other_runs(copies):
    """SYS-2: a second look at the same data is a second look in any run, and every report says so."""
    shutil.copytree(copies / "runs/plain", copies / "kept")
    arguments = ("run", "plain.py", "--population", 4, "--generations", 2, "--strategy", "genetic", "--name", "second")
    assert cli(*arguments).code == 0
    assert cli("unseal", "plain", "--json").data["looks"] == 1
    assert cli("unseal", "ridge", "--json").data["looks"] == 1, "other data"
    assert cli("unseal", "second", "--json").data["looks"] == 2
    assert "look 2 at these data" in cli("report", "second").out
    assert "look 3 at these data" in cli("unseal", "second").out
    assert "look 2" not in cli("report", "plain").out
    opened = [event for event in events.read(copies / "runs/second") if event["kind"] in ("opening", "opened")]
    assert [event["kind"] for event in opened] == ["opening", "opened", "opening", "opened"]
    assert len(ledger.read(copies / "runs")) == 4
    # Deleting a run, and making it again under its name, makes nobody forget.
    shutil.rmtree(copies / "runs/plain")
    shutil.copytree(copies / "kept", copies / "runs/plain")
    assert cli("unseal", "plain", "--json").data["looks"] == 4
    seen = [row for row in cli("runs", "--json").data if row["run"] == "second"]
    assert seen[0]["opened"] == 2


@pytest.mark.parametrize("where", ["load", "look", "judge", "commit", "record"])
def test_an_opening_cut_short_by_a_crash_is_the_same_look(copies, monkeypatch, where):
    """Announced and not finished: taken up again under its number, the same keys, one look."""
    calm = copies / "calm"
    shutil.copytree(copies / "runs", calm)
    expected = cli("unseal", "calm/plain", "--json").data
    target = {
        "load": (datasets, "load"),
        "look": (unseal, "_look"),
        "judge": (unseal.Judge, "judge"),
        "commit": (unseal, "commit"),
        "record": (unseal, "summarize"),
    }[where]
    session = api.reopen(copies / "runs/plain")
    with monkeypatch.context() as broken:
        broken.setattr(*target, crash)
        with pytest.raises(KeyboardInterrupt), locked(copies / "runs/plain"):
            unseal.unseal(copies / "runs/plain", session)
    kinds = [event["kind"] for event in events.read(copies / "runs/plain")]
    assert kinds[-1] == "opening", "announced before anything is loaded"
    assert len(ledger.read(copies / "runs")) == (where not in ("load", "look"))
    assert cli("unseal", "plain", "--json").data == expected
    assert len(ledger.read(copies / "runs")) == 1
    kinds = [event["kind"] for event in events.read(copies / "runs/plain")]
    assert kinds[-2:] == ["opening", "opened"]
    assert len(list((copies / "runs/plain/judgements").glob("*.parquet"))) == 2
    assert cli("unseal", "plain", "--json").data["looks"] == 2


def crash(*_, **__):
    raise KeyboardInterrupt


def test_runs_opened_together_are_one_look(copies):
    arguments = ("run", "plain.py", "--seed", 3, "--population", 4, "--generations", 2, "--strategy", "genetic")
    assert cli(*arguments, "--name", "second").code == 0
    entries = [(copies / "runs" / name, api.reopen(copies / "runs" / name)) for name in ("plain", "second")]
    one, two = unseal.unseal_together(entries)
    assert one["looks"] == two["looks"] == 1 and len(ledger.read(copies / "runs")) == 1
    assert ledger.read(copies / "runs")[0]["runs"] == ["plain", "second"]
    # The same cells: the baseline's numbers are equal to the bit.
    assert [row["baseline"] for row in one["domains"]] == [row["baseline"] for row in two["domains"]]
    assert all(events.read(path)[-1]["kind"] == "opened" for path, _ in entries)
    ridge = copies / "runs/ridge"
    with pytest.raises(EvometaError, match="need the same test domains"):
        unseal.unseal_together([entries[0], (ridge, api.reopen(ridge))])


def test_a_crash_between_the_runs_of_an_opening_is_the_same_look(copies, monkeypatch):
    """One run was through, the other was not: the repetition keeps number, keys and look, and writes nothing twice."""
    arguments = ("run", "plain.py", "--seed", 3, "--population", 4, "--generations", 2, "--strategy", "genetic")
    assert cli(*arguments, "--name", "second").code == 0
    paths = [copies / "runs" / name for name in ("plain", "second")]
    judge = unseal._Opening.judge

    def only_the_first(opening, *rest):
        return judge(opening, *rest) if opening.path.name == "plain" else crash()

    with monkeypatch.context() as broken:
        broken.setattr(unseal._Opening, "judge", only_the_first)
        with pytest.raises(KeyboardInterrupt):
            unseal.unseal_together([(path, api.reopen(path)) for path in paths])
    one, two = unseal.unseal_together([(path, api.reopen(path)) for path in paths])
    assert (one["opening"], two["opening"], one["looks"], two["looks"]) == (1, 1, 1, 1)
    assert len(ledger.read(copies / "runs")) == 1
    for path in paths:
        assert [e["kind"] for e in events.read(path)][-2:] == ["opening", "opened"]
        assert len(list((path / "judgements").glob("*.parquet"))) == 2


def three_runs():
    """Three runs of one task, begun in one folder, one of them on the objective of the tail."""
    arguments = ("run", "plain.py", "--population", 4, "--generations", 2, "--strategy", "genetic")
    assert cli(*arguments, "--seed", 3, "--name", "first").code == 0
    assert cli(*arguments, "--seed", 4, "--name", "second").code == 0
    assert cli(*arguments, "--seed", 5, "--objective", "away:worst", "--name", "worst").code == 0
    return [Path("runs") / name for name in ("first", "worst", "second")]


def test_many_runs_share_sessions_and_data_and_give_the_same_numbers(copies, monkeypatch):
    """Runs of equal tasks are judged by one session, data are loaded once, and nothing else differs."""
    paths = three_runs()
    shutil.copytree(copies / "runs", copies / "together")
    expected = unseal.unseal_together([(p, api.reopen(p)) for p in (copies / "together" / q.name for q in paths)])
    opened, loads, load = [], [], datasets.load

    def reopen(path):
        opened.append(path.name)
        return api.reopen(path)

    def watched(task, names, opening=None):
        loads.append(tuple(names)) if opening else None
        return load(task, names, opening)

    monkeypatch.setattr(datasets, "load", watched)
    said = []
    assert unseal.unseal_many(paths, reopen, note=said.append) == 1
    assert opened == ["first", "worst"], "one session for each kind of task"
    assert loads == [("d3", "d4")] and len(said) == 3
    for path, result in zip(paths, expected, strict=True):
        event = events.read(path)[-1]
        assert (event["kind"], event["looks"], event["overall"]) == ("opened", 1, result["overall"])
        theirs = copies / "together" / path.name
        assert Archive(path).judgements().equals(Archive(theirs).judgements())
    assert ledger.read(copies / "runs")[0]["runs"] == ["first", "worst", "second"]
    before = {p: p.read_bytes() for p in (copies / "runs").rglob("*") if p.is_file()}
    # Others may join the opening, to be judged on the same cells; it is a look of its own.
    assert (
        cli(
            "run",
            "plain.py",
            "--seed",
            4,
            "--population",
            4,
            "--generations",
            1,
            "--strategy",
            "genetic",
            "--name",
            "late",
        ).code
        == 0
    )
    assert unseal.unseal_many([Path("runs/late")], api.reopen, number=1) == 1
    assert len(ledger.read(copies / "runs")) == 2
    assert {p: p.read_bytes() for p in before if p.name != ledger.FILE} == {
        k: v for k, v in before.items() if k.name != ledger.FILE
    }
    with pytest.raises(EvometaError, match="opening 1 of first was of other runs"):
        unseal.unseal_many(paths[:1], api.reopen, number=1)


def test_a_crash_among_many_passes_over_what_was_through(copies, monkeypatch):
    paths, judge, judged = three_runs(), unseal._Opening.judge, []

    def counted(opening, *rest):
        if len(judged) == 2:
            crash()
        judged.append(opening.path.name)
        return judge(opening, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(unseal._Opening, "judge", counted)
        with pytest.raises(KeyboardInterrupt):
            unseal.unseal_many(paths, api.reopen)
    assert judged == ["first", "second"], "equal tasks one after the other"
    opened = []
    assert unseal.unseal_many(paths, lambda path: opened.append(path.name) or api.reopen(path)) == 1
    assert opened == ["worst"] and len(ledger.read(copies / "runs")) == 1
    assert all(events.read(path)[-1]["kind"] == "opened" for path in paths)


def test_different_data_under_one_name_are_one_look_and_all_are_known(copies):
    """Arms of a study may read other supports on the same test domains: each digest is remembered."""
    text = (copies / "plain.py").read_text()
    (copies / "other.py").write_text(text.replace('"support": n,', '"support": n + 10,'))
    arguments = ("--population", 4, "--generations", 2, "--strategy", "genetic", "--name")
    assert cli("run", "other.py", *arguments, "other").code == 0
    assert unseal.unseal_many([Path("runs/plain"), Path("runs/other")], api.reopen) == 1
    one, two = ledger.read(copies / "runs")
    assert one["announced"] == two["announced"] and set(one["domains"]) == set(two["variants"]) == {"d3", "d4"}
    assert not set(one["domains"].values()) & set(two["variants"].values())
    assert [events.read(Path("runs") / name)[-1]["looks"] for name in ("plain", "other")] == [1, 1]
    assert cli("unseal", "other", "--json").data["looks"] == 2
    assert cli("unseal", "plain", "--json").data["looks"] == 2


def test_the_ledger_of_a_run_in_a_study_is_beside_the_study(tmp_path):
    run = tmp_path / "runs/study/main-s0"
    run.mkdir(parents=True)
    assert ledger.root(run) == tmp_path / "runs/study"
    (run.parent / ledger.STUDY).write_text("{}")
    assert ledger.root(run) == tmp_path / "runs" == ledger.root(tmp_path / "runs/alone")
    assert ledger.before(tmp_path / "runs", ["nobody"]) is None


def test_another_champion_makes_it_another_look(copies, monkeypatch):
    """Losses of a cut-short opening can be read from disk: a champion that was changed since is a second look."""
    session = api.reopen(copies / "runs/plain")
    with monkeypatch.context() as broken:
        broken.setattr(unseal, "summarize", crash)
        with pytest.raises(KeyboardInterrupt), locked(copies / "runs/plain"):
            unseal.unseal(copies / "runs/plain", session)
    chosen = [e for e in events.read(copies / "runs/plain") if e["kind"] == "champion"][-1]
    changed = {k: v for k, v in chosen.items() if k not in ("seq", "time", "kind", "prev", "hash")}
    changed["genome"] = [0.25 * x for x in changed["genome"]]
    events.append(copies / "runs/plain", "champion", **changed)
    said = cli("unseal", "plain", "--json").data
    assert (said["opening"], said["looks"]) == (2, 2)


def test_what_cannot_be_opened(copies):
    """Refused before anything is announced."""
    one_line(cli("unseal", "plain", "--seeds", 9), 2, "at least 10 seeds", "9")
    one_line(cli("unseal", "static"), 1, "no test domain")
    diary = copies / "runs/plain/events.jsonl"
    diary.write_text(diary.read_text().splitlines(keepends=True)[0])
    one_line(cli("unseal", "plain"), 1, "no champion yet", "evometa resume")
    assert not (copies / "runs/openings.jsonl").exists()
    assert "opening" not in [event["kind"] for event in events.read(copies / "runs/plain")]


def test_order_and_number_of_tests_change_nothing(copies):
    """S0-4: independent, frozen tests. Domains in another order, or alone, give each cell the same bits."""
    session = api.reopen(copies / "runs/ridge")
    best = api.open("runs/ridge").champion
    genomes = np.stack([best.genome, session.task.space.encode(session.task.baseline)])
    names = ["w3", "w4", "w5"]
    open_task = session.task.with_(split=evometa.Split(("w0",), (), tuple(names)))

    def judged(order, rows=genomes, seeds=3):
        loaded = datasets.load(open_task, order, datasets.Opening(1))
        found = unseal.Judge(open_task, loaded, session.plan).judge(rows, seeds, 3, unseal.Stream.UNSEAL, 1)
        return {(c.domain, c.query, c.replicate): found.loss[:, i].tobytes() for i, c in enumerate(found.cells)}

    forwards = judged(names)
    assert judged(names[::-1]) == forwards
    alone = judged(["w4"], seeds=2)
    assert all(forwards[cell] == loss for cell, loss in alone.items()) and len(alone) == 4
    swapped = judged(names, genomes[::-1])
    assert all(loss[4:] + loss[:4] == forwards[cell] for cell, loss in swapped.items())


def test_neither_champion_nor_opening_touches_the_lineage(copies):
    before = lineage_files(copies / "runs/plain")
    cli("unseal", "plain")
    assert lineage_files(copies / "runs/plain") == before
    assert {row["phase"] for row in Archive(copies / "runs/plain").table().to_pylist()} == {"search"}
    roles = {score["role"] for row in Archive(copies / "runs/plain").table().to_pylist() for score in row["scores"]}
    assert roles == {"train"}


# --- the champion -------------------------------------------------------------------------------------------------


def test_the_champion_is_judged_on_validation_with_fresh_keys(copies):
    """SYS-7: recommendation and best observed, judged again; nobody's genome has no index."""
    rows = [row for row in Archive(copies / "runs/ridge").judgements().to_pylist()]
    assert {row["phase"] for row in rows} == {"validation"} and {row["role"] for row in rows} == {"validation"}
    assert {row["domain"] for row in rows} == {"w3", "w4"} and {row["opening"] for row in rows} == {0}
    labels = {row["label"] for row in rows}
    assert {"recommendation", "baseline"} <= labels <= {"recommendation", "observed", "baseline"}
    mean = [row for row in rows if row["label"] == "recommendation"]
    assert all(row["index"] is None and row["generation"] == 11 for row in mean), "cma_es recommends a mean"
    assert len({row["replicate"] for row in mean}) == 5
    assert all(row["generation"] is None for row in rows if row["label"] == "baseline")
    best = api.open("runs/ridge").champion
    assert best.validation < best.baseline
    baseline = [row["loss"] for row in rows if row["label"] == "baseline" and row["query"] == "away"]
    assert np.isclose(best.baseline, np.mean(baseline))
    by_hand = {}
    for row in rows:
        if row["query"] == "away" and row["label"] != "baseline":
            by_hand.setdefault(tuple(row["genome"]), []).append(row["loss"])
    means = {genome: np.mean(loss) for genome, loss in by_hand.items()}
    assert np.isclose(
        means[tuple(float(x) for x in best.genome)], best.validation, atol=np.ptp(list(means.values())) + 1e-6
    )
    assert len(means) == 5


def test_without_validation_domains_the_train_domains_choose_with_fresh_keys(folder):
    arguments = ("run", "plain.py", "--population", 6, "--generations", 2, "--strategy", "genetic", "--name", "x")
    assert cli(*arguments, "--set", 'split.train=["d0","d1"]').code == 0
    best = api.open("runs/x").champion
    assert best.domains == ("d0", "d1")
    judged = Archive(folder / "runs/x").judgements().to_pylist()
    assert {row["role"] for row in judged} == {"train"} and {row["phase"] for row in judged} == {"validation"}
    seen = {cell["loss"] for row in Archive(folder / "runs/x").table().to_pylist() for cell in row["scores"]}
    assert not seen & {row["loss"] for row in judged}, "fresh keys give other luck"


def test_on_pure_noise_a_champion_promises_nothing(folder):
    """SYS-7: where nothing can be gained, the promise stays near the baseline and not at the luckiest."""
    # Every candidate has luck of its own here, and nothing else.
    text = (folder / "plain.py").read_text().replace("bend * (candidate", "0 * bend * (candidate")
    own = text.replace("default_rng(key)", "default_rng([key, int(1e9 * (2 + candidate['x']))])")
    assert own != text
    (folder / "noise.py").write_text(own)
    arguments = ("run", "noise.py", "--population", 16, "--generations", 6, "--strategy", "genetic", "--name", "noise")
    assert cli(*arguments).code == 0
    best = api.open("runs/noise").champion
    luckiest = Archive(folder / "runs/noise").top(1)[0]["fitness"]
    assert luckiest < -0.12  # sigma of a fitness is 0.07
    assert abs(best.validation) < 0.1 and best.validation > luckiest / 2
    result = cli("unseal", "noise", "--json").data["overall"]
    assert result["low"] < 0 < result["high"]


def test_an_objective_of_the_tail_has_a_champion_too(folder):
    arguments = ("run", "plain.py", "--population", 6, "--generations", 2, "--strategy", "genetic", "--name", "x")
    assert (
        cli(
            *arguments,
            "--objective",
            "away:worst",
            "--set",
            'split.train=["d0","d1"]',
            "--set",
            'split.validation=["d2","d3"]',
        ).code
        == 0
    )
    best = api.open("runs/x").champion
    rows = [
        row
        for row in Archive(folder / "runs/x").judgements().to_pylist()
        if row["genome"] == [float(g) for g in best.genome]
    ]
    per_domain = {}
    for row in rows:
        if row["label"] != "baseline":
            per_domain.setdefault(row["domain"], []).append(row["loss"])
    assert np.isclose(best.validation, max(np.mean(loss) for loss in per_domain.values()), rtol=1e-5)
    assert np.isnan(best.probability)
    assert json.loads((folder / "runs/x/events.jsonl").read_text().splitlines()[-1])["probability"] is None

"""The number of levels in a spec, held columns, a given start, the placebo: what runs are made of for studies."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from helpers import cli, columns, lineage_files, one_line, start

import evometa
from evometa.archives.read import Archive
from evometa.contract import Split
from evometa.deployment import deployed_spec
from evometa.errors import ConfigError
from evometa.levels import deal
from evometa.session import prepare
from evometa.space import Space, categorical, integer, log, real, weights
from evometa.spec import build

pytest_plugins = ["shared"]

SMALL = ("--population", 4, "--generations", 2)
NEST = ("--set", "nest.population=4", "--set", "nest.generations=2")


def run(*arguments, name="x"):
    said = cli("run", *arguments, "--name", name)
    assert said.code == 0, said.err
    return evometa.open(f"runs/{name}")


def test_workers_take_a_compiled_search_of_searches_on_one_device(folder, compile_cache):
    """Its last bits follow the number of devices: two would not be the bytes of inline (determinism contract)."""
    spec = {
        "task": "ridge.py",
        "levels": 2,
        "population": 4,
        "backend": "processes",
        "workers": 1,
        "nest": {"population": 4},
    }
    assert prepare(build(spec)).plan.devices == 1
    with pytest.raises(ConfigError, match=r"start it anew with: --set plan\.devices=1"):
        prepare(build({**spec, "plan": {"devices": 2}}))


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_one_number_says_how_many_levels(folder, compile_cache, levels):
    """S0-7: the same spec, the same code; every level is scored on domains that no lower level used."""
    made = run("ridge.py", *SMALL, *NEST, "--set", f"levels={levels}")
    record = made.record
    assert record["spec"].get("levels", 1) == levels
    train = {0: ["w0", "w1", "w2"], 1: ["w0", "w1", "w2"], 2: ["w1"], 3: ["w2"]}[levels]
    assert record["task"]["split"] == {"train": train, "validation": ["w3", "w4"], "test": ["w5"]}
    names = [column["name"] for column in record["task"]["space"]]
    assert (
        names
        == {
            0: ["rate", "decay"],
            1: ["rate", "decay"],
            2: ["strategy.sigma", "start.rate", "start.decay"],
            3: ["strategy.sigma", "start.strategy.sigma", "start.start.rate", "start.start.decay"],
        }[levels]
    )
    assert made.champion is not None and np.isfinite(made.champion.validation)
    assert len(made.lineage(["run"])) == (2 if levels == 0 else 8)


def test_domains_are_dealt_out_to_the_levels():
    assert deal("abcdefg", 3) == [("a", "d", "g"), ("b", "e"), ("c", "f")]
    task = prepare(build({"task": "digits", "levels": 2, "task_options": {"steps": 5}})).task
    whole = prepare(build({"task": "digits", "task_options": {"steps": 5}})).task
    below = {name for d in task.domains for name in d.tags["support"].split(",")}
    judged = {name for name in task.split.train for name in task.domain(name).tags["query"].split(",")}
    assert below and judged and not below & judged
    assert below | judged == set(whole.split.train)
    assert task.split.validation == whole.split.validation and task.split.test == whole.split.test


def test_no_level_is_no_search(folder, compile_cache):
    made = run("ridge.py", *SMALL, "--set", "levels=0")
    assert made.record["strategy"]["name"] == "static"
    assert made.params == pytest.approx({"rate": 0.02, "decay": 1e-3}, rel=1e-5)


def test_a_nested_run_resumes_to_the_same_bytes(folder, compile_cache):
    whole = run("ridge.py", "--population", 4, "--generations", 4, *NEST, "--set", "levels=2", "--set", "plan.block=2")
    run("ridge.py", *SMALL, *NEST, "--set", "levels=2", "--set", "plan.block=2", name="parts")
    assert cli("resume", "runs/parts", "--generations", 4).code == 0
    names = [[name for name in lineage_files(folder / "runs" / one)] for one in ("x", "parts")]
    assert whole.generations == 4 and len(names[0]) == len(names[1]) == 2
    assert columns(whole.path, "genome", "scores").equals(columns(folder / "runs" / "parts", "genome", "scores"))


def test_a_champion_is_deployed_as_an_ordinary_run(folder, compile_cache):
    run("ridge.py", *SMALL, *NEST, "--set", "levels=2", "--set", 'nest.slots=["decay"]', name="top")
    said = cli("deploy", "runs/top", "--json")
    assert said.code == 0, said.err
    made, top = evometa.open("runs/top-deployed"), evometa.open("runs/top")
    spec, settings = made.record["spec"], top.params
    assert spec.get("levels", 1) == 1 and "nest" not in spec
    assert spec["strategy_options"] == settings["strategy"]
    assert spec["fixed"] == {"decay": settings["slots"]["decay"]}
    assert spec["start"] == pytest.approx([settings["start"]["rate"]])
    assert made.record["task"]["split"]["train"] == ["w0", "w1", "w2"]
    assert said.data["candidates"] == 4 * 2
    assert made.params["decay"] == settings["slots"]["decay"]
    # The same settings, given by hand, are the same run.
    again = evometa.run("ridge.py", **{k: v for k, v in spec.items() if k != "task"}, generations=2, name="again")
    assert columns(made.path, "genome", "scores").equals(columns(again.path, "genome", "scores"))
    longer = deployed_spec(folder / "runs" / "top", generations=7)
    assert longer.generations == 7
    one_line(cli("deploy", "runs/top-deployed"), 2, "has 1 level(s)", "two or more")


def test_a_start_is_a_genome(folder, compile_cache):
    made = run("ridge.py", "--strategy", "static", "--generations", 1, "--set", "start=[0.25, 0.75]")
    genome = columns(made.path, "genome")["genome"][0].as_py()
    assert genome == [0.25, 0.75]
    one_line(cli("run", "ridge.py", "--set", "start=[0.5]"), 4, "a genome of 2 numbers", "got 1")
    one_line(cli("run", "ridge.py", "--set", "start='middle'"), 4, '"baseline", "center" or a genome', "middle")


def test_held_columns_are_out_of_the_search(folder, compile_cache):
    made = run("ridge.py", *SMALL, "--set", "fixed.decay=0.3")
    assert [c.name for c in made.space.columns] == ["rate"]
    assert made.params["decay"] == 0.3 and set(made.top(1)[0]["params"]) == {"rate"}
    # The same as a task in which the column is a constant.
    other = (folder / "ridge.py").read_text().replace(', "decay": evometa.log(1e-5, 1.0)', "")
    other = other.replace('"rate": 0.02, "decay": 1e-3', '"rate": 0.02').replace(
        'candidate["decay"]', "np.float32(0.3)"
    )
    (folder / "constant.py").write_text(other)
    same = run("constant.py", *SMALL, name="constant")
    np.testing.assert_allclose(
        columns(made.path, "fitness")["fitness"].to_numpy(),
        columns(same.path, "fitness")["fitness"].to_numpy(),
        rtol=1e-5,
    )
    one_line(cli("run", "ridge.py", "--set", "fixed.decoy=0.3"), 4, "no column 'decoy'", 'Did you mean "decay"')
    one_line(cli("run", "ridge.py", "--set", "fixed.decay=3"), 4, "fixed.decay", "1e-05 .. 1")
    one_line(cli("run", "ridge.py", "--set", "fixed={rate=0.1, decay=0.3}"), 4, "at least one column left")


def test_every_kind_of_column_can_be_held():
    space = Space(
        {"a": real(0, 1), "b": {"c": integer(0, 3), "d": categorical(["x", "y"])}, "w": weights((2,)), "l": log(1, 9)}
    )
    held = space.hold({"b.c": 2, "b.d": "y", "w": [1.0, 2.0]})
    assert held.dimension == 2 and [c.name for c in held.columns] == ["a", "l"]
    genome = np.array([0.5, 0.5], np.float32)
    assert held.decode_host(genome)["b"] == {"c": 2, "d": "y"}
    decoded = held.decode(genome)
    assert int(decoded["b"]["c"]) == 2 and int(decoded["b"]["d"]) == 1
    np.testing.assert_array_equal(decoded["w"], [1.0, 2.0])
    again = Space.from_json(json.loads(json.dumps(held.to_json())))
    assert again.decode_host(genome) == held.decode_host(genome)
    whole = {"a": 0.5, "b": {"c": 0, "d": "x"}, "w": [0.0, 0.0], "l": 3.0}
    np.testing.assert_allclose(held.encode(whole), [0.5, 0.5], atol=1e-6)
    assert "held at y" in held.describe()


def test_a_placebo_is_told_the_scores_of_others(folder, compile_cache):
    """S0-13 C5: the archive keeps everybody's own scores, the strategy learns nothing from them."""
    arguments = ("ridge.py", "--population", 8, "--generations", 12)
    told, blind = run(*arguments), run(*arguments, "--set", "placebo=true", name="blind")
    first = [columns(r.path, "genome", "scores").slice(0, 8) for r in (told, blind)]
    assert first[0].equals(first[1])
    assert not columns(told.path, "genome").equals(columns(blind.path, "genome"))
    means = [np.mean(columns(r.path, "fitness")["fitness"].to_numpy()[-32:]) for r in (told, blind)]
    assert means[0] < means[1]
    assert cli("archive", "show", "runs/blind", "3:1", "--replay").code == 0
    # Resumed from the rows on disk, it is told the same scores again.
    assert cli("run", *arguments[:-1], 6, "--set", "placebo=true", "--name", "half").code == 0
    for checkpoint in (folder / "runs" / "half" / "checkpoints").iterdir():
        checkpoint.unlink()
    assert cli("resume", "runs/half", "--generations", 12).code == 0
    assert columns(folder / "runs" / "half", "genome").equals(columns(blind.path, "genome"))


@pytest.mark.parametrize("placebo", ["true", "noise"])
def test_a_placebo_on_the_host(folder, placebo):
    arguments = ("plain.py", "--strategy", "genetic", "--population", 6, "--generations", 4)
    run(*arguments, "--set", f"placebo={placebo}", name="a")
    assert cli("run", *arguments[:-1], 2, "--set", f"placebo={placebo}", "--name", "b").code == 0
    for checkpoint in (folder / "runs" / "b" / "checkpoints").iterdir():
        checkpoint.unlink()
    assert cli("resume", "runs/b", "--generations", 4).code == 0
    assert columns(folder / "runs" / "a", "genome").equals(columns(folder / "runs" / "b", "genome"))


def test_a_walk_is_told_nothing_of_the_scores(folder, compile_cache):
    """What a search is told by noise does not depend on any score: another objective, the same candidates."""
    arguments = ("ridge.py", "--population", 8, "--generations", 4, "--set", "placebo=noise")
    away, home = run(*arguments), run(*arguments, "--objective", "home", name="home")
    assert columns(away.path, "genome").equals(columns(home.path, "genome"))
    assert not columns(away.path, "fitness").equals(columns(home.path, "fitness"))
    one_line(cli("run", "ridge.py", "--set", "placebo=maybe"), 4, "placebo", "maybe")


def test_held_columns_keep_their_order_when_a_run_is_opened_again(folder, compile_cache):
    tunes = "nest.tunes={sigma={kind='log', low=0.02, high=1}, factor_c_mu={kind='log', low=0.5, high=2}}"
    run("ridge.py", *SMALL, *NEST, "--set", "levels=2", "--set", tunes)
    assert cli("resume", "runs/x", "--generations", 3).code == 0


def test_expand_at_the_command_line(folder, compile_cache):
    run("ridge.py", *SMALL, *NEST, "--set", "levels=2", name="top")
    said = cli("archive", "expand", "runs/top", "1:2", "--json")
    assert said.code == 0, said.err
    assert said.data["equal"] is True
    (search,) = said.data["searches"]
    assert (search["domain"], search["replicate"]) == ("w1", 0)
    shown = cli("archive", "top", search["path"], "--json")
    assert len(shown.data) == 8 and set(shown.data[0]["params"]) == {"rate", "decay"}
    assert len(Archive(folder / search["path"]).table()) == 8
    run("ridge.py", *SMALL, name="flat")
    one_line(cli("archive", "expand", "runs/flat", "0:0"), 4, "no search of searches")
    one_line(cli("archive", "expand", "runs/top", "9:9"), 3, "9:9")


def test_every_level_may_have_a_search_of_its_own(folder, compile_cache):
    """S0-8: a strategy and a budget per level; deployed, each level keeps its own."""
    (folder / "three.toml").write_text("""
task = "ridge.py"
levels = 3
population = 4
generations = 2
[[nest]]
strategy = "genetic"
population = 4
generations = 2
tunes = {sigma = {kind = "log", low = 0.05, high = 1.0}}
[[nest]]
population = 5
generations = 1
prior = false
""")
    top = run("three.toml", name="top")
    assert [c["name"] for c in top.record["task"]["space"]] == ["strategy.sigma"]
    for name, strategy, population in (("top-deployed", "cma_es", 5), ("top-deployed-deployed", "genetic", 4)):
        assert cli("deploy", f"runs/{name.removesuffix('-deployed')}").code == 0
        found = evometa.open(f"runs/{name}").record["strategy"]
        assert (found["name"], found["population"]) == (strategy, population)
    said = cli("run", "three.toml", "--set", "levels=2")
    one_line(said, 4, "one table for all levels below the top, or 1 for 2 levels, got 2")


def test_what_levels_get_wrong(folder):
    one_line(cli("run", "ridge.py", "--set", "levels=4"), 4, "at least 4 train domains for 4 levels, got 3")
    one_line(cli("run", "ridge.py", "--set", "levels=9"), 4, "levels", "less than or equal to 4")
    one_line(cli("run", "ridge.py", "--set", "levels=2", "--set", "nest.slots=['dacay']"), 4, "dacay", "decay")
    one_line(cli("run", "ridge.py", "--set", "levels=2", "--set", "nest.tune=1"), 4, "nest.tune", "tunes")
    tuned = ("--set", "nest.tunes={momentum={kind='real', low=0, high=1}}")
    one_line(cli("run", "ridge.py", "--set", "levels=2", *tuned), 4, "no hyperparameter 'momentum'", "sigma")
    narrow = ("--set", "nest.tunes={sigma={kind='log', low=0.3, high=1}}")
    one_line(cli("run", "ridge.py", "--set", "levels=2", *narrow), 4, "a range around its value today, 0.2")
    one_line(
        cli("run", "ridge.py", "--set", "levels=2", "--set", "nest.judged_on='awya'"), 4, "no query 'awya'", "away"
    )
    one_line(cli("run", "plain.py", "--set", "levels=2"), 4, "cma_es", "categorical")


def test_a_killed_nested_run_goes_on(folder, compile_cache):
    arguments = (
        "run",
        "ridge.py",
        "--population",
        4,
        "--generations",
        6,
        *NEST,
        "--set",
        "levels=2",
        "--set",
        "plan.block=1",
    )
    process = start(folder, *arguments, "--name", "killed", JAX_COMPILATION_CACHE_DIR=compile_cache)
    parts = folder / "runs" / "killed" / "lineage"
    try:
        while not parts.is_dir() or len(list(parts.iterdir())) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    from helpers import call

    said = call(folder, "resume", "runs/killed", "--generations", 6, JAX_COMPILATION_CACHE_DIR=compile_cache)
    assert said.code == 0, said.err
    assert cli("archive", "check", "runs/killed").code == 0
    assert evometa.open("runs/killed").generations == 6


def test_records_without_the_newer_keys_are_the_same_run(folder, compile_cache):
    """A spec's identity leaves new keys out at their defaults: a run made before them resumes."""
    made = run("ridge.py", *SMALL)
    assert not {"fixed", "placebo", "levels", "nest"} & set(made.record["spec"])
    assert folder.name and Split(("a",)).train == ("a",)

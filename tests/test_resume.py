"""A run goes on to the same bits, or says why it cannot."""

from __future__ import annotations

import json
import shutil

import jax
import pytest
from helpers import PLAIN, call, cli, lineage_files, one_line, rewrite

from evometa import api, checkpoint, folder
from evometa import folder as folders
from evometa.archives import events
from evometa.archives.read import Archive, list_parts
from evometa.errors import UsageError
from evometa.evaluate.plan import Plan

pytest_plugins = ["shared"]

RIDGE = ("run", "ridge.py", "--population", 8, "--seed", 3, "--generations", 12, "--set", "plan.block=4")


def keep(run, parts: int, checkpoints: str) -> None:
    """Put a run back to where a crash might have left it: so many parts, checkpoints none, older or newest."""
    for part in list_parts(run / "lineage")[parts:]:
        part.path.unlink()
    shutil.rmtree(run / "judgements")
    done = list_parts(run / "lineage")
    last = int(done[-1].read(["generation"])["generation"][-1].as_py()) + 1 if done else 0
    found = sorted((run / "checkpoints").glob("*.json"))
    limit = {"none": -1, "older": last - 1, "newest": last}[checkpoints]
    for path in found:
        if int(path.name.split("-")[1]) > limit:
            path.unlink()
            path.with_suffix(".safetensors").unlink()
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text(lines[0])


@pytest.mark.parametrize("name", ["ridge", "plain", "static"])
@pytest.mark.parametrize("checkpoints", ["none", "older", "newest"])
def test_resume_after_a_crash_between_any_two_steps(copies, finished, name, checkpoints):
    run, whole = copies / "runs" / name, lineage_files(finished / "runs" / name)
    for parts in range(len(whole), -1, -1) if name == "plain" else (len(whole), 1):
        shutil.rmtree(run)
        shutil.copytree(finished / "runs" / name, run)
        keep(run, parts, checkpoints)
        assert cli("resume", name).code == 0
        assert lineage_files(run) == whole
        again, first = api.open(run).champion, api.open(finished / "runs" / name).champion
        assert again is not None and first is not None
        assert again._asdict().keys() == first._asdict().keys()
        assert (again.generation, again.index, again.validation) == (first.generation, first.index, first.validation)
        assert lineage_files_of(run / "judgements") == lineage_files_of(finished / "runs" / name / "judgements")
    assert cli("archive", "check", name).code == 0


def lineage_files_of(path):
    return {file.name: file.read_bytes() for file in path.glob("*.parquet")}


def test_a_finished_run_is_left_as_it_is(copies):
    files, judged = lineage_files(copies / "runs/plain"), lineage_files_of(copies / "runs/plain/judgements")
    said = cli("resume", "plain", "--json")
    assert said.code == 0 and said.data["generations"] == 5
    assert lineage_files(copies / "runs/plain") == files
    assert lineage_files_of(copies / "runs/plain/judgements") == judged


def test_stored_generations_are_told_and_not_trained_again(copies, monkeypatch):
    keep(copies / "runs/plain", 5, "none")
    monkeypatch.setenv("EVOMETA_TEST_CALLS", str(copies / "calls.txt"))
    assert cli("resume", "plain").code == 0
    domains = [line.split()[-1] for line in (copies / "calls.txt").read_text().splitlines()]
    assert domains and set(domains) == {"2"}, "only the champion's judging on the validation domain"


def test_a_part_that_is_not_what_this_machine_computes_is_refused(copies):
    """Compiled blocks beyond the checkpoint are computed again and compared byte for byte; others by what was asked."""
    for name in ("ridge", "plain"):
        run = copies / "runs" / name
        keep(run, 3, "none")
        rewrite(run, 1, "genome", lambda genomes: [[x + 0.01 for x in genome] for genome in genomes])
        one_line(cli("resume", name), 6, "is not what this machine computes", "--from RUN@GENERATION")


def test_parts_behind_the_checkpoint_must_be_there(copies):
    run = copies / "runs/ridge"
    part = list_parts(run / "lineage")[-1].path
    part.unlink()
    one_line(cli("resume", "ridge", "--generations", 16), 5, part.name, "missing", "evometa archive check")


def test_a_checkpoint_of_another_spec_is_refused(copies):
    run = copies / "runs/plain"
    state = {"x": __import__("numpy").zeros(3)}
    checkpoint.save(run, 6, state, {"spec_digest": "0" * 64, "last_part": None})
    one_line(cli("resume", "plain", "--generations", 7), 6, "0000000000000000", "evometa run --from plain@6")


CHANGES = {
    "the task's code": (("noise}", "noise + 1}"), "the task changed", "its code"),
    "the data": (('"support": n, "away": n', '"support": n, "away": n + 1'), "changed", ""),
    "the space": (("real(-1, 1)", "real(-1, 2)"), "the task changed", ""),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_task_is_refused_with_the_cure(copies, case):
    change, *words = CHANGES[case]
    (copies / "plain.py").write_text(PLAIN.replace(*change))
    before = lineage_files(copies / "runs/plain")
    one_line(cli("resume", "plain", "--generations", 6), 6, *words, "Put it back", "--from RUN@GENERATION")
    assert lineage_files(copies / "runs/plain") == before
    fork = (
        "run",
        "plain.py",
        "--population",
        8,
        "--seed",
        3,
        "--generations",
        6,
        "--strategy",
        "genetic",
        "--from",
        "plain@4",
    )
    if case != "the space":
        assert cli(*fork, "--name", "fork").code == 0, "the cure works"
        assert folder.read_record(copies / "runs/fork")["from"]["run"] == "plain"


def test_another_version_of_a_library_is_refused_and_named(copies, monkeypatch):
    from evometa import session

    real = session.importlib.metadata.version
    monkeypatch.setattr(session.importlib.metadata, "version", lambda name: "0.0" if name == "scipy" else real(name))
    one_line(cli("resume", "plain", "--generations", 6), 6, "versions.scipy", '"0.0"')


@pytest.mark.parametrize("what", ["processor", "flags", "precision"])
def test_another_machine_or_setting_is_refused_and_named(copies, monkeypatch, what):
    from evometa import machine

    if what == "processor":
        monkeypatch.setattr(machine, "processor", lambda: "another")
    elif what == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_force_host_platform_device_count=2")
    before = jax.config.jax_default_matmul_precision
    try:
        if what == "precision":
            jax.config.update("jax_default_matmul_precision", "highest")
        name = {"processor": "processor", "flags": "XLA_FLAGS", "precision": "jax_default_matmul_precision"}[what]
        one_line(cli("resume", "plain", "--generations", 6), 6, f"machine.{name}", "--from RUN@GENERATION")
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_the_number_of_host_devices_is_the_plans_matter(copies, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert cli("resume", "plain", "--generations", 6).code == 0


MINE = """from near import factor
from evometa.strategies.quasi import random_search

def mine(space, population=8):
    return random_search(space, population)
"""


def test_a_strategy_file_is_found_again_and_its_code_counts(folder, monkeypatch):
    (folder / "mine.py").write_text(MINE)
    (folder / "near.py").write_text("factor = 1\n")
    arguments = ("--generations", 1, "--population", 4, "--name", "x")
    assert cli("run", "plain.py", "--strategy", "mine.py:mine", *arguments).code == 0
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    said = cli("resume", "../runs/x", "--generations", 2)
    assert said.code == 0, said.err
    for name in ("mine.py", "near.py"):
        before = (folder / name).read_text()
        (folder / name).write_text(before + "# more\n")
        one_line(cli("resume", "../runs/x", "--generations", 3), 6, "the strategy changed", "its code")
        (folder / name).write_text(before)
    assert cli("resume", "../runs/x", "--generations", 3).code == 0


def test_what_a_task_file_imports_beside_it_counts(folder):
    (folder / "plain.py").write_text("import kit.noise\n" + PLAIN)
    (folder / "kit").mkdir()
    (folder / "kit/__init__.py").write_text("")
    (folder / "kit/noise.py").write_text("def late():\n    from .deep import x\n")
    (folder / "kit/deep.py").write_text("x = 1\n")
    (folder / "kit/stranger.py").write_text("x = 1\n")
    arguments = ("--strategy", "genetic", "--generations", 1, "--population", 4, "--name", "x")
    assert cli("run", "plain.py", *arguments).code == 0
    (folder / "kit/stranger.py").write_text("x = 2\n")
    assert cli("resume", "x", "--generations", 2).code == 0
    (folder / "kit/deep.py").write_text("x = 2\n")
    one_line(cli("resume", "x", "--generations", 3), 6, "the task changed", "its code")


def test_two_starts_at_once_get_two_folders(tmp_path, monkeypatch):
    """Both see the first's folder while it is still empty."""
    real = folders.write_once

    def late(path, data):
        if path.parent.name == "x":
            monkeypatch.setattr(folders, "write_once", real)
            folders.create(tmp_path, None, "x", {"who": "first"})
        return real(path, data)

    monkeypatch.setattr(folders, "write_once", late)
    assert folders.create(tmp_path, None, "x", {"who": "second"}).name == "x-2"
    assert json.loads((tmp_path / "x/run.json").read_text())["who"] == "first"
    (tmp_path / "x/run.json").unlink()
    monkeypatch.setattr(folders, "write_once", late)
    with pytest.raises(UsageError, match="'x' exists"):
        folders.create(tmp_path, "x", "x", {"who": "second"})


def test_a_plan_that_this_process_cannot_give_is_refused(copies):
    """The compiled bits depend on the plan: fewer devices than it wants are no small thing."""
    said = cli(*RIDGE, "--set", "plan.devices=5", "--name", "five")
    assert (
        said.code == 6 and "wants 5 cpu devices, this process has 2" in said.err and "jax_num_cpu_devices" in said.err
    )
    with pytest.raises(Exception, match="other hardware gives other bits"):
        Plan(1, 1, 1, "gpu").require()


def test_the_command_line_gives_a_resume_the_devices_of_its_run(folder, compile_cache):
    env = {"JAX_COMPILATION_CACHE_DIR": compile_cache}
    arguments = (
        *RIDGE[:-2],
        "--set",
        "plan.block=4",
        "--set",
        "plan.devices=3",
        "--set",
        "plan.chunk=2",
        "--name",
        "three",
    )
    assert call(folder, *arguments, **env).code == 0
    said = call(folder, "resume", "three", "--generations", 16, **env)
    assert said.code == 0, said.err
    one_line(cli("resume", "three", "--generations", 20), 6, "wants 3 cpu devices", "2")


def test_a_run_without_its_record_of_the_start(copies):
    """A start that died between run.json and the diary's first line is resumed to what the record asked for."""
    run = copies / "runs/plain"
    shutil.copy(run / "run.json", copies / "kept.json")
    shutil.rmtree(run)
    run.mkdir()
    shutil.copy(copies / "kept.json", run / "run.json")
    assert cli("resume", "plain").code == 0
    assert api.open(run).generations == 5


def test_a_folder_without_a_record_is_nobodys_run(folder):
    (folder / "runs/x/.staging").mkdir(parents=True)
    arguments = ("run", "plain.py", "--generations", 2, "--population", 4, "--strategy", "genetic")
    assert cli(*arguments, "--name", "x").code == 0
    assert cli(*arguments).code == 0 and cli(*arguments).code == 0
    assert {path.name for path in (folder / "runs").iterdir()} == {"x", "plain-genetic-s0", "plain-genetic-s0-2"}


def test_finished_cells_are_used_and_torn_ones_are_not(copies, monkeypatch):
    """What lies in cells/ is taken as it is; a line that a crash tore is computed again."""
    run = copies / "runs/plain"
    whole = lineage_files(run)
    calls = copies / "calls.txt"
    monkeypatch.setenv("EVOMETA_TEST_CALLS", str(calls))
    keep(run, 4, "newest")
    monkeypatch.setattr("evometa.driver.commit", refuse)
    with pytest.raises(KeyboardInterrupt):
        api.resume(run)
    monkeypatch.undo()
    monkeypatch.chdir(copies)
    journal = run / "cells/gen-000000004.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 16
    journal.write_text("".join(lines[:-1]) + lines[-1][:40])
    monkeypatch.setenv("EVOMETA_TEST_CALLS", str(calls))
    calls.unlink()
    assert cli("resume", "plain").code == 0
    domains = [line.split()[-1] for line in calls.read_text().splitlines()]
    assert domains.count("0") + domains.count("1") == 1, "the torn one"
    assert lineage_files(run) == whole


def refuse(*_):
    raise KeyboardInterrupt


def test_the_diary_tells_what_happened(copies):
    assert cli("resume", "plain", "--generations", 6).code == 0
    kinds = [event["kind"] for event in events.read(copies / "runs/plain")]
    assert kinds == ["started", "champion", "extended", "resumed", "champion"]
    assert json.loads((copies / "runs/plain/run.json").read_text())["generations"] == 5, "the record never changes"
    assert Archive(copies / "runs/plain").generations() == 6

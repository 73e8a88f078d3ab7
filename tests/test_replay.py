"""Any row of the archive, scored again from the files alone, gives its bits (SYS-5)."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers import PLAIN, cli, one_line, rewrite

from evometa.archives.read import Archive
from evometa.replay import replay

pytest_plugins = ["shared"]


@pytest.mark.parametrize("name", ["ridge", "plain", "static"])
def test_every_kind_of_task_replays_to_the_bit(copies, name):
    last = Archive(copies / "runs" / name).generations() - 1
    for candidate in (f"{last}:7", f"{last // 2}:0"):
        said = cli("archive", "show", name, candidate, "--replay", "--json")
        assert said.code == 0, said.err
        again = said.data["replay"]
        assert again["equal"] is True and again["differing"] == []
        assert again["fitness"] == again["replayed"] == said.data["candidate"]["fitness"]


def test_words_say_so_too(copies):
    assert "the same to the bit" in cli("archive", "show", "plain", "1:1", "--replay").out


def test_a_replay_reads_the_genome_of_its_row(copies):
    """Another candidate's genome gives other numbers: replay does not merely repeat what is stored."""
    rewrite(copies / "runs/plain", 1, "genome", lambda genomes: [genomes[5], *genomes[1:]])
    assert replay(copies / "runs/plain", 1, 0)["equal"] is False
    assert replay(copies / "runs/plain", 1, 1)["equal"] is True


@pytest.mark.parametrize("name", ["ridge", "plain", "static"])
def test_a_forged_loss_is_reported(copies, name):
    """The part's name is right for its bytes, so no hash shows it; the computation does."""

    def forge(scores):
        loss = scores[2][0]["loss"]
        scores[2][0]["loss"] = float(np.nextafter(np.float32(loss), np.float32(0)))  # by one ulp
        return scores

    rewrite(copies / "runs" / name, 0, "scores", forge)
    said = cli("archive", "show", name, "0:2", "--replay", "--json")
    assert said.code == 5
    again = said.data["replay"]
    assert again["equal"] is False and len(again["differing"]) == 1
    cell = again["differing"][0]
    assert cell["stored"] != cell["replayed"] and cell["domain"] in ("w0", "d0")
    assert "DIFFERENT in 1 cells" in cli("archive", "show", name, "0:2", "--replay").out
    assert cli("archive", "show", name, "0:3", "--replay").code == 0


def test_a_forged_fitness_is_reported(copies):
    rewrite(copies / "runs/plain", 0, "fitness", lambda fitness: [-1.0, *fitness[1:]])
    rewrite(copies / "runs/plain", 0, "objectives", lambda values: [[-1.0], *values[1:]])
    found = replay(copies / "runs/plain", 0, 0)
    assert found["equal"] is False and found["fitness"] == -1.0 and found["differing"] == []


def test_a_failed_candidate_replays_as_failed(folder):
    loss = '{"loss": bend'
    assert loss in PLAIN
    (folder / "plain.py").write_text(PLAIN.replace(loss, '{"loss": float("nan") if candidate["x"] < 0 else bend'))
    arguments = ("run", "plain.py", "--population", 8, "--generations", 1, "--strategy", "random_search", "--name", "x")
    assert cli(*arguments).code == 0
    rows = Archive(folder / "runs/x").table().to_pylist()
    failed = [row for row in rows if row["failure"] != "ok"]
    assert failed and len(failed) < 8
    for row in failed:
        assert row["failure"] == "nonfinite" and "finite" in row["message"] and row["fitness"] == float("inf")
    said = cli("archive", "show", "x", f"0:{failed[0]['index']}", "--replay", "--json")
    assert said.code == 0, said.err
    assert said.data["replay"]["equal"] is True and said.data["replay"]["fitness"] is None


def test_a_changed_task_is_not_replayed(copies):
    (copies / "plain.py").write_text(PLAIN.replace("noise}", "noise + 0}"))
    one_line(cli("archive", "show", "plain", "0:0", "--replay"), 6, "the task changed")
    assert cli("archive", "show", "plain", "0:0").code == 0


@pytest.mark.parametrize(("file", "strategy"), [("ridge.py", "cma_es"), ("plain.py", "genetic")])
def test_a_large_genome_is_stored_for_elites_and_comes_back_for_the_others(folder, monkeypatch, file, strategy):
    """A row says so where its genome is left to replay; nothing else changes."""
    monkeypatch.setattr("evometa.archives.rows.LARGE", 1)
    arguments = ("run", file, "--strategy", strategy, "--population", 12, "--generations", 3)
    assert cli(*arguments, "--name", "large").code == 0
    rows = Archive(folder / "runs/large").table().to_pylist()
    for generation in range(3):
        stored = [row for row in rows if row["generation"] == generation and row["genome"]]
        left = [row for row in rows if row["generation"] == generation and not row["genome"]]
        assert len(stored) == 8 and {row["extras"] for row in left} == {'{"genome": "replay"}'}
        assert max(row["fitness"] for row in stored) <= min(row["fitness"] for row in left)
    absent = next(row for row in rows if row["generation"] == 2 and not row["genome"])
    said = cli("archive", "show", "large", f"2:{absent['index']}", "--replay", "--json")
    assert said.code == 0 and said.data["replay"]["equal"], said.err
    shutil.rmtree(folder / "runs/large/checkpoints")
    assert cli("resume", "large", "--generations", 4).code == 0
    assert cli("archive", "check", "large").code == 0
    assert cli(*arguments[:-1], 4, "--name", "whole").code == 0
    drop = ["run"]
    longer = [Archive(folder / f"runs/{name}").table().drop_columns(drop).to_pylist() for name in ("large", "whole")]
    assert longer[0] == longer[1]

"""The command line's contracts: instant help, stable JSON on standard output, words on standard error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer.main
from helpers import PLAIN, cli, environment, one_line

import evometa
from evometa.archives.read import Archive
from evometa.cli import app

pytest_plugins = ["shared"]

HEAVY = ("jax", "numpy", "pandas", "scipy", "pyarrow", "pydantic", "rich", "duckdb", "evosax", "optuna", "safetensors")


def commands(group=None, prefix=()):
    """Every command with its words, found by walking the app."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands())


def test_every_command_of_the_plan_is_there():
    names = {" ".join(words) for words in COMMANDS}
    assert names >= {
        "run", "resume", "unseal", "runs", "report", "watch", "tasks", "strategies", "check task", "check strategy",
        "new task", "new strategy", *(f"archive {word}" for word in ("ls", "show", "top", "lineage", "scores", "query", "check")),
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does_and_speaks_json(words):
    said = cli(*words, "--help")
    assert said.code == 0 and said.err == ""
    assert "--json" in said.out and "Usage: " in said.out
    text = COMMANDS[words].help or ""
    assert len(text.split()) > 5, f"{words} is missing its help"
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "help", None) or parameter.name == "help", (
            f"{words} {parameter.name} is missing its help"
        )


def test_help_imports_nothing_heavy_and_is_quick():
    program = (
        "import sys; from evometa.cli import main\n"
        "sys.argv = ['evometa', *sys.argv[1:]]\n"
        "try: main()\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    for words in (("--help",), ("run", "--help"), ("archive", "query", "--help"), ("--version",)):
        best = np.inf
        for _ in range(2):
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment(), check=False
            )
            best = min(best, time.monotonic() - began)
        loaded = done.stderr.strip().replace("'pydantic'", "")  # typer's own, for the help of a command with options
        assert done.returncode == 0 and (loaded if len(words) > 1 else done.stderr.strip()) == "[]", (
            words,
            done.stderr,
        )
        assert best < 2.0, f"{words} took {best:.2f} s"  # 0.1 s on a quiet machine


def test_importing_evometa_imports_nothing_heavy():
    program = f"import sys, evometa; dir(evometa); print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


def test_lists_need_no_library_that_searches():
    program = (
        "import sys, contextlib, io; from evometa.cli import main\n"
        "sys.argv = ['evometa', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, [m for m in ('jax', 'evosax', 'optuna', 'duckdb') if m in sys.modules], file=sys.stderr)"
    )
    for words in (("strategies",), ("strategies", "cma_es")):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment(), check=True
        )
        assert done.stderr.strip() == "0 []", words


def test_version():
    assert cli("--version").out.strip() == evometa.__version__


def test_no_command_shows_the_help():
    said = cli()
    assert said.code in (0, 2) and "Usage" in said.out + said.err


# --- stable outputs ------------------------------------------------------------------------------------------------


def test_run_json(folder):
    arguments = (
        "run",
        "plain.py",
        "--population",
        4,
        "--generations",
        2,
        "--strategy",
        "genetic",
        "--name",
        "x",
        "--json",
    )
    said = cli(*arguments)
    assert said.code == 0
    data = said.data
    assert list(data) == ["run", "path", "generations", "candidates", "champion", "seconds"]
    assert (data["run"], data["path"], data["generations"], data["candidates"]) == ("x", "runs/x", 2, 8)
    assert list(data["champion"]) == ["generation", "index", "validation"]
    assert isinstance(data["champion"]["validation"], float) and data["seconds"] > 0
    assert "generation" in said.err and said.out.count("\n") == 1, "words on standard error, data on standard output"


def test_a_mean_has_no_index(copies):
    """A recommendation that is nobody's genome has index null."""
    said = cli("watch", "ridge", "--once", "--json")
    best = evometa.open("runs/ridge").champion
    assert said.data["champion"] == {"generation": best.generation, "index": best.index, "validation": best.validation}


def test_archive_top_json(copies):
    rows = cli("archive", "top", "plain", "-k", 3, "--json").data
    assert [list(row) for row in rows] == [["generation", "index", "fitness", "params"]] * 3
    assert list(rows[0]["params"]) == ["x", "kind"] and rows[0]["params"]["kind"] in ("round", "flat")
    table = Archive("runs/plain").table(["generation", "index", "fitness"]).to_pylist()
    expected = sorted(table, key=lambda row: (row["fitness"], row["generation"], row["index"]))[:3]
    assert [{k: row[k] for k in ("generation", "index", "fitness")} for row in rows] == expected


def test_archive_lineage_json(copies):
    data = cli("archive", "lineage", "plain", "4:3", "--json").data
    assert list(data) == ["nodes", "edges"]
    nodes = {(node["generation"], node["index"]) for node in data["nodes"]}
    assert (data["nodes"][0]["generation"], data["nodes"][0]["index"]) == (4, 3)
    rows = {(row["generation"], row["index"]): row for row in Archive("runs/plain").table().to_pylist()}
    edges = {(tuple(edge["child"]), tuple(edge["parent"])) for edge in data["edges"]}
    expected = {(who, (p["generation"], p["index"])) for who in nodes for p in rows[who]["parents"]}
    assert edges == expected and {parent for _, parent in edges} <= nodes
    assert min(generation for generation, _ in nodes) == 0, "reconstructible to generation 0"  # SYS-5
    assert len(cli("archive", "lineage", "plain", "4:3", "--depth", 0, "--json").data["nodes"]) == 1


def test_archive_check_json(copies):
    data = cli("archive", "check", "plain", "--json").data
    assert data == {"ok": True, "parts": 5, "rows": 40, "problems": []}


def test_archive_query_json(copies):
    sql = "SELECT generation, count(*) AS n, min(fitness) AS best FROM lineage GROUP BY 1 ORDER BY 1"
    rows = cli("archive", "query", "plain", sql, "--json").data
    assert [row["generation"] for row in rows] == [0, 1, 2, 3, 4] and {row["n"] for row in rows} == {8}
    rows = cli("archive", "query", "plain", "SELECT 'inf'::double AS a, NULL AS b, 1 = 1 AS c", "--json").data
    assert rows == [{"a": None, "b": None, "c": True}], "JSON has no infinity"


JSON_COMMANDS = [
    ("runs",), ("report", "ridge"), ("report", "plain"), ("watch", "plain", "--once"), ("tasks",), ("tasks", "plain.py"),
    ("strategies",), ("strategies", "genetic"), ("archive", "ls", "plain"), ("archive", "show", "plain", "0:0"),
    ("archive", "scores", "plain"), ("archive", "scores", "plain", "1:1"), ("archive", "lineage", "ridge", "5:1"),
    ("archive", "show", "static", "1:1"), ("unseal", "plain"), ("run", "ridge.py", "--dry-run", "--population", "8"),
]  # fmt: skip


@pytest.mark.parametrize("words", JSON_COMMANDS, ids=" ".join)
def test_standard_output_is_json_or_words(copies, words):
    said = cli(*words, "--json")
    assert said.code == 0, said
    parsed = json.loads(said.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert parsed
    plain = cli(*words)
    assert plain.code == 0 and plain.out.strip() and "\x1b[" not in plain.out
    if words[0] != "run":
        with pytest.raises(json.JSONDecodeError):
            json.loads(plain.out)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(folder):
    data = cli("run", "ridge.py", "--population", 8, "--generations", 5, "--dry-run", "--json").data
    assert data["candidates"] == 40 and data["trainings"] == 40 * 3
    assert data["plan"]["devices"] == 2 and data["spec"]["population"] == 8
    assert not (folder / "runs").exists()


def test_settings_reach_the_spec(folder):
    arguments = ("run", "ridge.py", "--dry-run", "--json", "--population", 8, "--seed", 5, "--objective", "home:worst")
    data = cli(
        *arguments, "--set", "strategy_options.sigma=0.4", "--set", "champion.observed=2", "--set", "start=center"
    ).data
    spec = data["spec"]
    assert (spec["seed"], spec["strategy_options"], spec["champion"]["observed"], spec["start"]) == (
        5,
        {"sigma": 0.4},
        2,
        "center",
    )
    assert data["task"]["objectives"] == ["home:worst"]


def test_the_start_is_the_baseline_unless_it_is_the_center(folder):
    arguments = ("run", "plain.py", "--population", 4, "--generations", 1, "--strategy", "genetic")
    text = PLAIN.replace('runs="python",', 'runs="python", baseline={"x": 0.6, "kind": "flat"},')
    (folder / "plain.py").write_text(text)
    for start, x in (("baseline", 0.6), ("center", 0.0)):
        assert cli(*arguments, "--set", f"start={start}", "--name", start).code == 0
        assert Archive(f"runs/{start}").row(0, 0)["params"]["x"] == pytest.approx(x, abs=1e-6)


def test_what_a_finished_run_suggests_can_be_typed(copies):
    said = cli("resume", "plain")
    suggestions = re.findall(r"evometa ((?:archive|unseal)[^(\n]*)", said.out)
    assert len(suggestions) == 2
    for line in suggestions:
        assert cli(*line.split()).code == 0


def test_a_reader_that_leaves_early_is_no_error(copies):
    script = f"{sys.executable} -m evometa archive scores plain 1:1 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=copies, capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0 and done.stderr == ""


def test_new_task_and_strategy_refuse_what_is_there(folder):
    assert cli("new", "task", "mine", "--json").data == {"path": "mine.py"}
    before = Path("mine.py").read_text()
    one_line(cli("new", "task", "mine"), 2, "mine.py exists")
    one_line(cli("new", "strategy", "not a name"), 2, "not a name", "evometa new strategy")
    one_line(cli("new", "task", "json"), 2, "json")
    assert Path("mine.py").read_text() == before

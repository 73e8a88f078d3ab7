"""Lists of tasks and strategies: complete, short, and they import no library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evometa.errors import NotFound
from evometa.names import known
from evometa.reports import catalogue
from evometa.strategies import STRATEGIES
from evometa.tasks import TASKS


def test_lists_are_complete_and_narrow() -> None:
    tasks, strategies = catalogue.tasks_rows(), catalogue.strategies_rows()
    assert [row["task"] for row in tasks][: len(TASKS)] == list(TASKS)
    assert [row["strategy"] for row in strategies][: len(STRATEGIES)] == list(STRATEGIES)
    assert all(row["what"] and not row["what"].startswith("(") for row in tasks + strategies)
    for text in (catalogue.tasks_table(tasks), catalogue.strategies_table(strategies)):
        assert max(map(len, text.splitlines())) <= 100
        assert "evometa new" in text


@pytest.mark.parametrize("command", ["tasks", "strategies"])
def test_lists_import_no_library(command: str) -> None:
    code = (
        "import sys; sys.argv = ['evometa', sys.argv[1], '--json']\n"
        "from evometa.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('jax', 'pyarrow', 'scipy', 'evosax', 'optuna', 'duckdb', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    rows, imported = done.stdout.splitlines()
    assert done.returncode == 0 and len(json.loads(rows)) >= 3
    assert imported == "[]"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_described(name: str) -> None:
    data = catalogue.task_data(name)
    assert json.loads(json.dumps(data)) == data
    assert data["split"]["train"] and data["space"] and data["profiles"]
    text = catalogue.task_text(data)
    assert max(map(len, text.splitlines())) <= 100 and f"evometa run {name}" in text


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_described(name: str) -> None:
    data = catalogue.strategy_data(name)
    assert json.loads(json.dumps(data)) == data
    text = catalogue.strategy_text(data)
    assert f"--strategy {name}" in text and data["source"] in text.replace("\n" + " " * 12, " ")


def test_a_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        '"""mine: what it is for."""\nimport evometa\n@evometa.objective(space={"x": evometa.categorical(("a", "b"))})\ndef task(key, c):\n    return 0.0\n'
    )
    text = catalogue.task_text(catalogue.task_data(str(path)))
    assert text.startswith("mine: what it is for.") and "nothing held out" in text and "categorical: a, b  (b)" in text


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(NotFound, match='Did you mean "ladder"'):
        catalogue.task_data("lader")
    with pytest.raises(NotFound, match='Did you mean "cma_es"'):
        catalogue.strategy_data("cma_e")


def test_tasks_of_other_packages_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("raise RuntimeError('a list must not import me')\n")
    (tmp_path / "theirs" / "rocks.py").write_text('"""Rocks."""\ndef quarry():\n    """Stones to learn from."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        catalogue, "known", lambda kind: {**known(kind), "rocks": "theirs.rocks:quarry", "gone": "nowhere.at_all:x"}
    )
    rows = {row["task"]: row for row in catalogue.tasks_rows()}
    assert rows["rocks"]["what"] == "Stones to learn from." and rows["rocks"]["from"] == "theirs"
    assert rows["gone"]["what"] == "(not installed)"
    assert "[theirs]" in catalogue.tasks_table(list(rows.values()))

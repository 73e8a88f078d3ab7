"""What `evometa new` writes passes its check and runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

import evometa
from evometa.checking import check_strategy, check_task
from evometa.errors import UsageError
from evometa.scaffold import new_strategy, new_task


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_new_task_passes_its_check_and_runs_with_a_new_strategy() -> None:
    path = new_task("waves")
    assert path == Path("waves.py") and "NAME" not in path.read_text()
    report = check_task("waves.py")
    assert report.ok, report.text()
    new_strategy("climb")
    run = evometa.run("waves.py", strategy="climb.py:climb", generations=15, population=16)
    assert run.champion is not None and run.champion.validation < run.champion.baseline
    assert all(row["failure"] == "ok" for row in run.lineage().to_pylist())


def test_a_new_strategy_passes_the_exam() -> None:
    new_strategy("climb")
    report = check_strategy("climb.py:climb")
    assert report.ok, report.text()
    assert {"resume", "block", "beats_random", "parents"} <= {line.check for line in report.lines}


def test_a_new_task_is_about_a_dozen_lines() -> None:
    lines = [line.strip() for line in new_task("waves").read_text().splitlines()]
    code = [line for line in lines if line and not line.startswith(("#", '"""', "import"))]
    assert len(code) < 30


@pytest.mark.parametrize("write", [new_task, new_strategy])
@pytest.mark.parametrize("name", ["class", "2x", "a b", "a-b", "", "ünder", "_x", "../x", "x" * 65])
def test_names_that_python_cannot_import_are_refused(write: object, name: str) -> None:
    with pytest.raises(UsageError, match="Try: evometa new"):
        write(name)  # type: ignore[operator]
    assert not list(Path().iterdir())


def test_nothing_is_overwritten() -> None:
    Path("mine.py").write_text("precious")
    with pytest.raises(UsageError, match=r"mine\.py exists already"):
        new_task("mine")
    assert Path("mine.py").read_text() == "precious"


def test_a_name_that_hides_a_module_is_refused() -> None:
    with pytest.raises(UsageError, match="my_json"):
        new_task("json")


def test_the_command_line_says_what_to_type_next() -> None:
    def evometa_(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "evometa", *words], capture_output=True, text=True)

    made = evometa_("new", "task", "waves")
    assert made.returncode == 0 and "evometa run waves.py" in made.stdout
    again = evometa_("new", "task", "waves")
    assert again.returncode == 2 and "exists already" in again.stderr and "Traceback" not in again.stderr

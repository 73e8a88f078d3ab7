"""Documentation that cannot lie: every code block of the README and of docs/ runs, in order, in an empty folder.

```python            executed; one namespace per page
```python file=X     written to the file X
```toml file=X       written to the file X
```console           commands after "$ " must succeed
... no-run           shown only
"""

import re
import shlex
from pathlib import Path

import pytest
from helpers import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    return [(language, info.strip(), text) for language, info, text in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, info, text in blocks(page):
        if "no-run" in info:
            continue
        if "file=" in info:
            Path(shlex.split(info.split("file=")[1])[0]).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page.name} block", "exec"), namespace)
        elif language == "console":
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    # In this process: the same program, without a start of Python and JAX for every line.
                    program, *arguments = shlex.split(line[2:], comments=True)
                    assert program == "evometa", line
                    said = cli(*arguments)
                    assert said.code == 0, f"{line}\n{said.out}\n{said.err}"


def test_links_within_the_project_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_in_the_readme():
    from typer.main import get_command

    from evometa.cli import app

    readme = (ROOT / "README.md").read_text()
    group = get_command(app)
    names = [
        f"evometa {name} {sub}" if hasattr(command, "commands") else f"evometa {name}"
        for name, command in group.commands.items()
        for sub in getattr(command, "commands", {"": None})
    ]
    assert [name for name in names if name not in readme] == []

"""`evometa check ...` and `evometa new ...`: for people who write tasks and strategies."""

from __future__ import annotations

from typing import Annotated

import typer

from evometa.cli_archive import Json, emit

check_app = typer.Typer(help="Check that a task or a strategy keeps its contract.", no_args_is_help=True)
new_app = typer.Typer(help="Write a task or a strategy to start from; it passes its check.", no_args_is_help=True)


@check_app.command("task")
def check_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name or file.py.")],
    as_json: Json = False,
) -> None:
    """Check a task: it is deterministic, its numbers are numbers, and its learners never saw a query.

    Swaps and poisons every query and asserts that what is learned stays the same to the bit.
    """
    from evometa.machine import use_host_devices

    use_host_devices()
    from evometa.checking import check_task as examine

    report = examine(task)
    emit(report.to_json(), as_json, report.text)
    if not report.ok:
        raise typer.Exit(1)


@check_app.command("strategy")
def check_strategy(
    name: Annotated[str, typer.Argument(metavar="STRATEGY", help="A strategy's name, file.py:attr or module:attr.")],
    as_json: Json = False,
) -> None:
    """Put a strategy through the exam that every built-in one sits."""
    from evometa.machine import use_host_devices

    use_host_devices()
    from evometa.checking import check_strategy as examine

    report = examine(name)
    emit(report.to_json(), as_json, report.text)
    if not report.ok:
        raise typer.Exit(1)


@new_app.command("task")
def new_task(
    name: Annotated[str, typer.Argument(help="Its name; NAME.py is written here.")], as_json: Json = False
) -> None:
    """Write NAME.py, a task of a dozen lines that runs and passes its check."""
    from evometa.scaffold import new_task as write

    path = write(name)
    emit(
        {"path": str(path)}, as_json, lambda: f"wrote {path}\nNext: evometa check task {path}, then: evometa run {path}"
    )


@new_app.command("strategy")
def new_strategy(
    name: Annotated[str, typer.Argument(help="Its name; NAME.py is written here.")], as_json: Json = False
) -> None:
    """Write NAME.py, a strategy that passes the exam."""
    from evometa.scaffold import new_strategy as write

    path = write(name)
    emit({"path": str(path)}, as_json, lambda: f"wrote {path}\nNext: evometa check strategy {path}:{path.stem}")

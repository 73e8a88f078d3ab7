"""Looking at runs, tasks and strategies from the command line: nothing here changes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evometa.cli_archive import Json, Out, RunName, emit


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (runs, report, watch, tasks, strategies):
        app.command()(command)


def runs(out: Out = Path("runs"), as_json: Json = False) -> None:
    """List the runs in a folder, with how far they came and what they found."""
    from evometa.reports.tables import runs_rows, runs_table

    rows = runs_rows(out)
    emit(rows, as_json, lambda: runs_table(rows, out))


def report(run: RunName, as_json: Json = False) -> None:
    """Show one run: what it is, its champion, every opening of its test domains."""
    from evometa import folder
    from evometa.reports.tables import report_data, report_text

    data = report_data(folder.find(run))
    emit(data, as_json, lambda: report_text(data))


def watch(
    run: RunName,
    once: Annotated[bool, typer.Option("--once", help="Print the state once and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Look on while another process carries a run; never touches it. Ctrl-C stops looking."""
    from evometa import folder
    from evometa.reports.watch import follow

    follow(folder.find(run), once=once or as_json, as_json=as_json)


def tasks(
    name: Annotated[str | None, typer.Argument(help="Describe this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the tasks, or describe one: its space, domains, split, baseline and profiles."""
    from evometa.reports.catalogue import task_data, task_text, tasks_rows, tasks_table

    if name is None:
        rows = tasks_rows()
        emit(rows, as_json, lambda: tasks_table(rows))
    else:
        data = task_data(name)
        emit(data, as_json, lambda: task_text(data))


def strategies(
    name: Annotated[str | None, typer.Argument(help="Describe this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the strategies, or describe one: what it searches, its options and source."""
    from evometa.reports.catalogue import strategies_rows, strategies_table, strategy_data, strategy_text

    if name is None:
        rows = strategies_rows()
        emit(rows, as_json, lambda: strategies_table(rows))
    else:
        data = strategy_data(name)
        emit(data, as_json, lambda: strategy_text(data))

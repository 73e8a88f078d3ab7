"""`evometa doctor` and `evometa trust`: what stands in a run's way here, and whose code it may start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evometa.cli_archive import Json, Out, RunName, emit


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (doctor, trust):
        app.command()(command)


def doctor(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Also check every byte of this run.")] = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Look for what stands in a run's way here, and name the fix. Exit code 1 where something does.

    Example: evometa doctor --out runs
    """
    from evometa import folder
    from evometa.doctor import examine
    from evometa.reports.tables import table

    found = examine(out, folder.find(run, out) if run else None)
    rows = [finding._asdict() for finding in found]
    problems = [finding for finding in found if finding.status == "problem"]

    def text() -> str:
        shown = table([{"check": f.check, "": f.status, "found": f.found} for f in found])
        fixes = [f"  {f.check}: {f.fix}" for f in problems]
        notes = [f"  {f.check}: {f.fix}" for f in found if f.status == "note" and f.fix]
        parts = [shown, *(["to fix:", *fixes] if fixes else []), *(["where you want it:", *notes] if notes else [])]
        return "\n".join(parts)

    emit({"ok": not problems, "findings": rows}, as_json, text)
    if problems:
        raise typer.Exit(1)


def trust(run: RunName, as_json: Json = False) -> None:
    """Let a run that was started elsewhere, or by somebody else, use the code that it names. Look at that code first.

    Looking at a run (archive, report, compare, watch) runs no code of it and needs no trust.

    Example: evometa trust runs/downloaded
    """
    from evometa import folder
    from evometa.trust import describe
    from evometa.trust import trust as keep

    path = folder.find(run)
    found = keep(path, folder.read_record(path))
    data = {"run": path.name, "code": [{**code._asdict(), "file": code.file and str(code.file)} for code in found]}
    lines = [f"{path.name} may use from now on:", *(f"  {describe(code)}" for code in found)]
    emit(data, as_json, lambda: "\n".join(lines) if found else f"{path.name} names no code but evometa's own")

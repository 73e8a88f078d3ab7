"""`evometa export RUN`: a found rule as a file that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evometa.cli_archive import Json, RunName, candidate_of, emit


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)


def export(
    run: RunName,
    form: Annotated[str, typer.Option("--as", metavar="optax|python|latex", help="What to write.")] = "python",
    candidate: Annotated[
        str | None, typer.Option(metavar="GEN:INDEX", help="This candidate, not the champion.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Which program, where a candidate has several.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="The file to write; otherwise standard output.")] = None,
    as_json: Json = False,
) -> None:
    """Write the update rule that a run found: an Optax optimizer, a NumPy module, or LaTeX.

    Example: evometa export runs/learned_opt-linear_gp-s0 --as optax --to found_rule.py
    """
    from evometa import folder
    from evometa.errors import UsageError
    from evometa.export.rule import export as make

    source = make(folder.find(run), form, candidate_of(candidate) if candidate else None, column)
    if to is None:
        emit({"form": form, "source": source}, as_json, lambda: source)
        return
    if to.exists():
        raise UsageError(f"export: {to} exists. Give another file with --to")
    to.write_text(source)
    emit({"form": form, "file": str(to)}, as_json, lambda: f"wrote {to}")

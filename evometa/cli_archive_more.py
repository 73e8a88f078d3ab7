"""`evometa archive compact|repair|export|pull`: care of a run's files, and their way into other programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from evometa.cli_archive import Json, RunName, emit

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `evometa archive`."""
    for command in (compact, repair, export, pull):
        app.command()(command)


def compact(
    run: RunName,
    rows: Annotated[int, typer.Option(help="Rows of a file, at the most.", min=1)] = 1_000_000,
    grace: Annotated[
        float, typer.Option(help="Seconds for which superseded files are kept for readers.", min=0.0)
    ] = 10.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Merge many small parts into few large ones, at once for everybody who reads them.

    Rows stay what they are, and the run can go on. Example: evometa archive compact runs/ladder-cma_es-s0
    """
    from evometa.upkeep import compact as merge

    data = merge(run, rows=rows, grace=grace, dry_run=dry_run)

    def text() -> str:
        if data["parts"] == data["files"]:
            return f"nothing to merge: {data['parts']} part{'s' * (data['parts'] != 1)}, {data['rows']} rows"
        verb = "would become" if dry_run else "became"
        size = "" if dry_run else f", {data['bytes_before'] / 1e6:.1f} MB became {data['bytes_after'] / 1e6:.1f} MB"
        return f"{data['parts']} parts {verb} {data['files']}, {data['rows']} rows{size}"

    emit(data, as_json, text)


def repair(run: RunName, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Move what is broken into RUN/quarantine, delete nothing, and say what can be resumed, and from where.

    Exit code 5 where something was lost. Example: evometa archive repair runs/ladder-cma_es-s0 --dry-run
    """
    from evometa.upkeep import repair as mend

    data = mend(run, dry_run=dry_run)

    def text() -> str:
        verb = "would be moved" if dry_run else "moved"
        lines = [f"{verb}: {move['path']} ({move['reason']})" for move in data["moves"]]
        lines += [f"lost: {line}" for line in data["lost"]]
        lines += [f"in: {data['quarantine']}"] if data["quarantine"] else []
        return "\n".join([*lines, "" if lines else "nothing is broken", data["advice"]]).strip()

    emit(data, as_json, text)
    if data["lost"]:
        raise typer.Exit(5)


def export(
    run: RunName,
    to: Annotated[Path | None, typer.Option("--to", help="The file to write; otherwise standard output.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="A line per candidate; lists as JSON.")] = False,
    as_delta: Annotated[bool, typer.Option("--delta", help="A Delta table (needs --to, a new folder).")] = False,
    as_alife: Annotated[bool, typer.Option("--alife", help="The ALife data standard's phylogeny, in CSV.")] = False,
    as_newick: Annotated[bool, typer.Option("--newick", help="A tree of first parents.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON, a line per candidate; beside another form: say what was written.")
    ] = False,
) -> None:
    """Write the whole lineage in another format. (A found rule alone is written by: evometa export)

    Example: evometa archive export runs/ladder-cma_es-s0 --csv --to lineage.csv
    """
    from evometa import folder
    from evometa.archives.export import export as write
    from evometa.errors import UsageError

    asked = {"csv": as_csv, "delta": as_delta, "alife": as_alife, "newick": as_newick}
    forms = [name for name, wanted in asked.items() if wanted] or (["json"] if as_json else [])
    if len(forms) != 1:
        raise UsageError(
            f"export: expected one of --csv, --json, --delta, --alife, --newick, got {len(forms)}. Try --csv"
        )
    (form,) = forms
    path = folder.find(run)
    if to is None:
        if form == "delta":
            raise UsageError("export: a Delta table is a folder. Say where with --to DIR")
        try:
            shown: Any = _Shown()
            write(path, form, shown)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader left (`| head`): nowhere to say anything, at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if to.exists():
        raise UsageError(f"export: {to} exists. Give another file with --to")
    rows = _to_file(path, form, to, write)
    data = {"form": form, "to": str(to), "rows": rows}
    emit(data, as_json and form != "json", lambda: f"wrote {rows} candidates to {to}")


def pull(
    run: RunName,
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, to become the run.")],
    as_json: Json = False,
) -> None:
    """Copy a run from an object store to a folder: an ordinary run, with nothing left of where it came from.

    Example: evometa archive pull s3://bucket/runs/ladder-cma_es-s0 runs/ladder-cma_es-s0
    """
    from evometa.upkeep import pull as fetch

    data = fetch(run, to)
    note = "" if data["ledger"] else f"; the ledger beside {to} is not the store's: looks in the store are not counted"
    emit(data, as_json, lambda: f"wrote {to}: {data['files']} files, {data['bytes'] / 1e6:.1f} MB{note}")


class _Shown:
    """Standard output for the texts of other people's archives: a terminal shows them and obeys nothing."""

    def write(self, text: str) -> int:
        """As a file does."""
        from evometa.printable import printable

        return sys.stdout.write(printable(text))


def _to_file(path: Path, form: str, to: Path, write: Any) -> int:
    """Under another name first: whoever finds the file finds the whole of it."""
    from evometa.archives.write import storage

    if form == "delta":
        return write(path, form, to)
    with storage(to):
        partial = to.with_name(f"{to.name}.partial")
        try:
            with open(partial, "w", newline="") as file:
                rows = write(path, form, file)
            partial.rename(to)
        finally:
            partial.unlink(missing_ok=True)
    return rows

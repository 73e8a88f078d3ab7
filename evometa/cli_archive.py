"""`evometa archive ...`: questions to a run's lineage, asked of its files, also while it grows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

archive = typer.Typer(help="Look at a run's lineage: every candidate ever scored.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run: its folder, its name in runs/, or s3://BUCKET/PREFIX/RUN.")
]


def folder_of(text: str | Path) -> Path:
    """`--out` as a folder; of an object store, where its runs are copied to on this machine."""
    if ":/" not in str(text):
        return Path(text)
    from evometa.archives.place import local

    return local(text)


Out = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", parser=folder_of, help="Folder that holds the runs, or s3://BUCKET/PREFIX."),
]
Candidate = Annotated[str, typer.Argument(metavar="GEN:INDEX", help="A candidate: generation and index, as 12:3.")]


@archive.command("ls")
def ls(run: RunName, as_json: Json = False) -> None:
    """List the parts: which generations each holds, how many rows, its size."""
    from evometa.reports.tables import parts_rows, table

    rows = parts_rows(_path(run))
    emit(rows, as_json, lambda: table(rows))


@archive.command("show")
def show(
    run: RunName,
    candidate: Candidate,
    replay: Annotated[bool, typer.Option("--replay", help="Compute its scores again and compare the bits.")] = False,
    as_json: Json = False,
) -> None:
    """Show one candidate: its parameters, parents and scores.

    Example: evometa archive show runs/ladder-cma_es-s0 12:3 --replay
    """
    path, (generation, index) = _path(run), candidate_of(candidate)
    if replay:
        from evometa.machine import use_devices_of

        use_devices_of(path)
    from evometa.archives.read import Archive
    from evometa.reports.tables import candidate_text

    data: dict[str, Any] = {"candidate": Archive(path).row(generation, index)}
    if replay:
        from evometa.replay import replay as again

        data["replay"] = again(path, generation, index)
    emit(
        _finite(data if replay else data["candidate"]),
        as_json,
        lambda: candidate_text(data["candidate"], data.get("replay")),
    )
    if replay and not data["replay"]["equal"]:
        raise typer.Exit(5)


@archive.command("expand")
def expand(run: RunName, candidate: Candidate, as_json: Json = False) -> None:
    """Recreate the lower searches behind a candidate of a nested run, as lineages below RUN/expanded.

    Example: evometa archive expand runs/nested 3:0
    """
    path, who = _path(run), candidate_of(candidate)
    from evometa.machine import use_devices_of

    use_devices_of(path)
    from evometa.expand import expand as again
    from evometa.reports.tables import table

    data = again(path, *who)
    emit(data, as_json, lambda: table(data["searches"]))
    if not data["equal"]:
        raise typer.Exit(5)


@archive.command("top")
def top(
    run: RunName, k: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 10, as_json: Json = False
) -> None:
    """The candidates of lowest fitness. Observed values: the luckiest, not the likely-best."""
    from evometa.archives.read import Archive
    from evometa.reports.tables import table, top_rows

    rows = top_rows(Archive(_path(run)).top(k))
    flat = [{**{key: row[key] for key in ("generation", "index", "fitness")}, **row["params"]} for row in rows]
    emit(_finite(rows), as_json, lambda: table(flat))


@archive.command("lineage")
def lineage(
    run: RunName,
    candidate: Annotated[
        str | None, typer.Argument(metavar="[GEN:INDEX]", help="A candidate; by default the champion.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="How many steps back; a distribution's ancestry is everything.", min=0)
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Draw it: .svg, .png, .json; without a candidate everybody. Or write .nwk, .csv."),
    ] = None,
    by_generation: Annotated[
        bool, typer.Option("--by-generation", help="One node for every generation before: its best candidate.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The ancestors of a candidate as a tree, back to the first generation; or a picture of a run's genealogy.

    Example: evometa archive lineage runs/ladder-open_ended-s0 --to tree.svg
    """
    path = _path(run)
    who = candidate_of(candidate) if candidate else None
    if to is not None:
        from evometa.reports.genealogy_figure import picture

        drawn = str(picture(path, to, who))
        emit({"picture": drawn}, as_json, lambda: f"wrote {drawn}")
        return
    from evometa.archives.read import Archive
    from evometa.folder import read_record
    from evometa.reports.genealogy import champion_name, tree_text

    data = Archive(path).ancestry(*(who or champion_name(path)), depth, by_generation)
    origin = read_record(path).get("from")

    def text() -> str:
        forked = f"\na fork: ancestors before generation {origin['first']} are in {origin['run']}" if origin else ""
        return (line_text(data) if by_generation else tree_text(data)) + forked

    emit(_finite(data), as_json, text)


def line_text(data: dict[str, Any]) -> str:
    """One line per generation: the best candidate of each."""
    return "\n".join(f"{node['generation']}:{node['index']}  {node['fitness']:.6g}" for node in data["nodes"])


@archive.command("diff")
def diff(
    run: RunName,
    candidate: Candidate,
    other: Annotated[str | None, typer.Argument(metavar="[GEN:INDEX]", help="Compare with this one instead.")] = None,
    depth: Annotated[int | None, typer.Option(help="How many steps back.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """What changed along the first parents that led to a candidate; or from another candidate to it.

    Example: evometa archive diff runs/learned_opt-linear_gp-s0 30:0
    """
    from evometa.reports.changes import diff_data, diff_text

    data = diff_data(_path(run), candidate_of(candidate), candidate_of(other) if other else None, depth)
    emit(_finite(data), as_json, lambda: diff_text(data))


@archive.command("scores")
def scores(
    run: RunName,
    candidate: Annotated[str | None, typer.Argument(metavar="[GEN:INDEX]", help="Only this candidate.")] = None,
    as_json: Json = False,
) -> None:
    """The losses behind the fitness: per domain and query, over the run or of one candidate."""
    from evometa.reports.tables import scores_rows, table

    rows = scores_rows(_path(run), candidate_of(candidate) if candidate else None)
    emit(_finite(rows), as_json, lambda: table(rows))


@archive.command("query")
def query(
    run: RunName,
    sql: Annotated[
        str, typer.Argument(metavar="SELECT", help="One SELECT over the views lineage, scores, judgements.")
    ],
    as_json: Json = False,
) -> None:
    """Ask in SQL. One SELECT, nothing else, and nothing outside this run.

    Example: evometa archive query RUN "SELECT generation, min(fitness) FROM lineage GROUP BY 1 ORDER BY 1"
    """
    from evometa.archives.query import query as ask
    from evometa.reports.tables import table

    rows = ask(_path(run), sql)
    emit(_finite(rows), as_json, lambda: table(rows))


@archive.command("check")
def check(run: RunName, as_json: Json = False) -> None:
    """Verify every byte: hashes, schema, gaps, parents, the diary. Exit code 5 where something is wrong."""
    from evometa.archives.check import check as examine

    found = examine(_path(run))
    data = {"ok": found.ok, "parts": found.parts, "rows": found.rows, "problems": found.problems}

    def text() -> str:
        head = f"{'ok' if found.ok else 'not ok'}: {found.parts} parts, {found.rows} rows"
        return "\n".join([head, *found.problems])

    emit(data, as_json, text)
    if not found.ok:
        raise typer.Exit(5)


def _path(run: str) -> Path:
    from evometa.folder import find

    return find(run)


def candidate_of(text: str) -> tuple[int, int]:
    """`12:3` as (12, 3). Raises `UsageError` for anything else."""
    from evometa.errors import UsageError

    generation, colon, index = text.partition(":")
    if not (colon and generation.isdigit() and index.isdigit()):
        raise UsageError(f"expected a candidate as GENERATION:INDEX, got {text!r}. Try 0:0")
    return int(generation), int(index)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: a failed candidate's fitness becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    if isinstance(value, float):
        return None
    return value if isinstance(value, int | str | bool | None) else str(value)


def emit(data: Any, as_json: bool, text: Any) -> None:
    """Print JSON, or what `text()` says."""
    import json

    from evometa.printable import as_typed, printable

    try:
        print(as_typed(json.dumps(data, allow_nan=False)) if as_json else printable(text()), flush=True)
    except BrokenPipeError:
        # The reader left (`| head`): nothing to say, and nowhere to say it, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""`evometa compare` and `evometa study`: methods against each other, with a verdict by a rule stated before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evometa.cli_archive import Json, Out, emit
from evometa.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("compare")(compare)
    app.command("study")(study)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="[NAME=]RUN...", help="Opened runs, or a study; NAME puts runs into one arm.")
    ],
    rival: Annotated[str, typer.Option(metavar="ARM", help="The arm that the others are compared with.")] = "baseline",
    query: Annotated[str | None, typer.Option(help="Compare on this query; by default away.")] = None,
    families: Annotated[
        str | None, typer.Option(metavar="TAG", help="Also take families for units: domains of one value of this tag.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a Markdown page.")] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw a figure: .svg, .png or .json (extra `reports`).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare opened runs on their test domains: paired differences, budgets, and who looked before.

    Runs that differ only in their seed are one arm. Nothing is opened or judged here.

    Example: evometa compare runs/away-s0 runs/away-s1 runs/home-s0 runs/home-s1
    """
    if figure is not None:
        from evometa.reports.figures import check_format

        check_format(figure)
    names, paths = _named(runs)
    from evometa import compare as comparing
    from evometa.reports.compare import comparison_markdown, comparison_text

    loaded = comparing.load(paths, names)
    groups = comparing.families(paths[0], families) if families else None
    data = comparing.results(loaded, rival, query, groups=groups)
    if figure is not None:
        from evometa.reports.figures import comparison_figure

        comparison_figure(data, figure)
    if markdown is not None:
        write_page(markdown, comparison_markdown(data, figure=relative_to(markdown, figure)))
    emit(data, as_json, lambda: comparison_text(data))


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The study: arms, seeds, sweep, claims.")],
    profile: Annotated[str | None, typer.Option(help="One of the file's profiles, such as smoke.")] = None,
    out: Out = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what it will cost; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study: arms x seeds at equal budgets, one opening at the end, a report with the declared verdict.

    Stopped or killed, it goes on where it was when it is called again.

    Example: evometa study study.toml --profile smoke
    """
    from evometa.machine import keep_compilations, use_host_devices

    keep_compilations()
    use_host_devices()
    from evometa.reports import study as reports
    from evometa.reports.live import Live
    from evometa.study_cost import estimate
    from evometa.study_plan import plan

    planned = plan(file, profile)
    if dry_run:
        data = estimate(planned, Live().note)
        emit(data, as_json, lambda: reports.plan_text(data))
        return
    from evometa.study import conduct

    again = " ".join(
        ["evometa study", str(file)]
        + ([f"--profile {profile}"] if profile else [])
        + ([f"--out {out}"] if out != Path("runs") else [])
    )
    data = conduct(planned, out, lambda title: Live(title=title), again)
    written = reports.write(data, out / planned.name)
    emit(data, as_json, lambda: reports.study_text(data) + "\n\nwritten: " + ", ".join(map(str, written)))


def relative_to(page: Path, figure: Path | None) -> str | None:
    """A figure's path as a page refers to it."""
    if figure is None:
        return None
    import os

    return Path(os.path.relpath(figure.absolute(), page.absolute().parent)).as_posix()


def write_page(path: Path, text: str) -> None:
    """Write a report's page; raises `StorageError` where the disk refuses."""
    from evometa.archives.write import storage

    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _named(runs: list[str]) -> tuple[list[str | None], list[Any]]:
    """`NAME=RUN` as names and folders, a study's folder as its runs; an equals sign in a folder's name does no harm."""
    from evometa import folder, study_record
    from evometa.archives.place import is_url, local
    from evometa.archives.pull import refresh

    names: list[str | None] = []
    paths = []
    for text in runs:
        name, equals, reference = text.partition("=")
        place = local(text)
        refresh(place)
        if study_record.is_study(place):
            judged, arms = study_record.arms_of(place)
            paths += judged
            names += arms
            continue
        if not equals or is_url(text) or (place / folder.RECORD).is_file():
            name, reference = "", text
        elif not name.strip() or not reference:
            raise UsageError(f"expected NAME=RUN or RUN, got {text!r}")
        names.append(name.strip() or None)
        paths.append(folder.find(reference))
    return names, paths

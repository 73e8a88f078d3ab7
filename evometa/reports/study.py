"""A study for a reader: its plan before, its report afterwards, as text and Markdown, and the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evometa.archives.write import replace
from evometa.errors import UsageError
from evometa.printable import as_typed, markdown
from evometa.reports.compare import Section, _as_markdown, _as_text, _range, comparison_sections, verdict_sections
from evometa.reports.tables import Rows

FIGURE = "figure.svg"


def plan_text(data: Mapping[str, Any]) -> str:
    """What `--dry-run` found, for a terminal."""
    rows: Rows = [
        {
            "arm": row["arm"],
            "runs": row["runs"],
            "generations": row["generations"],
            "population": row["population"],
            "evaluations": row["evaluations"],
            **({"outer": row["outer_evaluations"]} if any(r["outer_evaluations"] for r in data["arms"]) else {}),
            "trainings": row["trainings"],
            "inner steps": "-" if row["inner_steps"] is None else row["inner_steps"],
            "minutes": round(row["minutes"], 2),
        }
        for row in data["arms"]
    ]
    words = (
        f"{data['runs']} runs, {data['evaluations']:,} evaluations, about {data['minutes']:.1f} minutes here.",
        "Evaluations, trainings and inner steps per run; minutes of all runs. Nothing was run or opened.",
    )
    return _as_text([f"study {data['study']}"], [Section("Plan", rows, words)])


def study_text(data: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    return _as_text([_head(data)], _sections(data))


def study_markdown(data: Mapping[str, Any], figure: str | None = None) -> str:
    """The report as a Markdown page; `figure` is the path of a figure, relative to the page."""
    shown = [f"![differences from {data['results']['rival']}]({figure})"] if figure else []
    return _as_markdown([f"# Study {markdown(data['study'])}", markdown(_head(data)), *shown], _sections(data))


def write(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write report.json, report.md and, where the extra `reports` is there, figure.svg; returns what was written."""
    written = [folder / "report.json", folder / "report.md"]
    figure = _draw(data, folder / FIGURE)
    replace(written[0], as_typed(json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
    replace(written[1], study_markdown(data, FIGURE if figure else None).encode())
    if figure:
        replace(figure, figure.read_bytes())
    return [*written, *([figure] if figure else [])]


def _draw(data: Mapping[str, Any], path: Path) -> Path | None:
    from evometa.reports.figures import comparison_figure

    if not any(row["difference"] is not None for row in data["results"]["differences"]):
        return None
    try:
        return comparison_figure(data["results"], path)
    except UsageError:  # a study needs no figure
        return None


def _head(data: Mapping[str, Any]) -> str:
    results = data["results"]
    seeds, domains = len(data["seeds"]), len(results["domains"])
    return (
        f"{data['runs']} runs: {len(data['arms'])} arms, {seeds} search seed{'s' * (seeds != 1)} each, opened together"
        f" once on {domains} test domain{'s' * (domains != 1)} with {results['inner_seeds']} inner seeds."
        " Lower is better."
    )


def _sections(data: Mapping[str, Any]) -> list[Section]:
    verdict = [] if data["verdict"] is None else verdict_sections(data["verdict"])
    if data["verdict"] is not None and not data["verdict"]["declared"]:
        verdict = [verdict[0]._replace(title="Claims"), *verdict[1:]]
    sweeps = [_sweep(data, key) for key in data["sweeps"]]
    apart = [_apart(data)] if data["apart"] else []
    results = {**data["results"], "searched": []}  # the table of arms says it, and more
    return [*verdict, *comparison_sections(results), *apart, *sweeps, _arms(data)]


def _apart(data: Mapping[str, Any]) -> Section:
    results = data["results"]
    columns = ("domain", "arm", *results["queries"], "difference", "low", "high")
    rows: Rows = [{name: row.get(name) for name in columns} for row in data["apart"]]
    words = (
        f"Judged in the same opening and in no average above. Difference from {results['rival']} on {results['query']},"
        " this domain only; unit: search seed."
    )
    return Section("Shown apart", rows, (words,))


def _sweep(data: Mapping[str, Any], key: str) -> Section:
    results = data["results"]
    query, rival = results["query"], results["rival"]
    means = {row["arm"]: row["queries"] for row in results["arms"]}
    found = {row["arm"]: row for row in results["differences"]}
    rows: Rows = []
    for arm, points in data["sweeps"][key].items():
        for value, label in sorted(points):
            row: dict[str, Any] = {"arm": arm, key: int(value) if value == int(value) else value}
            row |= {name: one["mean"] for name, one in means[label].items()}
            other = found.get(label)
            row |= {name: None if other is None else other[name] for name in ("difference", "low", "high")}
            rows.append(row)
    return Section(f"Sweep of {key}", rows, (f"Mean losses by query, and the difference from {rival} on {query}.",))


def _arms(data: Mapping[str, Any]) -> Section:
    upper = {row["arm"]: row for row in data["upper_budgets"]}
    rows: Rows = []
    for arm in data["arms"]:
        row: dict[str, Any] = {
            "arm": arm["arm"],
            "control": arm["control"] or "-",
            "levels": arm["levels"],
            "evaluations": arm["evaluations"],
            "budget": arm["why"] or "free" if arm["free"] else "equal",
        }
        if upper:
            above = upper.get(arm["arm"])
            row["evaluations above"] = "-" if above is None else _range(above["evaluations"])
            row["inner steps above"] = "-" if above is None else _range(above["inner_steps"])
            row["seconds above"] = "-" if above is None else above["seconds"]
        rows.append(row)
    words = [f"Equal between arms: {data['budget'].replace('_', ' ')} of the runs that are judged."]
    if upper:
        words.append("Above: the searches of the upper levels, each evaluation a whole search; counted apart.")
    oracles = [arm["arm"] for arm in data["arms"] if arm["oracle"]]
    if oracles:
        words.append(
            f"{', '.join(oracles)}: searched on the test domains' own data, after the opening; the ledger counts it"
            " as looks, the table of domains does not. A bound, not a method."
        )
    seen = data["opened_before"] or {}
    if data["opened_before"] is None:
        words.append("The ledger of the opening is not beside the study: who had looked before is not known.")
    if seen:
        shown = ", ".join(f"{name} ({looks} look{'s' * (looks != 1)})" for name, looks in seen.items())
        words.append(f"Opened before this study: {shown}. What was seen cannot confirm.")
    return Section("Arms", rows, tuple(words))

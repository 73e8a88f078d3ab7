"""A comparison and a verdict for a reader: text for a terminal, Markdown for a page. Reads plain data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evometa.printable import markdown
from evometa.reports.tables import Rows, interval_text, table
from evometa.reports.tables import cell_text as text_of


class Section(NamedTuple):
    """A table with its heading and what has to be said under it."""

    title: str
    rows: Rows
    words: tuple[str, ...]


def comparison_text(data: Mapping[str, Any]) -> str:
    """The data of `evometa.compare.results` for a terminal."""
    return _as_text([_head(data)], comparison_sections(data))


def comparison_markdown(data: Mapping[str, Any], title: str = "Comparison", figure: str | None = None) -> str:
    """The same as a Markdown page; `figure` is the path of a figure to show, relative to the page."""
    shown = [f"![differences from {data['rival']}]({figure})"] if figure else []
    return _as_markdown([f"# {markdown(title)}", markdown(_head(data)), *shown], comparison_sections(data))


def verdict_text(data: Mapping[str, Any]) -> str:
    """`Verdict.to_json()` for a terminal."""
    return _as_text([], verdict_sections(data))


def verdict_markdown(data: Mapping[str, Any]) -> str:
    """`Verdict.to_json()` as a Markdown section."""
    return _as_markdown([], verdict_sections(data))


def comparison_sections(data: Mapping[str, Any]) -> list[Section]:
    """Losses, differences, what was used, and who looked before."""
    level = f"{data['level']:.0%} interval".replace("%", " %")
    return [
        _losses(data, level),
        _differences(data, level),
        _domains(data),
        _budgets(data),
    ]


def verdict_sections(data: Mapping[str, Any]) -> list[Section]:
    """The outcome, and every claim with its number, interval and truth value."""
    rows: Rows = []
    for claim in data["claims"]:
        any_of = "refutes" in claim["roles"] or not claim["roles"]
        rows.append(
            {
                "claim": claim["name"],
                "says": claim["text"],
                "role": ", ".join(claim["roles"]) or "reported alone",
                "number": claim["figure"],
                "interval": interval_text(claim["low"], claim["high"]),
                "p": claim["p_value"],
                "p (Holm)": claim["adjusted"],
                "holds": claim["holds_adjusted"] if any_of else claim["holds"],
            }
        )
    words = [
        f"Outcome: {data['outcome']}: {data['why']}.",
        f"Confirmed by all of: {', '.join(data['confirms']) or 'nothing'}. "
        f"Refuted by any of: {', '.join(data['refutes']) or 'nothing'}.",
        "Numbers are arm - rival (or a slope), in units of the loss; below zero is better. All of the confirming claims"
        " have to hold, which needs no correction; those that refute, and those reported alone, are corrected by"
        " Holm's method.",
        *_estimands(data["claims"]),
    ]
    needs = [
        f"{data[key]} {what}"
        for key, what in (("least_domains", "domains"), ("least_seeds", "search seeds"))
        if data[key]
    ]
    if needs:
        words.insert(2, f"The rule asks for at least {' and '.join(needs)}.")
    return [Section("Verdict", rows, tuple(words))]


def _head(data: Mapping[str, Any]) -> str:
    count = len(data["domains"])
    return (
        f"Opening {data['opening']} of {count} test domain{'s' * (count > 1)}, {data['inner_seeds']} inner seeds."
        " Losses: lower is better."
    )


def _losses(data: Mapping[str, Any], level: str) -> Section:
    rows: Rows = []
    failed = []
    for arm in data["arms"]:
        row: dict[str, Any] = {"arm": arm["arm"], "search seeds": len(arm["seeds"])}
        for query, found in arm["queries"].items():
            middle = found["interquartile_mean"]
            row[f"{query} mean"] = found["mean"]
            row[f"{query} IQM"] = middle["value"]
            if query == data["query"]:
                row[f"IQM {level}"] = _between(middle)
            if found["failed"]:
                failed.append(f"{arm['arm']} failed in {found['failed']} cells of {query}: no mean is given.")
        if gap := arm.get("gap"):
            row["away - home"] = gap["difference"]
            row[f"away - home, {level}"] = interval_text(gap["low"], gap["high"])
        rows.append(row)
    if any(arm.get("gap") for arm in data["arms"]):
        failed.append("away - home: the generalization gap, with its interval over search seeds x domains.")
    words = "IQM: the interquartile mean over search seeds x domains, which leaves out the lowest and highest quarter."
    missing = {
        arm["queries"][data["query"]]["interquartile_mean"]["note"]: None
        for arm in data["arms"]
        if arm["queries"][data["query"]]["interquartile_mean"]["low"] is None
    }
    return Section("Losses", rows, (words, *failed, *[_sentence(note) for note in missing]))


def _differences(data: Mapping[str, Any], level: str) -> Section:
    rows: Rows = []
    for found in data["differences"]:
        chance, gap = found["improvement"], found["gap"]
        row = {
            "arm": found["arm"],
            "difference": found["difference"],
            level: interval_text(found["low"], found["high"]),
            "p": found["p_value"],
            "p (Holm)": found["p_holm"],
            "domains won": f"{found['wins']} of {found['domains']}",
            "P(improvement)": _share(chance),
            "detectable": found["detectable"],
        }
        if found["families"]:
            row["over families"] = interval_text(found["families"]["low"], found["families"]["high"])
        if any(other["gap"] for other in data["differences"]):
            row["gap closed"] = _share(gap) if gap else None
        rows.append(row)
    rival = data["rival"]
    words = [
        f"Difference: arm - {rival} on {data['query']}, paired, in units of the loss; below zero is better.",
        *_estimands(data["differences"]),
        f"P(improvement): the chance that the arm ends below {rival} for a search seed and a domain like these."
        " Detectable: the difference that this many search seeds and domains find with 80 % chance.",
    ]
    if len(rows) > 1:
        words.append(f"p (Holm) is corrected for the {len(rows)} comparisons of this table; intervals are not.")
    if any(other["gap"] for other in data["differences"]):
        words.append("Gap closed: (baseline - arm) / (baseline - oracle), with Fieller's interval.")
        words += [
            f"{other['arm']}: {other['gap']['note']}."
            for other in data["differences"]
            if other["gap"] and other["gap"]["note"]
        ]
    return Section(f"Differences from {rival}", rows, tuple(words))


def _domains(data: Mapping[str, Any]) -> Section:
    rows: Rows = []
    for n, domain in enumerate(data["domains"]):
        row: dict[str, Any] = {"domain": domain["domain"], "looks": domain["looks"]}
        for found in data["differences"]:
            row[found["arm"]] = found["per_domain"][n]["difference"]
        rows.append(row)
    searched = data.get("searched", [])
    again = [row["domain"] for row in rows if (row["looks"] or 0) > 1]
    words = [f"Mean difference from {data['rival']} on {data['query']}, by domain. Looks: openings of its data so far."]
    if again:
        words.append(f"Opened more than once, so no longer unseen: {', '.join(again)}.")
    if searched:
        words.append(f"Searched on these domains' own data, so a bound and no method: {', '.join(searched)}.")
    return Section("Domains", rows, (*words, *[_sentence(note) for note in data["notes"]]))


def _budgets(data: Mapping[str, Any]) -> Section:
    rows: Rows = [
        {
            "arm": used["arm"],
            "runs": len(used["runs"]),
            "candidates": _range(used["evaluations"]),
            "trainings": _range(used["trainings"]),
            "inner steps": _range(used["inner_steps"]),
            "scores told": _counts(used["told"]),
            "scores to choose by": _counts(used["chosen"]),
            "seconds": used["seconds"],
        }
        for used in data["budgets"]
    ]
    words = [
        "Per run; seconds of all runs. A search receives scores only, never an example of a query: `scores told` counts"
        " them by query.",
        *[_sentence(line) for line in data["unequal"]],
    ]
    return Section("What was used", rows, tuple(words))


def _estimands(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    about: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        about.setdefault((row["estimand"], row["unit"]), []).append(row.get("arm", row.get("name", "")))
    shown = [
        f"Intervals{'' if len(about) == 1 else ' of ' + ', '.join(dict.fromkeys(arms))}: {estimand}; unit: {unit}."
        for (estimand, unit), arms in about.items()
    ]
    missing = {row["note"]: None for row in rows if row["low"] is None and row["note"]}
    return [*shown, *[_sentence(note) for note in missing]]


def _between(found: Mapping[str, Any]) -> str:
    """Interval of a loss, which needs no sign as a difference does."""
    return "-" if found["low"] is None else f"[{found['low']:.4f}, {found['high']:.4f}]"


def _share(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    inside = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{inside}"


def _range(ends: Sequence[int] | None) -> str:
    if ends is None:
        return "-"
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def _counts(counts: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{query} {_range(ends)}" for query, ends in counts.items()) or "-"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


# --- two ways to print sections ---------------------------------------------------------------------------------


def _as_text(head: Sequence[str], sections: Sequence[Section]) -> str:
    blocks = list(head)
    for section in sections:
        blocks.append("\n".join([section.title.upper(), table(section.rows), *section.words]))
    return "\n\n".join(blocks)


def _as_markdown(head: Sequence[str], sections: Sequence[Section]) -> str:
    blocks = list(head)
    for section in sections:
        blocks += [f"## {section.title}", markdown_table(section.rows), *map(markdown, section.words)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(rows: Rows) -> str:
    """Rows of the same keys as a Markdown table, numbers to the right."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown(cell) for cell in cells) + " |"

    rule = "|" + "|".join(" ---: " if r else " --- " for r in right) + "|"
    return "\n".join([line(names), rule, *[line([text_of(row.get(name)) for name in names]) for row in rows]])

"""The picture of a genealogy, by altair: see genealogy.py for how it is laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evometa.archives.write import storage
from evometa.errors import EvometaError, NotFound, UsageError
from evometa.reports.figures import altair, check_format
from evometa.reports.genealogy import MOST, Family, ancestors, champion_name, eminent, family, rows_of

WRITTEN = {".nwk": "newick", ".csv": "alife"}  # endings of what is no picture, and its form in archives/export.py


def picture(path: Path, out: Path, candidate: tuple[int, int] | None = None) -> Path:
    """Draw a run's genealogy to `out` (.svg, .png, .json), or that of one candidate's ancestors.

    Endings `.nwk` (Newick, first parents) and `.csv` (phylogeny of the ALife standard) hold everybody.
    Colour: fitness, failed ones grey. Ring: in the repertoire. Red: the line of the champion, or of `candidate`.
    Raises `UsageError` for another ending or without the extra `reports`, `NotFound` for nobody of that name.
    """
    if out.suffix in WRITTEN:
        from evometa.archives.export import export

        if candidate is not None:
            raise UsageError(f"{out.suffix} holds all candidates of a run. Leave out {candidate[0]}:{candidate[1]}")
        with storage(out), out.open("w", newline="") as file:
            export(path, WRITTEN[out.suffix], file)
        return out
    check_format(out)
    people, left_out = family(path), 0
    if not len(people.generation):
        raise EvometaError(f"{path}: nobody to draw: this run has no generation yet. Type: evometa resume {path}")
    hero, what = people.row(candidate or champion_name(path)), "candidate" if candidate else "champion"
    if hero is None:
        raise NotFound(f"{path.name} has no candidate {candidate}. Try: evometa archive top {path}")
    name = (int(people.generation[hero]), int(people.index[hero]))
    if candidate is not None:
        people = people.only(ancestors(people, hero))
    if len(people.generation) > MOST:
        whole, people = len(people.generation), people.only(eminent(people, name))
        left_out = whole - len(people.generation)
    hero = people.row(name) or 0
    _draw(path.name, people, hero, what, left_out, out)
    return out


def _draw(title: str, people: Family, hero: int, what: str, left_out: int, out: Path) -> None:
    alt = altair()
    line = people.line(hero)
    place, born = rows_of(people, line), people.generation
    on_line = np.isin(np.arange(len(born)), line)
    finite = np.isfinite(people.fitness)
    low, high = np.quantile(people.fitness[finite], [0.02, 0.9]) if finite.any() else (0.0, 1.0)
    last = born.copy()
    for row, mother in enumerate(people.mother.tolist()):
        if mother >= 0:
            last[mother] = max(last[mother], born[row] - 1)
    # A life line until the last child leaves; from it, a step for each child.
    lives = np.flatnonzero(last > born)
    steps = np.flatnonzero(people.mother >= 0)
    before = {child: parent for parent, child in zip(line[1:], line, strict=False)}
    segments = [
        {"x": int(born[row]), "x2": int(last[row]), "y": float(place[row]), "y2": float(place[row]), "line": False}
        for row in lives.tolist()
    ]  # fmt: skip
    for row in steps.tolist():
        mother = int(people.mother[row])
        start = int(max(born[mother], born[row] - 1))
        red = before.get(row) == mother
        ends = {"x2": int(born[row]), "y2": float(place[row])}
        segments.append({"x": start, "y": float(place[mother]), **ends, "line": red})
        if red and start > born[mother]:
            level = float(place[mother])
            segments.append({"x": int(born[mother]), "x2": start, "y": level, "y2": level, "line": True})
    aunts = [
        {"x": int(born[b]), "x2": int(born[a]), "y": float(place[b]), "y2": float(place[a])}
        for a, b in people.others
        if on_line[a]
    ]
    dots = [
        {
            "x": int(born[row]), "y": float(place[row]), "loss": float(people.fitness[row]) if finite[row] else None,
            "ok": bool(finite[row]),
            "who": f"{born[row]}:{people.index[row]}", "member": bool(people.member[row]), "line": bool(on_line[row]),
        }
        for row in range(len(born))
    ]  # fmt: skip

    across = int(born.max() - born.min()) + 1
    down = float(place.max() - place.min()) + 1
    width, height = int(np.clip(16 * across, 520, 1500)), int(np.clip(11 * down, 260, 1000))
    dot = float(np.clip(min(width / across, height / down), 2.5, 9.0)) ** 2 * 0.6
    x = alt.X(
        "x:Q", title="generation", axis=alt.Axis(grid=False, tickMinStep=1), scale=alt.Scale(nice=False, padding=12)
    )
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(nice=False, padding=12))
    shade = alt.Color(
        "loss:Q", title="fitness", legend=alt.Legend(gradientLength=160),
        scale=alt.Scale(scheme="viridis", reverse=True, domain=[float(low), float(high)], clamp=True),
    )  # fmt: skip

    def layer(rows: list[dict[str, Any]]) -> Any:
        return alt.Chart(alt.Data(values=rows))

    def rule(rows: list[dict[str, Any]], **mark: Any) -> Any:
        return layer(rows).mark_rule(strokeCap="round", **mark).encode(x=x, x2="x2:Q", y=y, y2="y2:Q")

    layers = [
        rule([s for s in segments if not s["line"]], color="#9aa3ad", strokeWidth=0.7, opacity=0.55),
        rule(aunts, color="#d62728", strokeWidth=0.8, strokeDash=[2, 3], opacity=0.7),
        rule([s for s in segments if s["line"]], color="#d62728", strokeWidth=2.4),
        layer([d for d in dots if not d["ok"]]).mark_point(shape="cross", size=dot, color="#b9b9b9", strokeWidth=1)
        .encode(x=x, y=y),
        layer([d for d in dots if d["ok"]]).mark_circle(size=dot, opacity=1)
        .encode(x=x, y=y, color=shade, tooltip="who:N"),
        layer([d for d in dots if d["member"]]).mark_point(size=dot * 2.2, color="#222", strokeWidth=0.8, opacity=0.8)
        .encode(x=x, y=y),
        layer([d for d in dots if d["line"] and d["ok"]])
        .mark_circle(size=dot * 2.4, opacity=1, stroke="#d62728", strokeWidth=1.4).encode(x=x, y=y, color=shade),
        layer([dots[hero]]).mark_text(color="#d62728", align="left", dx=9, dy=-8, fontWeight="bold", fontSize=12)
        .encode(x=x, y=y, text="who:N"),
    ]  # fmt: skip
    said = [f"{len(born)} candidates, each at its generation; lines lead to first parents"]
    said[0] += f"; {len(people.repeats)} repeats not drawn" if people.repeats else ""
    said[0] += f"; {left_out} with few descendants left out" if left_out else ""
    marks = [f"red: the line of the {what} {born[hero]}:{people.index[hero]} (dotted: its other parents)"]
    marks += [f"rings: the {int(people.member.sum())} in the repertoire at the end"] if people.member.any() else []
    marks += ["grey: failed"] if not finite.all() else []
    beyond = finite.any() and (people.fitness[finite].min() < low or people.fitness[finite].max() > high)
    marks += [f"colours end at {low:.4g} and {high:.4g}"] if beyond else []
    head = alt.TitleParams(title, subtitle=[*said, "; ".join(marks)], anchor="start", subtitleColor="#555")
    chart = alt.layer(*layers).properties(width=width, height=height, title=head).configure_view(stroke=None)
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        chart.save(str(out), **({"scale_factor": 1.5} if out.suffix == ".png" else {}))

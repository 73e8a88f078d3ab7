"""What changed from parent to child: numbers, choices and programs, in words; behind `evometa archive diff`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evometa import folder
from evometa.archives.read import Archive
from evometa.errors import EvometaError
from evometa.programs.code import Program, Refusal, disassemble
from evometa.programs.difference import difference
from evometa.reports.values import rates_of, readable
from evometa.space import Space

Name = tuple[int, int]


def changes(space: Space, one: np.ndarray, two: np.ndarray) -> list[str]:
    """What is different in genome `two` against `one`, a line each; none where they are the same."""
    lines: list[str] = []
    before, after = readable(space, one), readable(space, two)
    for column, part in zip(space.columns, space.slices, strict=True):
        if np.array_equal(one[part], two[part]):
            continue
        if column.vocabulary is not None:
            pair = [disassemble(column.vocabulary, space.decode_host(genome)[column.name]) for genome in (one, two)]
            said = (
                difference(pair[0], pair[1])
                if isinstance(pair[0], Program) and isinstance(pair[1], Program)
                else [" -> ".join(str(p) if isinstance(p, Refusal) else "a program" for p in pair)]
            )
            lines += [f"{column.name}: {line}" for line in said]
        elif column.kind == "weights":
            moved = int(np.sum(one[part] != two[part]))
            size = float(np.linalg.norm(two[part] - one[part]))
            lines.append(
                f"{column.name}: {moved} of {column.size} numbers moved, by {size:.3g} in all (initial scales)"
            )
        elif before[column.name] != after[column.name]:
            lines.append(f"{column.name}: {_short(before[column.name])} -> {_short(after[column.name])}")
    return lines


def diff_data(path: Path, one: Name, two: Name | None = None, depth: int | None = None) -> dict[str, Any]:
    """Steps from `two` to `one`, or along the first parents that led to `one`, at most `depth` steps back.

    Each step: `from`, `to`, `fitness` before and after, `operator`, `other_parents`, `changes`. Steps that changed
    nothing (an elite asked again) are left out and counted in `unchanged`. Raises `NotFound` for a candidate that the
    run does not have, `EvometaError` where a genome was not stored (large ones come back by `archive show --replay`).
    """
    space = Space.from_json(folder.read_record(path)["task"]["space"])
    archive = Archive(path)

    def row(name: Name) -> Mapping[str, Any]:
        found = archive.row(*name)
        if not found["genome"]:
            raise EvometaError(
                f"{name[0]}:{name[1]} of {path.name} has no stored genome: large ones are kept for elites"
            )
        return found

    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    child = row(one)
    if two is not None:
        pairs.append((row(two), child))
    while two is None and child["parents"] and (depth is None or len(pairs) < depth):
        parent = row((child["parents"][0]["generation"], child["parents"][0]["index"]))
        pairs.append((parent, child))
        child = parent
    steps, unchanged = [], 0
    for before, after in reversed(pairs):
        said = changes(space, *(np.asarray(r["genome"], np.float32) for r in (before, after)))
        if not said and two is None:
            unchanged += 1
            continue
        said += rate_changes(rates_of(before), rates_of(after))
        steps.append(
            {
                "from": _name(before),
                "to": _name(after),
                "fitness": [before["fitness"], after["fitness"]],
                "operator": after["operator"],
                "changes": said,
                "other_parents": [f"{p['generation']}:{p['index']}" for p in after["parents"][1:]]
                if two is None
                else [],
            }  # fmt: skip
        )
    return {"run": path.name, "steps": steps, "unchanged": unchanged}


def rate_changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """At what rates a child was made, a line for each; against those of its parent where these are known."""
    return [
        f"made with {name} {before[name]:.3g} -> {value:.3g}" if name in before else f"made with {name} {value:.3g}"
        for name, value in after.items()
    ]


def diff_text(data: Mapping[str, Any]) -> str:
    """`diff_data` for a reader, oldest step first."""
    lines: list[str] = []
    for step in data["steps"]:
        others = f" with {', '.join(step['other_parents'])}" if step["other_parents"] else ""
        before, after = (_short(value) for value in step["fitness"])
        lines.append(f"{step['from']} -> {step['to']}  {step['operator']}{others}, fitness {before} -> {after}")
        lines += [f"  {line}" for line in step["changes"]] or ["  the same"]
    if data["unchanged"]:
        lines.append(f"({data['unchanged']} steps asked the same again)")
    return "\n".join(lines) if lines else "no parents: nothing came before"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['generation']}:{row['index']}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

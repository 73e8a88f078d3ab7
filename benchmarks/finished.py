"""A finished study as arrays and rows: what the tables of several studies are collected with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def arguments_of(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the study's folder and `--out`; a study may be left out, and there is nothing to collect."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, help="folder of a finished study")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def opened(study: Path) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """The study's task, its arms without the baselines (`comparison.Arm`), and its runs as study.json has them."""
    from evometa import compare
    from evometa.folder import read_record
    from evometa.names import load_task

    runs = json.loads((study / "study.json").read_text())["runs"]
    loaded = compare.load([study / row["judged"] for row in runs], [row["label"] for row in runs])
    record = read_record(study / runs[0]["judged"])
    task = load_task(record["spec"]["task"], record["spec"]["task_options"], Path(record["folder"]))
    return task, {name: arm for name, arm in loaded.arms.items() if not name.startswith("baseline")}, runs


def by_kind(
    arms: Mapping[str, Any], kind_of: Mapping[str, str], query: str
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """("all" and then every kind of domain, how many domains, the arms on these domains); `kind_of` names domains."""
    for kind in ("all", *dict.fromkeys(kind_of.values())):
        columns = [i for i, name in enumerate(kind_of) if kind in ("all", kind_of[name])]
        domains = tuple(list(kind_of)[i] for i in columns)
        cut = {n: a._replace(domains=domains, losses={query: a.losses[query][:, columns]}) for n, a in arms.items()}
        yield kind, len(columns), cut


def against(
    arm: Any, rival: Any, query: str, groups: Mapping[str, str] | None, unit: str = "families"
) -> dict[str, Any]:
    """Difference of two arms with its interval, the interval with `groups` as unit, and the domains won."""
    from evometa.comparison import compare_arms

    made = compare_arms(arm, rival, query, groups=groups)
    return {
        "difference": made.difference.difference,
        "low": made.difference.low,
        "high": made.difference.high,
        f"{unit}_low": made.families.low if made.families else "",
        f"{unit}_high": made.families.high if made.families else "",
        "wins": made.wins,
    }

"""Small tables of finished studies, for docs/verdicts: python benchmarks/verdicts.py [FOLDER STUDY...]

Reads each study's report.json; writes FOLDER/<study>.arms.csv (losses, differences, intervals, budgets),
<study>.domains.csv (every arm on every domain) and <study>.claims.csv, and copies the figure.
Without a study there is nothing to collect.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.tables import save

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "verdicts" / "results"


def arms(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per arm."""
    results = report["results"]
    found = {row["arm"]: row for row in results["differences"]}
    used = {row["arm"]: row for row in results["budgets"]}
    above = {row["arm"]: row for row in report["upper_budgets"]}
    rows = []
    for arm in results["arms"]:
        name, other = arm["arm"], found.get(arm["arm"], {})
        families, gap = other.get("families") or {}, other.get("gap") or {}
        budget, upper = used.get(name, {}), above.get(name, {})
        rows.append(
            {
                "arm": name,
                "search_seeds": len(arm["seeds"]),
                **{f"{query}_mean": one["mean"] for query, one in arm["queries"].items()},
                "rival": results["rival"],
                **{
                    key: other.get(key) for key in ("difference", "low", "high", "p_value", "p_holm", "wins", "domains")
                },
                "families_low": families.get("low"),
                "families_high": families.get("high"),
                "gap_closed": gap.get("value"),
                "gap_low": gap.get("low"),
                "gap_high": gap.get("high"),
                "detectable": other.get("detectable"),
                "evaluations": _one(budget.get("evaluations")),
                "trainings": _one(budget.get("trainings")),
                "inner_steps": _one(budget.get("inner_steps")),
                "inner_steps_above": _one(upper.get("inner_steps")),
                "seconds": budget.get("seconds"),
            }
        )
    return rows


def domains(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per arm and domain; those shown apart are marked."""
    results = report["results"]
    rows = [
        {"arm": arm["arm"], "domain": place["domain"], "apart": False, "query": query, "loss": loss}
        for arm in results["arms"]
        for query, one in arm["queries"].items()
        for place, loss in zip(results["domains"], one["per_domain"], strict=True)
    ]
    return rows + [
        {"arm": row["arm"], "domain": row["domain"], "apart": True, "query": query, "loss": row[query]}
        for row in report["apart"]
        for query in results["queries"]
    ]


def claims(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per claim."""
    names = ("name", "text", "figure", "low", "high", "p_value", "adjusted", "holds", "holds_adjusted", "searches")
    verdict = report["verdict"] or {"claims": []}
    return [{**{name: row.get(name) for name in names}, "roles": " ".join(row["roles"])} for row in verdict["claims"]]


def _one(ends: Sequence[int] | None) -> int | None:
    return ends[-1] if ends else None


def main() -> None:
    """Collect the studies named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("studies", nargs="*", type=Path, metavar="STUDY")
    arguments = parser.parse_args()
    for study in arguments.studies:
        report = json.loads((study / "report.json").read_text())
        for name, rows in (("arms", arms), ("domains", domains), ("claims", claims)):
            path, table = arguments.folder / f"{study.name}.{name}.csv", rows(report)
            if table:
                save(path, table, digits=6)
                print(path)
        if (study / "figure.svg").is_file():
            shutil.copy(study / "figure.svg", arguments.folder / f"{study.name}.svg")


if __name__ == "__main__":
    main()

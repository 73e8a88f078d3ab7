"""Whether stepping stones pay: small tables of the finished studies of open-ended search, for docs/open-ended.md.

    evometa study studies/dsl_godel.toml --profile standard
    evometa study studies/open_ended_losses.toml --profile standard
    evometa study studies/open_ended_ladder.toml --profile standard
    python benchmarks/open_ended.py runs/{dsl-godel,open-ended-losses,open-ended-ladder}-standard

Writes benchmarks/results/open_ended-sealed.csv (every arm of every study on sealed domains, and `open-ended` minus that
arm with intervals; negative: open-ended is better) and -searches.csv (one row per run: candidates, the champion's
validation loss and its mean loss on sealed domains). The unit of an interval is search seed x domain;
`families_low` and `families_high` have families of domains as unit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import RESULTS, against, opened
from benchmarks.tables import save

OURS = "open-ended"


def query_of(study: Path) -> str:
    """The query that drove the searches of a study and judges them."""
    record = json.loads((study / "study.json").read_text())
    objectives = json.loads((study / record["runs"][0]["judged"] / "run.json").read_text())["task"]["objectives"]
    return objectives[0]


def sealed(study: Path) -> Iterator[dict[str, Any]]:
    """One row per arm."""
    task, arms, _ = opened(study)
    query = query_of(study)
    domains = next(iter(arms.values())).domains
    family = {name: task.domain(name).tags["family"] for name in domains}
    for name, arm in arms.items():
        row = {"study": study.name, "query": query, "arm": name, "seeds": len(arm.seeds), "domains": len(domains)}
        row["loss"] = float(arm.losses[query].mean())
        yield row if name == OURS else row | against(arms[OURS], arm, query, family)


def searches(study: Path) -> Iterator[dict[str, Any]]:
    """One row per run."""
    import evometa

    _, arms, runs = opened(study)
    query = query_of(study)
    for row in runs:
        run, arm = evometa.open(study / row["judged"]), arms[row["arm"]]
        assert run.champion is not None
        seed = arm.seeds.index(row["seed"])
        yield {
            "study": study.name,
            "arm": row["arm"],
            "seed": row["seed"],
            "candidates": run.archive.table(["index"]).num_rows,
            "validation": float(run.champion.validation),
            "sealed": float(arm.losses[query][seed].mean()),
        }


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown: one table per study."""
    lines = []
    for study in dict.fromkeys(row["study"] for row in rows):
        lines += ["", f"{study}:", "", "| arm | sealed loss | open-ended minus it |", "|---|---|---|"]
        for row in (row for row in rows if row["study"] == study):
            told = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row) if "difference" in row else ""
            lines.append(f"| `{row['arm']}` | {row['loss']:.3f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Collect the studies named on the command line."""
    studies = [Path(name) for name in sys.argv[1:]]
    if not studies:
        print("nothing to collect: name the folders of finished studies")
        return
    rows = [row for study in studies for row in sealed(study)]
    save(RESULTS / "open_ended-sealed.csv", rows, list(dict.fromkeys(key for row in rows for key in row)))
    save(RESULTS / "open_ended-searches.csv", [row for study in studies for row in searches(study)])
    print(page(rows))


if __name__ == "__main__":
    main()

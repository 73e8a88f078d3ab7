"""Small tables of a finished study of update rules, for docs/sym_bbo.md.

    evometa study studies/sym_bbo.toml --profile standard
    python benchmarks/sym_bbo.py runs/sym-bbo-standard

Writes benchmarks/results/sym_bbo-losses.csv (every arm on every sealed domain), -shifts.csv (differences between arms
with intervals, by kind of shift) and -rules.csv (the champions: formulas or constants). Loss and decades: see
evometa/tasks/sym_bbo.py. `ratio`: the arm's least function value in units of CMA-ES's, geometric mean. The
unit of an interval is search seed x domain; `families_low` and `families_high` have families of functions as unit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import against, arguments_of, by_kind, opened
from benchmarks.tables import save

RIVALS = ("static", "de", "pso", "de-best", "random-search", "cma-es")
QUERY = "run"


def regrets(task: Any, arms: Mapping[str, Any]) -> dict[str, Any]:
    """Arm -> log10(1e-8 + least f) `[search seeds, domains]`, from the losses."""
    import numpy as np

    from evometa.tasks.sym_bbo import DECADES

    domains = next(iter(arms.values())).domains
    random = np.array([float(task.domain(name).queries[QUERY]()["random"]) for name in domains])
    return {n: a.losses[QUERY].mean(axis=2) * (random + DECADES) - DECADES for n, a in arms.items()}


def losses(task: Any, arms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per arm and domain."""
    found = regrets(task, arms)
    for name, arm in arms.items():
        mean = arm.losses[QUERY].mean(axis=(0, 2))
        for i, domain in enumerate(arm.domains):
            yield {
                "arm": name,
                "domain": domain,
                "shift": task.domain(domain).tags["shift"],
                "loss": float(mean[i]),
                "log_regret": float(found[name][:, i].mean()),
            }


def shifts(task: Any, arms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per arm, rival and kind of shift."""
    tags = {name: task.domain(name).tags for name in next(iter(arms.values())).domains}
    family = {name: tag["family"] for name, tag in tags.items()}
    found = regrets(task, arms)
    shift_of = {name: tag["shift"] for name, tag in tags.items()}
    for shift, domains, cut in by_kind(arms, shift_of, QUERY):
        columns = [i for i, name in enumerate(shift_of) if shift in ("all", shift_of[name])]
        for name, arm in cut.items():
            own = {"shift": shift, "arm": name, "loss": float(arm.losses[QUERY].mean())}
            own["ratio"] = float(10 ** (found[name] - found["cma-es"])[:, columns].mean())
            own["domains"] = domains
            for rival in (rival for rival in RIVALS if rival in cut and rival != name):
                yield {**own, "rival": rival, **against(arm, cut[rival], QUERY, family)}


def rules(study: Path, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per run: its champion."""
    import evometa
    from evometa.programs.formula import text_of
    from evometa.programs.vocabularies import POPULATION

    for row in runs:
        run = evometa.open(study / row["judged"])
        assert run.champion is not None
        found = dict(run.params)
        lines = {k: text_of(POPULATION, v) if k == "rule" else v for k, v in found.items()}
        said = "; ".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in lines.items())
        yield {
            "arm": row["arm"],
            "seed": row["seed"],
            "validation": run.champion.validation,
            "rule": said.replace("\n", " | "),
        }


def page(rows: list[dict[str, Any]], rival: str) -> str:
    """Markdown: mean loss of every arm by kind of shift, and its difference from `rival` with the interval."""
    kinds = list(dict.fromkeys(row["shift"] for row in rows))
    lines = ["| arm | " + " | ".join(kinds) + " | ratio to CMA-ES |", "|---" * (len(kinds) + 2) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = {(row["shift"], row["rival"]): row for row in rows if row["arm"] == arm}
        cells = []
        for kind in kinds:
            against = mine.get((kind, rival))
            loss = next(row["loss"] for (shift, _), row in mine.items() if shift == kind)
            told = "({difference:+.3f} [{low:+.3f}, {high:+.3f}])".format(**against) if against else ""
            cells.append(f"{loss:.3f} {told}".strip())
        ratio = next(row["ratio"] for row in mine.values())
        lines.append(f"| `{arm}` | " + " | ".join(cells) + f" | {ratio:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Collect the study named on the command line."""
    parser = arguments_of(__doc__)
    arguments = parser.parse_args()
    if arguments.study is None:
        print("nothing to collect: name the folder of a finished study")
        return
    task, arms, runs = opened(arguments.study)
    by_shift = list(shifts(task, arms))
    for name, rows in (
        ("losses", list(losses(task, arms))),
        ("shifts", by_shift),
        ("rules", list(rules(arguments.study, runs))),
    ):
        path = arguments.out / f"sym_bbo-{name}.csv"
        save(path, rows)
        print(path)
    print(page(by_shift, "de"))


if __name__ == "__main__":
    main()

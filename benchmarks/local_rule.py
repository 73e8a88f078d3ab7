"""Small tables of a finished study of neuron-local rules, for docs/local_rule.md.

    evometa study studies/local_rule.toml --profile standard
    python benchmarks/local_rule.py runs/local-rule-standard
    python benchmarks/local_rule.py --references    # Sanger's rule and an autoencoder: searches and opens by itself

Writes benchmarks/results/local_rule-losses.csv (every arm on every sealed world), -shifts.csv (differences between arms
with intervals, by kind of shift) and -rules.csv (the champions: formulas and numbers). `--references` writes
-references.csv: two rivals that are no neuron-local rules, tuned at the cost of an arm of the study (64 x 30 candidates
of CMA-ES, five search seeds), their champions on the sealed worlds with ten inner seeds: a further look at worlds that
the study has opened, entered in the ledger; it chooses nothing on them. Loss and error: see
evometa/tasks/local_rule.py. A training that diverged counts as features that say nothing: loss 1, the error of a guess.
The unit of an interval is search seed x world; where a shift has one world, the search seed; `shifts_low` and
`shifts_high`, over all worlds, have the kind of shift as unit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import against, arguments_of, by_kind, opened
from benchmarks.tables import save

RIVALS = ("static", "subspace")
FURTHER = ("oja", "random", "pca")  # over all worlds only
QUERY = "probe"


def errors(task: Any, study: Path, runs: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """(arm, domain) -> share of wrong answers, mean over search seeds and inner seeds."""
    import numpy as np

    from evometa.archives.read import Archive

    classes = {n: np.count_nonzero(task.domain(n).queries[QUERY]()["target"].sum(axis=0)) for n in task.split.test}
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for row in Archive(study / run["judged"]).judgements().to_pylist():
            if row["phase"] == "test" and row["label"] != "baseline":
                guess = 1.0 - 1.0 / classes[row["domain"]]
                # `failure` is the champion's, in whichever world it failed: the loss tells of this one.
                fine = row["loss"] is not None and np.isfinite(row["loss"])
                error = dict(row["metrics"])["error"] if fine else guess
                found.setdefault((run["arm"], row["domain"]), []).append(error)
    return {key: float(np.mean(values)) for key, values in found.items()}


def finite(arm: Any) -> Any:
    """An arm whose failed cells are chance."""
    import numpy as np

    return arm._replace(losses={QUERY: np.where(np.isfinite(arm.losses[QUERY]), arm.losses[QUERY], 1.0)})


def losses(task: Any, arms: Mapping[str, Any], wrong: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    """One row per arm and world."""
    for name, arm in arms.items():
        mean = arm.losses[QUERY].mean(axis=(0, 2))
        for i, domain in enumerate(arm.domains):
            shift = task.domain(domain).tags["shift"]
            yield {"arm": name, "domain": domain, "shift": shift, "loss": float(mean[i]), "error": wrong[name, domain]}


def shifts(task: Any, arms: Mapping[str, Any], wrong: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    """One row per kind of shift, arm and rival."""
    import numpy as np

    shift_of = {name: task.domain(name).tags["shift"] for name in next(iter(arms.values())).domains}
    for shift, worlds, cut in by_kind(arms, shift_of, QUERY):
        groups = shift_of if shift == "all" else None
        for name, arm in cut.items():
            own = {"shift": shift, "worlds": worlds, "arm": name, "loss": float(arm.losses[QUERY].mean())}
            own["error"] = float(np.mean([wrong[name, domain] for domain in arm.domains]))
            rivals = (*RIVALS, *FURTHER) if shift == "all" else RIVALS
            for rival in (rival for rival in rivals if rival in cut and rival != name):
                yield {**own, "rival": rival, **against(arm, cut[rival], QUERY, groups, "shifts")}


def rules(study: Path, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per run of a search: its champion."""
    import evometa
    from evometa.programs.formula import text_of
    from evometa.programs.vocabularies import PLASTICITY

    for row in runs:
        run = evometa.open(study / row["judged"])
        if run.champion is None or row["arm"] in ("static", "pca", "raw"):
            continue
        found = dict(run.params)
        code = found.pop("rule", None)
        yield {
            "arm": row["arm"],
            "seed": row["seed"],
            "validation": run.champion.validation,
            **{name: found[name] for name in ("rate", "homeostasis")},
            "rule": row["arm"] if code is None else text_of(PLASTICITY, code),
        }


def references(out: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """One row per reference, search seed and sealed world."""
    import evometa

    sizes: dict[str, Any] = {"population": 64, "generations": 30}
    if quick:
        split = {"train": ["wine"], "validation": ["iris"], "test": ["digits_odd"]}
        sizes = {"population": 8, "generations": 2, "split": split}
    for name in ("sanger", "autoencoder"):
        for seed in range(1 if quick else 5):
            options = {"rule": name, "steps": 10} if quick else {"rule": name}
            run = evometa.run(
                "local_rule", strategy="cma_es", seed=seed, task_options=options, name=f"{name}-s{seed}", out=out,
                **sizes,
            )  # fmt: skip
            numbers = {key: float(value) for key, value in run.params.items()}
            for row in (run.unseal() if quick else run.unseal(10))["domains"]:
                own = {"arm": name, "seed": seed, "domain": row["domain"], "loss": row["champion"]}
                yield {**own, "rate": numbers["rate"], "homeostasis": numbers.get("homeostasis", "")}


def main() -> None:
    """Collect the study named on the command line, or tune and judge the references."""
    parser = arguments_of(__doc__)
    parser.add_argument("--references", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a test of --references itself; opens no sealed world")
    arguments = parser.parse_args()
    if arguments.references:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(references(Path(folder), arguments.quick))
        save(arguments.out / "local_rule-references.csv", rows)
        print(arguments.out / "local_rule-references.csv")
        return
    if arguments.study is None:
        print("nothing to collect: name the folder of a finished study")
        return
    import numpy as np

    task, arms, runs = opened(arguments.study)
    print("failed cells:", {name: int((~np.isfinite(arm.losses[QUERY])).sum()) for name, arm in arms.items()})
    arms = {name: finite(arm) for name, arm in arms.items()}
    wrong = errors(task, arguments.study, runs)
    for name, rows in (
        ("losses", list(losses(task, arms, wrong))),
        ("shifts", list(shifts(task, arms, wrong))),
        ("rules", list(rules(arguments.study, runs))),
    ):
        path = arguments.out / f"local_rule-{name}.csv"
        save(path, rows)
        print(path)


if __name__ == "__main__":
    main()

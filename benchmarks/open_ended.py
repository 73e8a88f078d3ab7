"""Whether stepping stones pay, for docs/open-ended.md; how much agents improve, for docs/dsl_godel.md.

Tables of the finished studies of open-ended search:

    evometa study studies/dsl_godel.toml --profile standard
    evometa study studies/open_ended_losses.toml --profile standard
    evometa study studies/open_ended_ladder.toml --profile standard
    python benchmarks/open_ended.py runs/{dsl-godel,open-ended-losses,open-ended-ladder}-standard

Writes benchmarks/results/open_ended-sealed.csv (every arm of every study on sealed domains, and `open-ended` minus that
arm with intervals; negative: open-ended is better), -claims.csv (what each study's report says of its claims, stated
before it ran) and -searches.csv (one row per run: candidates, the champion's
validation loss and its mean loss on sealed domains). The unit of an interval is search seed x domain;
`families_low` and `families_high` have families of domains as unit.

The improvement of agents over the seed agent after 80, 2,000 and 5,000 of them, beside the published ratios. Those of
2,000 are the study's searches `open-ended`; copies of them were carried on to 5,000:

    for seed in 0 1 2 3 4; do
        evometa run dsl_godel --strategy open_ended --population 16 --generations 5 --seed $seed --name agents-80-$seed
        cp -r runs/dsl-godel-standard/open-ended-s$seed runs/agents-5000-$seed
        evometa resume runs/agents-5000-$seed --generations 100
    done
    python benchmarks/open_ended.py --improvement \
        runs/agents-80-* runs/dsl-godel-standard/open-ended-s? runs/agents-5000-*

Writes benchmarks/results/open_ended-improvement.csv: per number of agents and kind of problem the share of problems
solved (every `away` pair right; a mean over problems and inner seeds) by the seed agent and by the champion, and the
ratio of the two with an interval: a t interval of the mean log ratio, the unit is a search seed. There is none for a
single run, nor where somebody solved nothing (the ratio is then that of the mean shares). Train and validation problems
are judged again here, with keys that no search had. Nothing is opened: sealed problems come from runs that were
(`evometa unseal`), from their last opening, and `searches` counts these runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import RESULTS, against, opened
from benchmarks.tables import save

OURS = "open-ended"
FRESH = 2**30  # in the place of a number of generations: keys that no search and no choice of a champion had
# Improvements of the Darwin Goedel Machine over its first agent, 80 iterations (arXiv:2505.22954).
PUBLISHED = (("SWE-bench", 0.2, 0.5, 2.5), ("Polyglot", 0.142, 0.307, 2.16))
IMPROVEMENT = ("agents", "problems", "number", "searches", "seed_agent", "champion", "ratio", "low", "high", "source")


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


def claims(study: Path) -> Iterator[dict[str, Any]]:
    """One row per claim of a study, as its report has it."""
    report = json.loads((study / "report.json").read_text())
    for claim in report["verdict"]["claims"]:
        row = {name: claim[name] for name in ("text", "figure", "low", "high", "p_value", "adjusted", "holds")}
        yield {"study": study.name, "claim": claim["name"], **row, "adjusted_holds": claim["holds_adjusted"]}


def page(rows: list[dict[str, Any]]) -> str:
    """Markdown: one table per study."""
    lines = []
    for study in dict.fromkeys(row["study"] for row in rows):
        lines += ["", f"{study}:", "", "| arm | sealed loss | open-ended minus it |", "|---|---|---|"]
        for row in (row for row in rows if row["study"] == study):
            told = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row) if "difference" in row else ""
            lines.append(f"| `{row['arm']}` | {row['loss']:.3f} | {told} |")
    return "\n".join(lines)


def improvement(runs: Sequence[Path], inner_seeds: int = 20) -> list[dict[str, Any]]:
    """Rows of `IMPROVEMENT` for runs of dsl_godel, grouped by their number of agents; the published ones last.

    Train and validation problems are judged with `inner_seeds` fresh seeds. Raises `SystemExit` for runs of another
    task or another first agent, and where runs of equal length differ in more than the search seed.
    """
    kinds: dict[int, str] = {}
    # agents -> kind of problem -> its problems, and one pair of shares per run: seed agent, champion
    found: dict[int, dict[str, tuple[int, list[tuple[float, float]]]]] = {}
    judges: dict[str, Any] = {}
    for path in runs:
        agents, kind, shares = _solved(path, inner_seeds, judges)
        if kinds.setdefault(agents, kind) != kind:
            raise SystemExit(f"{path}: expected runs of {agents} agents to differ in their seeds alone")
        for problems, (number, pair) in shares.items():
            found.setdefault(agents, {}).setdefault(problems, (number, []))[1].append(pair)
    rows: list[dict[str, Any]] = []
    for agents, groups in sorted(found.items()):
        for problems, (number, pairs) in groups.items():
            row = {"agents": agents, "problems": problems, "number": number, "searches": len(pairs)}
            rows.append(row | ratio_of(np.array(pairs)) | {"source": "evometa"})
    for problems, seed_agent, champion, ratio in PUBLISHED:
        row = {"agents": 80, "problems": problems, "searches": 1, "seed_agent": seed_agent, "champion": champion}
        rows.append(row | {"ratio": ratio, "source": "Darwin Goedel Machine"})
    return rows


def ratio_of(shares: np.ndarray) -> dict[str, float]:
    """Mean shares and their ratio with its 95 % interval, from `[searches, 2]`: seed agent, champion."""
    from scipy import stats

    seed_agent, champion = shares.mean(axis=0).tolist()
    made = {"seed_agent": seed_agent, "champion": champion}
    if (shares <= 0).any():
        return made | ({"ratio": champion / seed_agent} if seed_agent > 0 else {})
    logs = np.log(shares[:, 1] / shares[:, 0])
    made["ratio"] = float(np.exp(logs.mean()))
    if len(logs) > 1:
        reach = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
        made |= {"low": float(np.exp(logs.mean() - reach)), "high": float(np.exp(logs.mean() + reach))}
    return made


def _solved(
    path: Path, inner_seeds: int, judges: dict[str, Any]
) -> tuple[int, str, dict[str, tuple[int, tuple[float, float]]]]:
    """Agents of a run, what it is but for its seed, and by kind of problem how many and what shares are solved."""
    import evometa
    from evometa import api
    from evometa.evaluate import data
    from evometa.keys import Stream

    run = evometa.open(path)
    spec = run.record["spec"]
    if run.record["task"]["name"] != "dsl_godel" or spec["task_options"].get("agent", "seed") != "seed":
        raise SystemExit(f"{path}: expected a run of dsl_godel that starts from the seed agent")
    if run.champion is None:
        raise SystemExit(f"{path}: expected a champion. Type: evometa resume {path}")
    kind = json.dumps({name: value for name, value in spec.items() if name not in ("seed", "name")}, sort_keys=True)
    session = api.reopen(path)
    task, options = session.task, json.dumps(spec["task_options"], sort_keys=True)
    if options not in judges:  # one compilation for all runs of equal tasks
        judges[options] = session.judge(data.load(task, (*task.split.train, *task.split.validation)))
    genomes = np.stack([np.asarray(task.space.encode(task.baseline), np.float32), run.champion.genome])
    judged = judges[options].judge(genomes, inner_seeds, spec["seed"], Stream.VALIDATE, FRESH)
    query = task.objectives[0].query
    cells = [(cell.role, cell.domain, at) for at, cell in enumerate(judged.cells) if cell.query == query]
    solved = [(role, domain, *judged.metrics["solved"][:, at]) for role, domain, at in cells]
    solved += [("sealed", *row) for row in _opened(run, query)]
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for role, *row in solved:
        groups.setdefault(role, []).append(tuple(row))
        if role == "sealed":
            tags = task.domain(row[0]).tags
            kind_of = "second dialect" if tags["dialect"] == "terse" else tags["level"]
            groups.setdefault(f"sealed, {kind_of}", []).append(tuple(row))
    shares = {
        name: (len({row[0] for row in rows}), tuple(np.mean([row[1:] for row in rows], axis=0).tolist()))
        for name, rows in groups.items()
    }
    return run.archive.table(["index"]).num_rows, kind, shares


def _opened(run: Any, query: str) -> Iterator[tuple[str, float, float]]:
    """(problem, solved by the seed agent, by the champion), inner seed by inner seed, of a run's last opening."""
    rows = run.archive.judgements().select(["phase", "opening", "label", "domain", "query", "replicate", "metrics"])
    told = [row for row in rows.to_pylist() if row["phase"] == "test" and row["query"] == query]
    last = max((row["opening"] for row in told), default=0)
    told = [row for row in told if row["opening"] == last]
    pairs: dict[tuple[str, int], dict[str, float]] = {}
    for row in told:
        # An agent that failed has solved nothing.
        solved = dict(row["metrics"] or ()).get("solved", 0.0)
        pairs.setdefault((row["domain"], row["replicate"]), {})[row["label"]] = solved
    for (domain, _), pair in pairs.items():
        yield domain, pair["baseline"], pair["champion"]


def main() -> None:
    """Collect the studies, or with `--improvement` the runs, named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", type=Path, help="folders of finished studies")
    parser.add_argument("--improvement", nargs="+", type=Path, default=[], help="folders of runs of dsl_godel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.improvement:
        from evometa.machine import use_devices_of

        use_devices_of(given.improvement[0])  # before JAX starts: the runs are opened again as they were computed
        rows = improvement(given.improvement)
        save(given.out / "open_ended-improvement.csv", rows, IMPROVEMENT)
        for row in rows:
            print(", ".join(f"{name} {row.get(name, '')}" for name in IMPROVEMENT))
    studies = given.studies
    if not studies:
        if not given.improvement:
            print("nothing to collect: name the folders of finished studies")
        return
    rows = [row for study in studies for row in sealed(study)]
    save(given.out / "open_ended-sealed.csv", rows, list(dict.fromkeys(key for row in rows for key in row)))
    save(given.out / "open_ended-claims.csv", [row for study in studies for row in claims(study)])
    save(given.out / "open_ended-searches.csv", [row for study in studies for row in searches(study)])
    print(page(rows))


if __name__ == "__main__":
    main()

"""Run folders as arms of a comparison: what was judged on the test domains, who looked, and what each run used.

Reads archives and diaries only. Runs that differ in nothing but their seed are one arm; the baseline, which every
opening judges on the same cells, is an arm too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from evometa import comparison as methods
from evometa import folder, study_record
from evometa.archives import events, ledger
from evometa.archives.read import Archive
from evometa.arms import BASELINE, Budget, budgets, families, label
from evometa.comparison import Arm, compare_arms
from evometa.errors import EvometaError, IntegrityError, UsageError, did_you_mean
from evometa.statistics import Floats

BASELINE_OF = "baseline of "  # what the baselines of other arms are called where there are several
ORACLE = "oracle"  # the arm of this name is the end of the gap that others close
MOST_SEEDS = 10**6  # inner seeds of an opening: a forged number is no reason to fill the memory
AWAY, HOME = "away", "home"
GAP = "away-home"  # a query that nobody is asked: how much worse an arm does away than at home, cell by cell
LABELS = {"champion": 0, "baseline": 1}
WORDS = {
    "evaluations": "candidates scored",
    "trainings": "inner trainings",
    "inner_steps": "inner steps",
    "told": "scores told to the search",
    "chosen": "scores that chose the champion",
}
__all__ = ["BASELINE", "Budget", "Loaded", "budgets", "families", "label", "load", "results", "unequal"]


class Loaded(NamedTuple):
    """Runs as arms."""

    arms: dict[str, Arm]  # in the order given, the baseline last
    query: str  # where a reader names none: "away", or the first arm's objective
    queries: tuple[str, ...]
    domains: tuple[str, ...]
    opening: int  # the number of the opening that all runs have
    looks: dict[str, int | None]  # domain -> how often its data were opened by now; None: the ledger is not here
    budgets: tuple[Budget, ...]  # one per run
    notes: tuple[str, ...]
    searched: tuple[str, ...] = ()  # arms whose search used the test domains' own data


class _Run(NamedTuple):
    path: Path
    record: dict[str, Any]
    openings: dict[int, dict[str, Any]]  # number -> event "opening" of the finished ones
    order: int  # of the run on the command line

    @property
    def seed(self) -> int:
        return self.record["seed"]


def load(paths: Sequence[Path | str], names: Sequence[str | None] | None = None, number: int | None = None) -> Loaded:
    """The test judgements of opened runs as arms, from opening `number`, by default the newest that all of them have.

    `names`: the arm of each path; for those without one, runs whose specs differ only in the seed are one arm,
    called by the shortest difference between the specs.

    Raises `EvometaError` where a run was not opened, or runs share no domain or query; `UsageError` where one
    arm has two runs of one seed; `NotFound` for what is no run.
    """
    if not paths:
        raise UsageError("expected at least one run. Type: evometa runs")
    runs = [_read(Path(path), order) for order, path in enumerate(paths)]
    labels = label(paths, names)
    number = _common_opening(runs, number)
    domains = tuple(runs[0].openings[number]["domains"])
    seeds = min(run.openings[number]["seeds"] for run in runs)
    if seeds > MOST_SEEDS:
        raise IntegrityError(
            f"{runs[0].path}: expected at most {MOST_SEEDS} inner seeds of opening {number}, got {seeds}"
        )
    notes = []
    if len({run.openings[number]["seeds"] for run in runs}) > 1:
        notes.append(f"the runs were opened with different numbers of inner seeds; the first {seeds} of each are used")
    losses = [_losses(run, number, domains, seeds) for run in runs]
    queries = tuple(query for query in losses[0] if all(query in other for other in losses))
    if not queries:
        raise EvometaError(f"{runs[0].path.name} and the others share no query, so there is nothing to compare")
    grouped: dict[str, list[int]] = {}
    for i, name in enumerate(labels):
        grouped.setdefault(name, []).append(i)
    arms, baselines = {}, {}
    for name, members in grouped.items():
        members.sort(key=lambda i: runs[i].seed)
        arms[name] = _arm(name, members, runs, losses, queries, domains, 0)
        baselines[name] = _arm(name, members, runs, losses, queries, domains, 1)
    arms |= _baselines(baselines, notes)
    if gap_of(queries):
        arms = {k: a._replace(losses={**a.losses, GAP: a.losses[AWAY] - a.losses[HOME]}) for k, a in arms.items()}
    told = (runs[0].record["task"]["objectives"] or [""])[0].split(":")[0]
    query = "away" if "away" in queries else told if told in queries else queries[0]
    looks = _looks(runs, number, domains, notes)
    searched = dict.fromkeys(name for name, run in zip(labels, runs, strict=True) if _searched(run.path))
    used = budgets(paths, labels)
    return Loaded(arms, query, queries, domains, number, looks, used, tuple(notes), tuple(searched))


# --- reading one run ------------------------------------------------------------------------------------------


def _read(path: Path, order: int) -> _Run:
    record, diary = folder.read_record(path), events.diary(path)
    finished = {event["opening"] for event in diary if event["kind"] == "opened"}
    openings = {e["opening"]: e for e in diary if e["kind"] == "opening" and e["opening"] in finished}
    if not openings:
        why = f"{path.name} has not been opened, so there is nothing held out to compare"
        raise EvometaError(f"{why}. Type: evometa unseal {path}")
    return _Run(path, record, openings, order)


def _searched(path: Path) -> bool:
    """Whether a run's search used sealed data: its study's record says so, or its own diary."""
    if study_record.is_study(path.parent):
        return any(run["oracle"] for run in study_record.read(path.parent)["runs"] if run["judged"] == path.name)
    return any(event["kind"] == study_record.SEARCHED for event in events.diary(path))


def _common_opening(runs: Sequence[_Run], wanted: int | None) -> int:
    common = set.intersection(*[set(run.openings) for run in runs])
    if not common:
        fewest = min(runs, key=lambda run: max(run.openings))
        raise EvometaError(
            f"the runs have no opening in common; {fewest.path.name} has {len(fewest.openings)}."
            f" Type: evometa unseal {fewest.path}"
        )
    number = wanted if wanted is not None and wanted in common else max(common)
    first = set(runs[0].openings[number]["domains"])
    for run in runs[1:]:
        other = set(run.openings[number]["domains"])
        if other != first:
            raise EvometaError(
                f"{runs[0].path.name} was opened on {', '.join(sorted(first))}, {run.path.name} on"
                f" {', '.join(sorted(other))}: only runs with the same test domains can be compared."
                " Run one of them again with the other's split.test, and open both"
            )
    return number


def _losses(run: _Run, number: int, domains: Sequence[str], seeds: int) -> dict[str, Floats]:
    """query -> `[2 (champion, baseline), N, S]`; as `Judged.losses`, a failure that no cell shows spoils all."""
    table = Archive(run.path).judgements()
    table = table.filter((pc.field("phase") == "test") & (pc.field("opening") == number))
    out: dict[str, Floats] = {}
    failed: dict[int, bool] = {}
    for row in table.select(["label", "query", "domain", "replicate", "loss", "failure"]).to_pylist():
        who, where, seed = LABELS.get(row["label"]), row["domain"], row["replicate"]
        if who is None or where not in domains or row["query"] is None or seed is None or seed < 0:
            raise IntegrityError(f"{run.path}: opening {number} has judgements of {row['label']!r} on {where!r}")
        grid = out.setdefault(row["query"], np.full((2, len(domains), seeds), np.nan))
        failed[who] = row["failure"] != "ok"
        if seed < seeds and row["loss"] is not None:
            grid[who, domains.index(where), seed] = row["loss"]
    if not out:
        raise IntegrityError(f"{run.path}: opening {number} has no judgements. Run: evometa archive check {run.path}")
    for grid in out.values():
        for who, bad in failed.items():
            if bad and np.isfinite(grid[who]).all():
                grid[who] = np.nan
        grid[~np.isfinite(grid)] = np.nan
    return out


# --- arms ---------------------------------------------------------------------------------------------------


def _arm(
    name: str, members: Sequence[int], runs: Sequence[_Run], losses: Sequence[Mapping[str, Floats]],
    queries: Sequence[str], domains: tuple[str, ...], who: int,
) -> Arm:  # fmt: skip
    seeds = tuple(runs[i].seed for i in members)
    return Arm(name, seeds, domains, {query: np.stack([losses[i][query][who] for i in members]) for query in queries})


def gap_of(queries: Sequence[str]) -> tuple[str, ...]:
    """What claims may ask besides the queries: the generalization gap, where there is a home and an away."""
    return (GAP,) if {AWAY, HOME} <= set(queries) else ()


def _baselines(found: Mapping[str, Arm], notes: list[str]) -> dict[str, Arm]:
    """One baseline for all arms whose own one lost the same on the same cells; others keep their arm's name.

    The same up to 0.1 %: another arm's program may round differently.
    """
    merged: list[tuple[list[str], dict[int, dict[str, Floats]]]] = []
    for name, arm in found.items():
        rows = {seed: {q: loss[i] for q, loss in arm.losses.items()} for i, seed in enumerate(arm.seeds)}
        for members, known in merged:
            shared = known.keys() & rows.keys()
            if shared and all(np.allclose(known[s][q], rows[s][q], 1e-3, 1e-5, True) for s in shared for q in rows[s]):
                members.append(name)
                known.update({seed: row for seed, row in rows.items() if seed not in known})
                break
        else:
            merged.append(([name], rows))
    arms = {}
    first = next(iter(found.values()))
    for members, rows in merged:
        name = BASELINE if not arms else f"{BASELINE_OF}{members[0]}"
        seeds = tuple(sorted(rows))
        arms[name] = Arm(name, seeds, first.domains, {q: np.stack([rows[s][q] for s in seeds]) for q in first.losses})
    if len(merged) > 1:
        notes.append(f"the arms do not share one baseline; {BASELINE!r} is that of {', '.join(merged[0][0])}")
    return arms


def _looks(runs: Sequence[_Run], number: int, domains: Sequence[str], notes: list[str]) -> dict[str, int | None]:
    """Domain -> how many openings its data have had, in every folder that these runs lie in."""
    varied: list[str] = []
    roots = dict.fromkeys(ledger.root(run.path).resolve() for run in runs)
    entries = [entry for root in roots for entry in ledger.read(root)]
    announced = {run.openings[number]["hash"] for run in runs}
    mine = [entry for entry in entries if announced & set(ledger.look(entry))]
    looks: dict[str, int | None] = {}
    for name in domains:
        held: dict[tuple[str, ...], set[str]] = {}  # one look may open different data for different arms, on purpose
        for entry in mine:
            if name in ledger.data(entry):
                held.setdefault(ledger.look(entry), set()).add(ledger.data(entry)[name])
        digests = set().union(*held.values())
        if any(one.isdisjoint(other) for one in held.values() for other in held.values()):
            raise EvometaError(f"domain {name!r} held other data when these runs were opened: they cannot be compared")
        if len(digests) > 1:
            varied.append(name)
        made_of = {entry["sources"][name] for entry in mine if name in entry.get("sources", {})}
        seen = {ledger.look(entry) for entry in entries if (digests | made_of) & ledger.words(entry)}
        looks[name] = len(seen) or None
    if varied:
        notes.append(f"the arms' tasks hold different data under one name, opened together: {', '.join(varied)}")
    if None in looks.values():
        notes.append(f"the ledger {ledger.FILE} of these openings is not beside the runs: looks are not known")
    return looks


def restricted(loaded: Loaded, domains: Sequence[str]) -> Loaded:
    """The same arms on some of their domains, in the order given."""
    where = [loaded.domains.index(name) for name in domains]
    arms = {
        name: arm._replace(domains=tuple(domains), losses={q: x[:, where] for q, x in arm.losses.items()})
        for name, arm in loaded.arms.items()
    }
    return loaded._replace(arms=arms, domains=tuple(domains), looks={name: loaded.looks[name] for name in domains})


# --- results ------------------------------------------------------------------------------------------------


def results(
    loaded: Loaded,
    rival: str = BASELINE,
    query: str | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Everything that `evometa compare` shows, as plain data (JSON; None where there is no number).

    Every arm is compared with `rival` on `query` (default: `Loaded.query`), paired; `groups` (domain -> family)
    adds the interval over families. Arms are summarized on every query. Raises `UsageError` for an unknown arm
    or query, `EvometaError` where an arm and the rival were not run with the same seeds.
    """
    query = loaded.query if query is None else query
    for what, name, known in (("arm", rival, loaded.arms), ("query", query, loaded.queries)):
        if name not in known:
            raise UsageError(f"no {what} is called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    rows = []
    for name, arm in loaded.arms.items():
        if name != rival and not name.startswith(BASELINE_OF) and name != BASELINE:
            rows.append(_against(loaded, arm, rival, query, groups, level))
    p_values = [math.nan if row["p_value"] is None else row["p_value"] for row in rows]
    for row, p_value, adjusted in zip(rows, p_values, methods.holm(p_values), strict=True):
        row["p_holm"] = None if math.isnan(p_value) else adjusted
    return {
        "rival": rival,
        "query": query,
        "queries": list(loaded.queries),
        "level": level,
        "opening": loaded.opening,
        "domains": [{"domain": name, "looks": loaded.looks[name]} for name in loaded.domains],
        "inner_seeds": int(next(iter(loaded.arms.values())).losses[query].shape[2]),
        "arms": [_summary(arm, loaded.queries, level) for arm in loaded.arms.values()],
        "differences": rows,
        "budgets": totals(loaded.budgets),
        "unequal": unequal(loaded.budgets),
        "notes": list(loaded.notes),
        "searched": list(loaded.searched),
    }


def unequal(used: Sequence[Budget]) -> list[str]:
    """What the arms did not use equally, one line each: a comparison is fair at equal budgets only."""
    lines = []
    for what in ("evaluations", "trainings", "inner_steps", "told", "chosen"):
        by_arm = {}
        for budget in used:
            value = getattr(budget, what)
            by_arm.setdefault(budget.arm, set()).add(sum(value.values()) if isinstance(value, dict) else value)
        if len(set.union(*by_arm.values())) > 1:
            shown = "; ".join(f"{arm} {_range(values)}" for arm, values in by_arm.items())
            lines.append(f"{WORDS[what]} per run are unequal: {shown}")
    return lines


def _against(
    loaded: Loaded, arm: Arm, rival: str, query: str, groups: Mapping[str, str] | None, level: float
) -> dict[str, Any]:
    def paired(name: str) -> Arm:
        other = loaded.arms[name]
        # The baseline was judged in every run: the arm's own rows of it are its pairs.
        return methods.restrict(other, arm.seeds) if name == BASELINE and set(arm.seeds) <= set(other.seeds) else other

    other = paired(rival)
    found = compare_arms(arm, other, query, level=level, groups=groups)
    gap = None
    if ORACLE in loaded.arms and BASELINE in loaded.arms and arm.name not in (ORACLE, BASELINE):
        gap = _plain(methods.gap_closed(arm, paired(BASELINE), loaded.arms[ORACLE], query, level=level)._asdict())
    parts = methods.components(methods.differences(arm, other, query))
    size = (len(arm.seeds), len(arm.domains))
    return {
        "arm": arm.name,
        **_plain(found.difference._asdict()),
        "families": None if found.families is None else _plain(found.families._asdict()),
        "wins": found.wins,
        "ties": found.ties,
        "domains": len(found.domains),
        "searches": len(found.seeds),
        "improvement": _plain(found.improvement._asdict()),
        "gap": gap,
        "detectable": _plain({"x": methods.detectable(parts, *size, alpha=1 - level)})["x"],
        "per_domain": [
            {"domain": name, **_plain({"difference": float(value)})}
            for name, value in zip(found.domains, found.per_domain, strict=True)
        ],
    }


def _summary(arm: Arm, queries: Sequence[str], level: float) -> dict[str, Any]:
    found = {query: methods.summarize(arm, query, level=level) for query in queries}
    by_query = {
        query: {
            **_plain({"mean": summary.mean}),
            "interquartile_mean": _plain(summary.middle._asdict()),
            "failed": summary.failed,
            "per_domain": [None if math.isnan(x) else float(x) for x in summary.per_domain],
        }
        for query, summary in found.items()
    }
    return {"arm": arm.name, "seeds": list(arm.seeds), "queries": by_query, "gap": _gap(arm, level)}


def _gap(arm: Arm, level: float) -> dict[str, Any] | None:
    """An arm's generalization gap with its interval over search seeds x domains; None where it has none."""
    if GAP not in arm.losses:
        return None
    away, home = (arm._replace(losses={GAP: arm.losses[query]}) for query in (AWAY, HOME))
    return _plain(compare_arms(away, home, GAP, level=level).difference._asdict())


def totals(used: Sequence[Budget]) -> list[dict[str, Any]]:
    """One row per arm: per run [least, most], seconds in all."""
    rows = []
    for arm in dict.fromkeys(budget.arm for budget in used):
        mine = [budget for budget in used if budget.arm == arm]
        row: dict[str, Any] = {"arm": arm, "runs": [budget.run for budget in mine]}
        for what in ("evaluations", "trainings", "inner_steps"):
            values = [getattr(budget, what) for budget in mine]
            row[what] = None if None in values else [min(values), max(values)]
        for what in ("told", "chosen"):
            queries = list(dict.fromkeys(query for budget in mine for query in getattr(budget, what)))
            counts = {query: [getattr(budget, what).get(query, 0) for budget in mine] for query in queries}
            row[what] = {query: [min(values), max(values)] for query, values in counts.items()}
        row["seconds"] = round(sum(budget.seconds for budget in mine), 3)
        rows.append(row)
    return rows


def _range(values: set[int | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "not counted"
    return f"{known[0]:,}" if known[0] == known[-1] else f"{known[0]:,} to {known[-1]:,}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as JSON has them: None where there is none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

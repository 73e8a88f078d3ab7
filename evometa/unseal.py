"""Open the test domains: the only place that loads them. Every opening is recorded before anything is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evometa import champion, driver
from evometa.archives import events, ledger
from evometa.archives.rows import judgements_table
from evometa.archives.write import commit
from evometa.errors import EvometaError, UsageError
from evometa.evaluate import data as datasets
from evometa.judging import Judge, Subject, journal_for, judgement_rows
from evometa.keys import Stream
from evometa.session import Session
from evometa.statistics import Interval, over_domains, over_seeds, per_domain

FEWEST_SEEDS = 10


def unseal(path: Path, session: Session, seeds: int = FEWEST_SEEDS) -> dict[str, Any]:
    """Judge the champion and the baseline on the test domains with `seeds` fresh seeds, paired.

    Returns the result as plain data (see the README); `looks` counts how often the same data had been
    opened by then, this time included.

    Raises `EvometaError` where there is no champion yet or no test domain, `UsageError` for fewer than 10
    seeds. The caller holds the run's lock.
    """
    return unseal_together([(path, session)], seeds)[0]


def unseal_together(entries: Sequence[tuple[Path, Session]], seeds: int = FEWEST_SEEDS) -> list[dict[str, Any]]:
    """As `unseal`, for several runs that share their test domains: one opening of the data, one look.

    The opening is written to each run's diary before the data are loaded, and to the ledger beside the runs
    before anything is judged: it counts even where the judging then fails. An opening that a crash cut short
    is taken up again under its number: the same keys give the same numbers, so it is the same look.
    """
    if seeds < FEWEST_SEEDS:
        raise UsageError(
            f"expected at least {FEWEST_SEEDS} seeds, got {seeds}. An interval from fewer is not worth an opening"
        )
    openings = [_Opening(path, session) for path, session in entries]
    domains = {opening.session.task.split.test for opening in openings}
    if len(domains) > 1:
        raise EvometaError(f"runs that are opened together need the same test domains, got {sorted(domains)}")
    number, seeds = _next_number(openings, seeds)
    names = [path.name for path, _ in entries]
    announced = [opening.announce(number, seeds, names) for opening in openings]
    loaded = [opening.load(number) for opening in openings]
    digests = {domain.name: datasets.digest([domain]) for domain in loaded[0]}
    looks = _look(entries[0][0].parent, names, number, digests, seeds, announced)
    return [opening.judge(data, number, looks, seeds) for opening, data in zip(openings, loaded, strict=True)]


def _next_number(openings: Sequence[_Opening], seeds: int) -> tuple[int, int]:
    """The number of this opening, and its seeds: those of one that a crash cut short, or the next.

    One number gives one set of keys, so that the runs are judged on the same cells. An opening is taken up again
    only for the same runs and the same champions, with the seeds that it was announced with: anything else would
    be another look under an old name.
    """
    for number in sorted({n for opening in openings for n in opening.pending}, reverse=True):
        together = [opening.path.name for opening in openings]
        begun = [opening.begun[number] for opening in openings if number in opening.begun]
        same = all(o.begun.get(number, {"champion": o.word})["champion"] == o.word for o in openings)
        if same and all(event["together"] == together for event in begun):
            return number, begun[0]["seeds"]
    return 1 + max((n for opening in openings for n in opening.begun), default=0), seeds


class _Opening:
    """One run's part in an opening."""

    def __init__(self, path: Path, session: Session) -> None:
        self.path, self.session = path, session
        if not session.task.split.test:
            raise EvometaError(f"the split of {path.name} has no test domain, so there is nothing to unseal")
        best = champion.last(path)
        if best is None:
            raise EvometaError(f"{path.name} has no champion yet. Finish it first with: evometa resume {path}")
        self.best = best
        self.word = hashlib.sha256(best.genome.tobytes()).hexdigest()[:16]
        diary = events.read(path)
        self.begun = {event["opening"]: event for event in diary if event["kind"] == "opening"}
        self.finished = {event["opening"] for event in diary if event["kind"] == "opened"}
        self.pending = set(self.begun) - self.finished

    def announce(self, number: int, seeds: int, together: list[str]) -> str:
        """Write the opening to the diary, once; returns the hash of its line, which no other opening has."""
        if number not in self.begun:
            self.begun[number] = events.append(
                self.path,
                "opening",
                opening=number,
                domains=list(self.session.task.split.test),
                seeds=seeds,
                champion=self.word,
                together=together,
            )
        return self.begun[number]["hash"]

    def load(self, number: int) -> tuple[datasets.Loaded, ...]:
        task = self.session.task
        return datasets.load(task, task.split.test, datasets.Opening(number))

    def judge(self, loaded: tuple[datasets.Loaded, ...], number: int, looks: int, seeds: int) -> dict[str, Any]:
        path, session, best = self.path, self.session, self.best
        task, seed = session.task, session.spec.seed
        subjects = [
            Subject("champion", best.genome, best.generation, best.index),
            Subject("baseline", task.space.encode(task.baseline), None, None),
        ]
        genomes = np.stack([s.genome for s in subjects])
        journal = journal_for(path, "test", number)
        judge = Judge(task, loaded, session.plan)
        judged = judge.judge(genomes, seeds, seed, Stream.UNSEAL, number, journal)
        rows = judgement_rows(task, path.name, subjects, judged, "test", number, seed)
        part = commit(path / "judgements", judgements_table(rows), number)
        result = summarize(path.name, number, seeds, judged.losses(task.objectives[0].query), judged.domains)
        result["looks"] = looks
        if number not in self.finished:  # a run that was through before a crash cut the others short
            overall = result["overall"]
            driver.record_event(path, "opened", opening=number, looks=looks, overall=overall, judgements=part.name)
        journal.clear()
        return result


def _look(root: Path, runs: list[str], number: int, digests: dict[str, str], seeds: int, announced: list[str]) -> int:
    """Enter the opening in the ledger, once; returns how many looks at these data that makes.

    It is the same look only where the diaries announced it in the same lines: a run that was deleted and made
    again under its name opens the data a second time.
    """
    wanted = set(digests.values())
    looks = 0
    for entry in ledger.read(root):
        looks += bool(wanted & set(entry.get("domains", {}).values()))
        if entry.get("announced") == announced and entry.get("domains") == digests:
            return looks
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    entry = {"runs": runs, "opening": number, "data_digest": whole, "domains": digests}
    ledger.append(root, {**entry, "seeds": seeds, "announced": announced})
    return looks + 1


def summarize(run: str, opening: int, seeds: int, losses: np.ndarray, domains: Sequence[str]) -> dict[str, Any]:
    """The result of an opening from losses `[2 (champion, baseline), domains, seeds]`.

    Differences are champion - baseline: negative is better. Overall, the unit is the domain ("new domains
    like these"); with a single domain it is the inner seed ("these domains only").
    """
    differences = losses[0] - losses[1]
    overall: Interval = over_domains(differences) if len(domains) > 1 else over_seeds(differences)
    rows = [
        {
            "domain": name,
            "champion": _number(losses[0, d].mean()),
            "baseline": _number(losses[1, d].mean()),
            **_interval(interval),
        }
        for d, (name, interval) in enumerate(zip(domains, per_domain(differences), strict=True))
    ]
    return {
        "run": run,
        "opening": opening,
        "seeds": seeds,
        "domains": rows,
        "overall": {**_interval(overall), "estimand": overall.estimand, "unit": overall.unit},
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    return {name: _number(getattr(interval, name)) for name in ("difference", "low", "high")}


def _number(value: float) -> float | None:
    """A float for JSON; None where there is none to give (a failed champion, an interval of one unit)."""
    return float(value) if np.isfinite(value) else None

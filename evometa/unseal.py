"""Open the test domains: the only place that loads them. Every opening is recorded before anything is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evometa import champion, driver, folder
from evometa.archives import events, ledger
from evometa.archives.rows import judgements_table
from evometa.archives.write import commit
from evometa.contract import Task
from evometa.errors import EvometaError, UsageError
from evometa.evaluate import data as datasets
from evometa.judging import Judge, Subject, journal_for, judgement_rows
from evometa.keys import Stream
from evometa.session import Session
from evometa.spec import canonical
from evometa.statistics import Interval, over_domains, over_seeds, per_domain
from evometa.study_record import SEARCHED

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
    openings = [_Opening(path, lambda session=session: session) for path, session in entries]
    number, seeds = _agree(openings, seeds, None)
    results = _open(openings, number, seeds, again=True)
    return [results[path] for path, _ in entries]


def unseal_many(
    paths: Sequence[Path],
    reopen: Callable[[Path], Session],
    seeds: int = FEWEST_SEEDS,
    *,
    number: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """As `unseal_together` for any number of runs; returns the number of the opening, the results are in the archives.

    Runs are opened again (`reopen`) one kind at a time: those of equal tasks share one session, the loaded data and
    the compiled program, and nothing else is kept in memory. Runs that this opening was through with are passed
    over. `number`: of an opening that these runs join, to be judged on the same cells. The caller holds the locks.
    """
    openings = [_Opening(path, lambda path=path: reopen(path)) for path in paths]
    number, seeds = _agree(openings, seeds, number)
    _open(openings, number, seeds, again=False, note=note)
    return number


def enter_search(path: Path, session: Session) -> None:
    """Enter in the ledger that the run at `path` searches on sealed data: on domains that say whose copies they are.

    That is a look like an opening, made before the first candidate is scored, and the run's diary and every report say
    so. Does nothing for other runs. A run of a study is entered by its study, which knows that all its oracles are one
    look. Call it before a run goes on: what is entered already is entered once.
    """
    task = session.task
    names = [name for name in (*task.split.train, *task.split.validation) if "copy_of" in task.domain(name).tags]
    if not names or (path.parent / ledger.STUDY).is_file():
        return
    root, digests, sources = ledger.root(path), dict[str, str](), dict[str, str]()
    said = next((event for event in events.diary(path) if event["kind"] == SEARCHED), None)
    if said and any(ledger.look(entry) == (said["hash"],) for entry in ledger.read(root)):
        return
    known = {domain.name: domain.tags for domain in task.domains}
    for name in names:
        held = datasets.load(task, [name])[0]
        for original in task.domain(name).tags["copy_of"].split(","):
            # Under the original's name, so that equal data have equal digests.
            digests[original] = datasets.digest([replace(held, name=original)])
            if "data" in (tags := known.get(original, {})):
                sources[original] = tags["data"]
    said = said or events.append(path, SEARCHED, domains=list(digests))
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    entry: dict[str, Any] = {"runs": [path.name], "data_digest": whole, "domains": digests}
    if sources:
        entry["sources"] = sources
    ledger.append(root, {**entry, "seeds": 0, "use": "search", "announced": [said["hash"]]})


def handed(number: int) -> datasets.Opening:
    """The permission of an opening under way, for a worker that judges in it: it came with the worker's order."""
    return datasets.Opening(number)


def _agree(openings: Sequence[_Opening], seeds: int, number: int | None) -> tuple[int, int]:
    """The number of the opening and its seeds. Raises before anything is announced."""
    if seeds < FEWEST_SEEDS:
        raise UsageError(
            f"expected at least {FEWEST_SEEDS} seeds, got {seeds}. An interval from fewer is not worth an opening"
        )
    domains = {opening.domains for opening in openings}
    if len(domains) > 1:
        raise EvometaError(f"runs that are opened together need the same test domains, got {sorted(domains)}")
    return _next_number(openings, seeds, number)


def _open(
    openings: Sequence[_Opening],
    number: int,
    seeds: int,
    *,
    again: bool,
    note: Callable[[str], None] = lambda text: None,
) -> dict[Path, dict[str, Any]]:
    """Announce for all, then load, enter and judge: one set of data after the other."""
    names = [opening.path.name for opening in openings]
    announced = [opening.announce(number, seeds, names) for opening in openings]
    wanted = [opening for opening in openings if again or number not in opening.finished]
    results: dict[Path, dict[str, Any]] = {}
    for members in _grouped(wanted, _Opening.data_key):
        first = members[0].session()
        loaded = datasets.load(first.task, first.task.split.test, datasets.Opening(number))
        digests = {domain.name: datasets.digest([domain]) for domain in loaded}
        root, sources = ledger.root(members[0].path), _sources(first.task)
        looks = _look(root, names, number, digests, sources, seeds, announced)
        for equal in _grouped(members, _Opening.task_key):
            session = first if equal[0] is members[0] else equal[0].session()
            judge = session.judge(loaded, number)
            try:
                for opening in equal:
                    note(f"opening {len(results) + 1} of {len(wanted)}: {opening.path.name}")
                    results[opening.path] = opening.judge(session, judge, number, looks, seeds)
            finally:
                session.close()
    return results


def _grouped(openings: Sequence[_Opening], key: Callable[[_Opening], str]) -> list[list[_Opening]]:
    groups: dict[str, list[_Opening]] = {}
    for opening in openings:
        groups.setdefault(key(opening), []).append(opening)
    return list(groups.values())


def _next_number(openings: Sequence[_Opening], seeds: int, wanted: int | None = None) -> tuple[int, int]:
    """The number of this opening, and its seeds: those of one that a crash cut short, or the next.

    One number gives one set of keys, so that the runs are judged on the same cells. An opening is taken up again
    only for the same runs and the same champions, with the seeds that it was announced with: anything else would
    be another look under an old name.
    """
    together = [opening.path.name for opening in openings]
    pending = sorted({n for opening in openings for n in opening.pending}, reverse=True)
    if wanted is not None:
        pending = [wanted] if any(wanted in opening.begun for opening in openings) else []
    for number in pending:
        begun = [opening.begun[number] for opening in openings if number in opening.begun]
        same = all(o.begun.get(number, {"champion": o.word})["champion"] == o.word for o in openings)
        if same and all(event["together"] == together for event in begun):
            return number, begun[0]["seeds"]
        if wanted is not None:
            raise EvometaError(f"opening {wanted} of {together[0]} was of other runs or another champion")
    return wanted or 1 + max((n for opening in openings for n in opening.begun), default=0), seeds


class _Opening:
    """One run's part in an opening."""

    def __init__(self, path: Path, session: Callable[[], Session]) -> None:
        self.path, self.session, self.record = path, session, folder.read_record(path)
        self.domains = tuple(self.record["task"]["split"]["test"])
        if not self.domains:
            raise EvometaError(f"the split of {path.name} has no test domain, so there is nothing to unseal")
        best = champion.last(path)
        if best is None:
            raise EvometaError(f"{path.name} has no champion yet. Finish it first with: evometa resume {path}")
        self.best = best
        self.word = hashlib.sha256(best.genome.tobytes()).hexdigest()[:16]
        diary = events.diary(path)
        self.begun = {event["opening"]: event for event in diary if event["kind"] == "opening"}
        self.finished = {event["opening"] for event in diary if event["kind"] == "opened"}
        self.pending = set(self.begun) - self.finished

    def data_key(self) -> str:
        """Equal for runs whose tasks hold the same data."""
        spec, record = self.record["spec"], self.record
        return canonical([spec["task"], spec["task_options"], record["task"]["code"], record["folder"]])

    def task_key(self) -> str:
        """Equal for runs that are judged by the same program: all but the search and its seed."""
        record = {name: self.record.get(name) for name in ("task", "plan", "data", "versions", "machine")}
        searched = ("strategy", "strategy_options", "population", "seed", "start", "placebo", "champion", "plan")
        return canonical([record, {k: v for k, v in self.record["spec"].items() if k not in searched}])

    def announce(self, number: int, seeds: int, together: list[str]) -> str:
        """Write the opening to the diary, once; returns the hash of its line, which no other opening has."""
        if number not in self.begun:
            self.begun[number] = events.append(
                self.path,
                "opening",
                opening=number,
                domains=list(self.domains),
                seeds=seeds,
                champion=self.word,
                together=together,
            )
        return self.begun[number]["hash"]

    def judge(self, session: Session, judge: Judge, number: int, looks: int, seeds: int) -> dict[str, Any]:
        path, best, task, seed = self.path, self.best, session.task, self.record["seed"]
        subjects = [
            Subject("champion", best.genome, best.generation, best.index),
            Subject("baseline", task.space.encode(task.baseline), None, None),
        ]
        genomes = np.stack([s.genome for s in subjects])
        journal = journal_for(path, "test", number)
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


def _sources(task: Task) -> dict[str, str]:
    """What the test domains are made of, where the task says so: other arrays of the same words are the same data."""
    tags = {name: task.domain(name).tags for name in task.split.test}
    return {name: found["data"] for name, found in tags.items() if "data" in found}


def _look(
    root: Path,
    runs: list[str],
    number: int,
    digests: dict[str, str],
    sources: dict[str, str],
    seeds: int,
    announced: list[str],
) -> int:
    """Enter the opening in the ledger, once for each set of data; returns how many looks at these data that makes.

    It is the same look only where the diaries announced it in the same lines: a run that was deleted and made
    again under its name opens the data a second time.
    """
    wanted, own, looks = {*digests.values(), *sources.values()}, tuple(announced), set()
    field = "domains"
    for entry in ledger.read(root):
        data, look = ledger.data(entry), ledger.look(entry)
        if wanted & ledger.words(entry):
            looks.add(look)
        if look == own and data == digests:
            return len(looks)
        if look == own:
            field = "variants"
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    entry = {"runs": runs, "opening": number, "data_digest": whole, field: digests}
    if sources:
        entry["sources"] = sources
    ledger.append(root, {**entry, "seeds": seeds, "announced": announced})
    return len(looks | {own})


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

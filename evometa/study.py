"""A study: arms x seeds x a sweep, run as ordinary runs in one folder, opened together once, and reported.

Everything is a run on disk, so that a study can be killed anywhere: called again, it skips what is finished, resumes
what is not, and takes up its one opening where it was. Arms that search on the test domains' own data (oracles) run
after the opening, and the ledger is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evometa import api, champion, compare, driver, folder, study_record
from evometa.archives import events, ledger
from evometa.archives.pull import refresh
from evometa.archives.read import Archive
from evometa.comparison import Arm, differences
from evometa.deployment import deployed_spec
from evometa.driver import Watch
from evometa.errors import EvometaError
from evometa.session import Session, prepare, reseeded
from evometa.spec import Spec, canonical
from evometa.statistics import over_seeds
from evometa.study_cost import check_inner_steps
from evometa.study_plan import Planned, Study
from evometa.unseal import unseal_many
from evometa.verdict import CONFIRMED, UNDECIDED, evaluate

Watches = Callable[[str], Watch]  # title -> somebody who looks on


class Stopped(EvometaError):
    """A signal stopped the study; everything that was finished is on disk (exit code 130 or 143)."""

    def __init__(self, done: str, again: str, code: int) -> None:
        super().__init__(f"stopped {done}. Go on with: {again}")
        self.exit_code = code


def conduct(study: Study, out: Path, watch: Watches, again: str = "evometa study FILE.toml") -> dict[str, Any]:
    """Run, resume or just read a study, open its test domains once, and return its report as plain data.

    `again`: what to type to go on, for the line after an interruption. Raises `ResumeMismatch` where the folder holds
    another study of that name, `Stopped` on a signal, and whatever a run raises.
    """
    path = out / study.name
    refresh(path)  # of a study in an object store: what other machines did of it
    if not study_record.is_study(path):
        check_inner_steps(study)
    study_record.keep(path, study.record())
    with _alone(path), _told(path, study, again):
        plain = [run for run in study.runs if not run.variant.oracle]
        oracles = [run for run in study.runs if run.variant.oracle]
        sessions = _Sessions()
        for number, run in enumerate(plain, 1):
            _carry(path, run, f"run {number} of {len(study.runs)}", watch, sessions)
        opening = _open(path, plain, study, watch, None)
        for number, run in enumerate(oracles, len(plain) + 1):
            _enter_use(path, plain, oracles, opening)
            _carry(path, run, f"run {number} of {len(study.runs)}", watch, sessions)
        if oracles:
            _open(path, oracles, study, watch, opening)
        return report(study, path)


def report(study: Study, path: Path) -> dict[str, Any]:
    """Everything a report shows, from the folder of a finished study, as plain data."""
    paths, labels = study_record.arms_of(path)
    # The study's own opening: what somebody looked at later is another look.
    own = _opened([path / run.judged for run in study.runs if not run.variant.oracle])
    loaded = compare.load(paths, labels, own)
    query = study.spec.query or loaded.query
    apart = _apart(loaded, study, query)
    loaded = compare.restricted(loaded, [name for name in loaded.domains if name not in study.spec.apart])
    groups = compare.families(paths[0], study.spec.families) if study.spec.families else None
    results = compare.results(loaded, study.spec.rival, query, groups=groups)
    seen = _seen_before(path, study)
    for row in results["domains"]:  # the oracles' own looks are told apart
        row["looks"] = None if row["looks"] is None else row["looks"] - _oracle_looks(path, study, row["domain"])
    upper = [
        (path / f"{run.name}{'-deployed' * below}", run.variant.label)
        for run in study.runs
        for below in range(run.spec.levels - 1)
    ]
    return {
        "study": study.name,
        "path": str(path),
        "runs": len(study.runs),
        "seeds": study.spec.seed_list,
        "budget": study.spec.budget,
        "arms": [_about(variant) for variant in study.variants],
        "results": results,
        "apart": apart,
        "upper_budgets": compare.totals(compare.budgets(*zip(*upper, strict=True))) if upper else [],
        "sweeps": {
            key: {arm: [list(p) for p in points] for arm, points in s.items()} for key, s in study.sweeps.items()
        },
        "opened_before": seen,
        "verdict": _verdict(study, loaded.arms, query, seen),
    }


# --- running --------------------------------------------------------------------------------------------------


class _Sessions:
    """Sessions by spec, whatever the seed: an arm is traced and its data are loaded once, not once per seed."""

    def __init__(self) -> None:
        self._made: dict[str, Session] = {}

    def of(self, spec: Spec) -> Session:
        word = canonical({**spec.identity(), "seed": 0})
        made = self._made.get(word)
        self._made[word] = prepare(spec) if made is None else reseeded(made, spec)
        return self._made[word]


def _carry(path: Path, run: Planned, progress: str, watch: Watches, sessions: _Sessions) -> None:
    """One run to its end: begun, resumed or passed over; of several levels, the runs below too."""
    _run(path, run.name, lambda: run.spec, run.spec.generations, f"{progress}: {run.name}", watch, sessions)
    name, deploy = run.name, run.variant.own.deploy
    for _ in range(1, run.spec.levels):
        upper = path / name
        spec = deployed_spec(upper)
        if deploy is not None and spec.levels == 1:
            spec = deployed_spec(
                upper,
                generations=deploy.generations,
                population=deploy.population,
                champion_spec=deploy.champion,
            )
        name = f"{name}-deployed"
        below = spec.model_copy(update={"name": name})
        _run(path, name, lambda below=below: below, below.generations, f"{progress}: {name}", watch, sessions)


def _run(
    path: Path,
    name: str,
    spec: Callable[[], Spec],
    generations: int,
    title: str,
    watch: Watches,
    sessions: _Sessions,
) -> None:
    there = path / name
    if not (there / folder.RECORD).is_file():
        made = spec()
        api.begin(made, path, watch=watch(title), session=sessions.of(made))
        return
    done, best = Archive(there).generations(), champion.last(there)
    if done > generations or folder.target(there) != generations:
        raise EvometaError(
            f"{name} was carried on to {max(done, folder.target(there))} generations, the study has {generations}: its"
            f" budget is not equal any more. Remove {there} to have it run again"
        )
    if done < generations or best is None or best.generations != generations:
        api.resume(there, watch=watch(title))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.locked(path))
        except EvometaError as error:
            raise EvometaError(str(error).partition(" Look on")[0] + " Wait for it, or stop it") from None
        yield


@contextmanager
def _told(path: Path, study: Study, again: str) -> Iterator[None]:
    """Turn a signal into one line that says how far the study is and how to go on."""
    try:
        yield
    except driver.Interrupted as stop:
        raise Stopped(_how_far(path, study), again, stop.exit_code) from None
    except KeyboardInterrupt as stop:  # between two runs, or in the opening; SIGTERM comes as a subclass
        code = 130 if type(stop) is KeyboardInterrupt else 128 + stop.args[0]
        raise Stopped(_how_far(path, study), again, code) from None


def _how_far(path: Path, study: Study) -> str:
    done = sum((path / run.judged / folder.RECORD).is_file() and _finished(path / run.judged) for run in study.runs)
    return f"after {done} of {len(study.runs)} runs"


def _finished(run: Path) -> bool:
    best = champion.last(run)
    return best is not None and best.generations >= folder.target(run)


# --- opening --------------------------------------------------------------------------------------------------


def _open(path: Path, runs: Sequence[Planned], study: Study, watch: Watches, number: int | None) -> int:
    """Open the test domains for all these runs at once, where that was not done; returns the opening's number."""
    paths = [path / run.judged for run in runs]
    done = _opened(paths)
    if done is not None:
        return done
    with ExitStack() as stack:
        for run in paths:
            stack.enter_context(folder.locked(run))
        note = watch("opening").note
        note(f"opening the test domains for {len(paths)} runs, once")
        return unseal_many(paths, api.reopen, study.spec.inner_seeds, number=number, note=note)


def _opened(paths: Sequence[Path]) -> int | None:
    """The number of the finished opening of exactly these runs together; None where there is none."""
    names = [path.name for path in paths]
    common: set[int] | None = None
    for path in paths:
        diary = events.diary(path)
        finished = {event["opening"] for event in diary if event["kind"] == "opened"}
        together = {e["opening"] for e in diary if e["kind"] == "opening" and e["together"] == names}
        common = finished & together if common is None else common & finished & together
    return min(common) if common else None


def _announced(paths: Sequence[Path], number: int) -> list[str]:
    """The diary lines that announced an opening: what the ledger knows it by."""
    return [
        event["hash"]
        for path in paths
        for event in events.diary(path)
        if event["kind"] == "opening" and event["opening"] == number
    ]


def _enter_use(path: Path, plain: Sequence[Planned], oracles: Sequence[Planned], opening: int) -> None:
    """Tell the ledger, once and before it happens, that oracles search on the data that were opened."""
    announced = _announced([path / run.judged for run in plain], opening)
    root, word = ledger.root(path / plain[0].judged), _oracle_word(announced)
    entries = ledger.read(root)
    if any(entry.get("announced") == word for entry in entries):
        return
    opened = next((entry for entry in entries if entry.get("announced") == announced), None)
    if opened is None:
        raise EvometaError(
            f"the ledger {ledger.FILE} of opening {opening} is not in {root}. Put it back beside the study"
        )
    same = {name: opened[name] for name in ("opening", "data_digest", "domains")}
    ledger.append(root, {"runs": [r.name for r in oracles], **same, "seeds": 0, "use": "search", "announced": word})


def _oracle_word(announced: Sequence[str]) -> list[str]:
    return [f"oracle of {announced[0]}"]


# --- reporting ------------------------------------------------------------------------------------------------


def _about(variant: Any) -> dict[str, Any]:
    return {
        "arm": variant.label,
        "control": variant.own.control,
        "oracle": variant.oracle,
        "levels": variant.spec.levels,
        "evaluations": variant.evaluations,
        "outer_evaluations": variant.outer_evaluations,
        "free": not variant.searches or variant.own.budget == "free",
        "why": variant.own.why or ("no search" if not variant.searches else ""),
    }


def _apart(loaded: compare.Loaded, study: Study, query: str) -> list[dict[str, Any]]:
    """Domains that are shown and never averaged in: every arm against the rival, on each alone, over search seeds."""
    rows = []
    for domain in study.spec.apart:
        alone = compare.restricted(loaded, [domain])
        rival = alone.arms[study.spec.rival]
        for name, arm in alone.arms.items():
            row: dict[str, Any] = {"domain": domain, "arm": name}
            row |= {q: float(np.mean(arm.losses[q])) for q in alone.queries}
            if name != study.spec.rival and set(arm.seeds) == set(rival.seeds):
                found = over_seeds(differences(arm, rival, query)[:, 0])
                row |= {key: getattr(found, key) for key in ("difference", "low", "high")}
            rows.append({key: None if isinstance(x, float) and math.isnan(x) else x for key, x in row.items()})
    return rows


def _seen_before(path: Path, study: Study) -> dict[str, int] | None:
    """Test domain -> looks at its data before this study's; domains that a task marks as opened count as one.

    None where the ledger of the study's opening is gone.
    """
    plain = [path / run.judged for run in study.runs if not run.variant.oracle]
    opening = _opened(plain)
    assert opening is not None
    seen = ledger.before(ledger.root(plain[0]), _announced(plain, opening))
    if seen is None:
        return None
    for name in study.task.split.test:
        if study.task.domain(name).tags.get("opened") == "before":
            seen[name] = max(1, seen.get(name, 0))
    return {name: seen[name] for name in study.task.split.test if name in seen and name not in study.spec.apart}


def _oracle_looks(path: Path, study: Study, domain: str) -> int:
    plain = [path / run.judged for run in study.runs if not run.variant.oracle]
    oracles = [path / run.judged for run in study.runs if run.variant.oracle]
    opening = _opened(plain)
    if not oracles or opening is None:
        return 0
    own = (_oracle_word(_announced(plain, opening)), _announced(oracles, opening))
    found = {ledger.look(e) for e in ledger.read(ledger.root(plain[0])) if domain in ledger.data(e)}
    return sum(tuple(word) in found for word in own)


def _verdict(study: Study, arms: dict[str, Arm], query: str, seen: dict[str, int] | None) -> dict[str, Any] | None:
    if study.rule is None:
        return None
    found = evaluate(study.rule, arms, query, study.sweeps).to_json()
    strict = study.spec.verdict is not None and not study.spec.verdict.allow_opened
    found["declared"] = study.spec.verdict is not None
    if strict and seen is None and found["outcome"] == CONFIRMED:
        found["outcome"] = UNDECIDED
        found["why"] = (
            f"every confirming claim holds, but the ledger {ledger.FILE} of the opening is not beside the study: nobody"
            " can tell who had looked before. Put it back"
        )
    elif strict and seen and found["outcome"] == CONFIRMED:
        found["outcome"] = UNDECIDED
        found["why"] = (
            f"every confirming claim holds, but {', '.join(seen)} had been opened before: what was seen cannot confirm."
            " Judge on domains that nobody opened, or declare allow_opened = true beforehand"
        )
    return found

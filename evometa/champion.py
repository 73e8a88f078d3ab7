"""Choose what a run recommends: the likely-best of its finished candidates, not the luckiest.

The strategy's recommendation and the best few observed candidates are judged again on the validation
domains with keys that nothing has seen; the choice and what it may promise come from `likely_best`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from evometa import driver
from evometa.archives import events
from evometa.archives.read import Archive
from evometa.archives.rows import judgements_table
from evometa.archives.write import commit
from evometa.errors import EvometaError
from evometa.evaluate.settle import reduce
from evometa.judging import Subject, journal_for, judgement_rows
from evometa.keys import Stream, stream_key
from evometa.likely import likely_best
from evometa.session import Session
from evometa.types import State


class Champion(NamedTuple):
    """What a run recommends after so many generations."""

    generations: int  # how far the run had come
    generation: int | None  # the candidate's name; the generation told last for a mean
    index: int | None  # None: nobody's genome (a mean)
    label: str  # recommendation or observed
    genome: np.ndarray  # [D] float32
    validation: float  # what it may promise: its posterior mean loss on the validation domains
    baseline: float  # the baseline's mean loss on the same cells
    probability: float  # that it is the best of those judged
    domains: tuple[str, ...]  # it was chosen on these


def choose(path: Path, session: Session, state: State, generations: int) -> Champion:
    """Judge the finalists, record the judgements and the choice, and return it.

    With several objectives the strategy's recommendation, a compromise, stands; all objectives are judged and
    recorded, the first is the one reported.

    Deterministic: a repetition after a crash writes the same bytes. Where the split has no validation
    domains, the train domains with fresh keys take their place, and the event says so.
    """
    task, spec = session.task, session.spec
    names = task.split.validation or task.split.train
    subjects = _finalists(path, session, state, generations)
    journal = journal_for(path, "validation", generations)
    luck = stream_key(spec.seed, generations, Stream.PLACEBO)
    judged = session.validation().judge(
        np.stack([s.genome for s in subjects]),
        spec.champion.replicates,
        spec.seed,
        Stream.VALIDATE,
        generations,
        journal,
    )
    objective = task.objectives[0]
    several = len(task.objectives) > 1
    rows = judgement_rows(task, path.name, subjects, judged, "validation", 0, spec.seed)
    for row in rows:
        row["role"] = "validation" if task.split.validation else "train"
    part = commit(path / "judgements", judgements_table(rows), generations)
    finalists = judged.losses(objective.query)[:-1]  # the baseline, last, is judged for comparison only
    if spec.placebo:  # chosen, too, by scores that are somebody else's; the judgements keep everybody's own
        order = np.asarray(jax.random.permutation(luck, len(finalists)))
        finalists = finalists[order]
    if not np.isfinite(finalists).all(axis=(1, 2)).any():
        raise EvometaError(
            f"none of the {len(finalists)} finalists of {path.name} can be judged on {', '.join(names)}:"
            f" {next(iter(judged.messages.values()), 'their loss is not finite')}"
        )
    index, chance, promise = 0, float("nan"), float("nan")
    if several:
        # No order among compromises: the strategy's own stands, and its first objective is what is reported.
        promise = float(np.asarray(reduce(judged.loss, judged.cells, objective))[0])
    elif objective.reduction == "mean":
        choice = likely_best(finalists)
        index, promise, chance = choice.index, choice.loss, float(choice.probability_best[choice.index])
    else:
        # The tail of the domains has no standard error worth shrinking by: the plain smallest.
        values = np.asarray(reduce(judged.loss, judged.cells, objective))[:-1]
        values = values[order] if spec.placebo else values
        values = np.where(np.isfinite(finalists).all(axis=(1, 2)), values, np.inf)
        index = int(np.argmin(values))
        promise = float(values[index])
    chosen = subjects[index]
    champion = Champion(
        generations,
        chosen.generation,
        chosen.index,
        chosen.label,
        chosen.genome,
        float(promise),
        float(judged.losses(objective.query)[-1].mean()),
        chance,
        tuple(names),
    )
    driver.record_event(path, "champion", judgements=part.name, **_fields(champion))
    journal.clear()
    return champion


def last(path: Path) -> Champion | None:
    """The champion that was chosen last, read from the run's folder; None before the first choice."""
    chosen = [event for event in events.diary(path) if event["kind"] == "champion"]
    if not chosen:
        return None
    event = chosen[-1]
    nan = float("nan")
    return Champion(
        generations=event["generations"],
        generation=event["generation"],
        index=event["index"],
        label=event["label"],
        genome=np.array(event["genome"], np.float32),
        validation=event["validation"],
        baseline=nan if event["baseline"] is None else event["baseline"],
        probability=nan if event["probability"] is None else event["probability"],
        domains=tuple(event["domains"]),
    )


def _fields(champion: Champion) -> dict[str, Any]:
    fields = champion._asdict()
    fields["genome"] = [float(x) for x in champion.genome]
    fields["domains"] = list(champion.domains)
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}


def _finalists(path: Path, session: Session, state: State, generations: int) -> list[Subject]:
    """The recommendation first, then the best observed with other genomes, the baseline last."""
    recommended = np.asarray(session.strategy.recommend(state), np.float32)
    spec, archive = session.spec, Archive(path)
    wanted = 4 * spec.champion.observed
    if spec.placebo:  # the best by somebody else's scores: anybody
        luck = jax.random.fold_in(stream_key(spec.seed, generations, Stream.PLACEBO), 1)
        low = np.array([archive.parts()[0].first, 0])
        high = np.array([generations, session.strategy.population])
        drawn = np.asarray(jax.random.randint(luck, (wanted, 2), low[None], high[None]))
        rows = [archive.row(int(generation), int(index)) for generation, index in drawn]
    else:
        rows = archive.top(wanted)
    observed = [
        Subject("observed", np.array(row["genome"], np.float32), row["generation"], row["index"])
        for row in rows
        if np.isfinite(row["fitness"]) and row["genome"]
    ]
    subjects = [Subject("recommendation", recommended, generations - 1, None)]
    seen = {recommended.tobytes(): 0}
    for subject in observed:
        word = subject.genome.tobytes()
        if word not in seen and len(subjects) <= spec.champion.observed:
            seen[word] = len(subjects)
            subjects.append(subject)
        elif seen.get(word) == 0 and subjects[0].index is None:
            # The recommendation is somebody's genome after all: say whose.
            subjects[0] = Subject("recommendation", recommended, subject.generation, subject.index)
    baseline = session.task.space.encode(session.task.baseline)
    return [*subjects, Subject("baseline", baseline, None, None)]

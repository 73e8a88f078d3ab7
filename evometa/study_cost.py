"""What a study will cost, measured from a few generations of each kind of run in memory: nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evometa.keys import Stream, stream_key
from evometa.session import Session, prepare
from evometa.spec import Spec
from evometa.study_plan import Study, check_budgets

_GENERATIONS = 2  # timed, after one that compiles


def estimate(study: Study, note: Callable[[str], None]) -> dict[str, Any]:
    """Plan and cost as plain data: for each arm what its runs use, and how many minutes they will take here.

    A few generations of each kind of run are computed, on the train domains; no run is made.
    """
    check_inner_steps(study)
    rows, generation = [], dict[str, Any]()
    for variant in study.variants:
        runs = sum(run.variant.label == variant.label for run in study.runs)
        if not variant.oracle:  # that would load the test domains; its cost is about that of the arm before it
            note(f"measuring {variant.label}")
            generation = _measure(variant.spec)
        domains = len(study.task.split.test)
        trainings = max(1, generation["trainings"])
        # The opening judges champion and baseline, one training at a time.
        opening = 2 * domains * study.spec.inner_seeds * generation["seconds"] / trainings
        once, each = generation["compiling"], generation["loading"] + opening
        each += variant.spec.generations * generation["seconds"]
        if variant.spec.levels > 1:  # and then the run below, with settings that are not known yet
            below = _measure(_below(variant.spec))
            once += below["compiling"]
            each += below["loading"] + below["seconds"] * variant.evaluations / variant.spec.below(1).population
        rows.append(
            {
                "arm": variant.label,
                "runs": runs,
                "generations": variant.spec.generations,
                "population": variant.population,
                "evaluations": variant.evaluations,
                "outer_evaluations": variant.outer_evaluations,
                "trainings": variant.spec.generations * generation["trainings"],
                "inner_steps": None
                if generation["inner_steps"] is None
                else round(variant.spec.generations * generation["inner_steps"]),
                "seconds_per_generation": generation["seconds"],
                "minutes": (once + runs * each) / 60,
            }
        )
    return {
        "study": study.name,
        "seeds": study.spec.seed_list,
        "arms": rows,
        "runs": len(study.runs),
        "evaluations": sum((row["evaluations"] + row["outer_evaluations"]) * row["runs"] for row in rows),
        "minutes": sum(row["minutes"] for row in rows),
    }


def check_inner_steps(study: Study) -> None:
    """Raise `ConfigError` where runs will not use the same number of inner steps: measured on the baseline.

    Does nothing where the study's budget is another, and leaves out oracles: they would load the test domains. Tasks
    that do not report `inner_steps` cannot have this budget.
    """
    if study.spec.budget != "inner_steps":
        return
    used = {}
    for variant in study.variants:
        if not variant.searches or variant.own.budget == "free" or variant.oracle:
            continue
        spec = variant.spec.model_copy(update={"levels": min(1, variant.spec.levels)})
        session = prepare(spec)
        steps = _steps(session, session.task.space.encode(session.task.baseline)[None])
        if steps is None:
            raise study.source.error(
                ("budget",),
                f"task {session.task.name!r} does not report inner_steps, so they cannot be equal."
                ' Say budget = "evaluations"',
            )
        used[variant.label] = round(steps * variant.evaluations)
    check_budgets(study, used)


def _below(spec: Spec) -> Spec:
    """An ordinary run like the one that several levels end in."""
    nest = spec.below(1)
    changed = {"strategy": nest.strategy, "strategy_options": nest.strategy_options, "population": nest.population}
    return spec.model_copy(update={"levels": 1, "hurdle": None, **changed})


def _steps(session: Session, genomes: np.ndarray) -> float | None:
    """Inner steps of one candidate on all train cells; the steps of a training are told with each of its queries."""
    key = stream_key(session.spec.seed, 0, Stream.CHECK)
    made: Any = session.backend
    raw = made.host(key, genomes) if session.task.runs == "jax" else made.host(0, key, genomes)[0]
    return _total_steps(raw.metrics, session)


def _total_steps(metrics: Any, session: Session) -> float | None:
    """Inner steps of all trainings in these cells: those of a training are told with each of its queries."""
    found = metrics.get("inner_steps")
    if found is None or not np.isfinite(found).any():
        return None
    return float(np.nansum(found)) / len({cell.query for cell in session.cells})


def _measure(spec: Spec) -> dict[str, Any]:
    """Seconds to load and to compile (which seeds share), and what one generation takes."""
    began = time.monotonic()
    session = prepare(spec)
    loaded = time.monotonic()
    state, block = session.loop.advance(session.initial_state(), 0, 1)
    compiled = time.monotonic()
    count = min(_GENERATIONS, session.plan.block)
    state, block = session.loop.advance(state, 1, count)
    jax.block_until_ready(state)
    seconds = (time.monotonic() - compiled) / count
    steps = _total_steps(block.scores.metrics, session)
    return {
        "loading": loaded - began,
        "compiling": compiled - loaded,
        "seconds": seconds,
        "trainings": session.strategy.population * len(session.cells) // len({cell.query for cell in session.cells}),
        "inner_steps": None if steps is None else steps / count,
    }

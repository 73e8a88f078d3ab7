"""A study, resolved: every run that it consists of, checked against its task before anything is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from evometa import session
from evometa.arms import BASELINE
from evometa.compare import gap_of
from evometa.contract import Task
from evometa.errors import ConfigError, EvometaError, did_you_mean
from evometa.spec import Spec, build, canonical
from evometa.study_arms import ORACLE, changes
from evometa.study_spec import ArmSpec, Source, StudySpec, explain, flat, merge, read
from evometa.verdict import Rule, Sweeps, check_names, rule_from

LONGEST = 37  # of a run's name, so that "-deployed" fits behind it for every level


class Variant(NamedTuple):
    """An arm at one value of the sweep: its runs differ in the search seed only."""

    arm: str  # as the file calls it
    label: str  # `main`, or `main, languages=4`: what tables and claims call it
    point: dict[str, Any]  # swept key -> value; empty for an arm that is not swept
    values: dict[str, Any]  # the keys of its runs' spec
    spec: Spec  # checked; its seed is the first
    population: int
    own: ArmSpec
    oracle: bool

    @property
    def evaluations(self) -> int:
        """Candidates that a run of the judged kind scores: of the deployed run, where there are several levels."""
        if self.spec.levels < 2:
            return self.spec.generations * self.population
        deploy, nest = self.own.deploy, self.spec.below(1)
        generations = deploy.generations if deploy else None
        population = deploy.population if deploy else None
        return (generations or nest.generations) * (population or nest.population)

    @property
    def outer_evaluations(self) -> int:
        """Candidates that the searches above score, each a whole search; 0 for an ordinary arm."""
        return self.spec.generations * self.population if self.spec.levels > 1 else 0

    @property
    def searches(self) -> bool:
        """Whether there is a search whose budget could be equal."""
        return self.spec.levels > 0 and self.spec.strategy != "static"


class Planned(NamedTuple):
    """One run."""

    variant: Variant
    seed: int
    name: str  # of its folder
    spec: Spec

    @property
    def judged(self) -> str:
        """The folder of the run that is opened: the deployed one at the end of several levels."""
        return self.name + "-deployed" * max(0, self.spec.levels - 1)


@dataclass(frozen=True)
class Study:
    """A study that can be run."""

    spec: StudySpec
    source: Source
    variants: tuple[Variant, ...]  # oracles last
    runs: tuple[Planned, ...]  # seed after seed, oracles last
    rule: Rule | None
    sweeps: Sweeps
    task: Task  # of the first variant: domains and queries are those of all

    @property
    def name(self) -> str:
        """The study's name, its profile included."""
        return self.spec.name

    def record(self) -> dict[str, Any]:
        """What study.json says of it, besides its format."""
        runs = [
            {"name": r.name, "judged": r.judged, "label": r.variant.label, "arm": r.variant.arm, "seed": r.seed,
             "oracle": r.variant.oracle}
            for r in self.runs
        ]  # fmt: skip
        return {"name": self.name, "study": self.spec.resolved(), "runs": runs}


def plan(path: Path, profile: str | None = None) -> Study:
    """The study of a TOML file. Raises `NotFound` and `ConfigError` in one line, with the place in the file."""
    spec, source = read(path, profile)
    tasks: dict[str, Task] = {}
    variants = [variant for name, arm in spec.arms.items() for variant in _variants(name, arm, spec, source, tasks)]
    variants.sort(key=lambda variant: variant.oracle)  # stable
    if variants[0].oracle:
        raise source.error(("arms",), "a study needs an arm that is no oracle: one that could be used on new domains")
    seeds = spec.seed_list
    runs = []
    for oracle in (False, True):
        chosen = [variant for variant in variants if variant.oracle == oracle]
        runs += [_planned(variant, seed) for seed in seeds for variant in chosen]
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise source.error(("sweep",), f"two runs would be called {twice!r}. Leave out the value that is there twice")
    first = _task_of(variants[0].spec, tasks)
    _check_domains(spec, variants, tasks, source)
    sweeps = _sweeps(variants)
    rule = _rule(spec, source, variants, first, sweeps)
    study = Study(spec, source, tuple(variants), tuple(runs), rule, sweeps, first)
    if spec.budget == "evaluations":
        check_budgets(study, {variant.label: variant.evaluations for variant in variants})
    return study


def check_budgets(study: Study, used: Mapping[str, int]) -> None:
    """Raise `ConfigError` naming two arms whose runs do not use the same, at the same values of the sweep."""
    for variant in study.variants:
        if variant.outer_evaluations and variant.own.budget == "equal":
            raise study.source.error(
                ("arms", variant.arm),
                f"unequal budgets: arm {variant.label!r} of {variant.spec.levels} levels runs"
                f" {variant.outer_evaluations}"
                ' searches above the one that is compared. Say budget = "free" and why = "..." in the arm',
            )
    matched = [v for v in study.variants if v.label in used and v.searches and v.own.budget == "equal"]
    for i, variant in enumerate(matched):
        for other in matched[:i]:
            same = all(other.point.get(key, value) == value for key, value in variant.point.items())
            if same and used[variant.label] != used[other.label]:
                what = study.spec.budget.replace("_", " ")
                raise study.source.error(
                    ("arms", variant.arm),
                    f"unequal budgets: a run of {other.label!r} uses {used[other.label]:,} {what}, one of"
                    f" {variant.label!r} {used[variant.label]:,}. Make generations x population equal, or say"
                    ' budget = "free" and why = "..." in the arm',
                )


def _variants(name: str, arm: ArmSpec, spec: StudySpec, source: Source, tasks: dict[str, Task]) -> list[Variant]:
    sweep = flat(spec.sweep)
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise source.error(("sweep", *key.split(".")), f"sweep.{key}: expected a list of values, got {values!r}")
    values = dict(spec.base)
    if arm.control is not None:
        task = _task_of(_spec(values, name, source), tasks)
        try:
            values |= changes(arm.control, task, values)
        except ConfigError as error:
            raise source.error(("arms", name, "control"), f"arm {name!r}: {error}") from None
    if arm.changes.get("strategy", values.get("strategy")) != values.get("strategy"):
        values["strategy_options"] = {}  # another method's hyperparameters mean nothing to this one
    values = merge(values, arm.changes)
    # What an arm (or its control) sets itself is what makes it this arm: it is not swept over.
    set_here = {key for key in sweep if _at(arm.changes, key) is not None or _at(values, key) != _at(spec.base, key)}
    swept = {key: choices for key, choices in sweep.items() if key not in set_here}
    out = []
    for point in product(*swept.values()):
        at = dict(zip(swept, point, strict=True))
        here = values
        for key, value in at.items():
            here = merge(here, _nested(key, value))
        checked = _spec(here, name, source)
        population = _population(checked, name, source, tasks)
        if spec.evaluations is not None:
            here = {**here, "generations": _generations(spec.evaluations, checked, population, name, source)}
            checked = _spec(here, name, source)
        if arm.deploy and checked.levels < 2:
            raise source.error(("arms", name, "deploy"), f"arm {name!r}: only an arm of two or more levels is deployed")
        label = ", ".join([name, *(f"{_short(key, sweep)}={_word(value)}" for key, value in at.items())])
        oracle = arm.oracle or arm.control == ORACLE
        out.append(Variant(name, label, at, here, checked, population, arm, oracle))
    return out


def _generations(evaluations: int, spec: Spec, population: int, arm: str, source: Source) -> int:
    """How many generations the study's budget makes of an arm's population."""
    if spec.levels != 1 or spec.strategy == "static":
        return spec.generations  # of several levels, `deploy` sizes the run that is compared
    if evaluations % population:
        near = max(1, round(evaluations / population)) * population
        raise source.error(
            ("evaluations",),
            f"evaluations: {evaluations} do not divide into generations of {population} (arm {arm!r})."
            f" Try {near}, or another population",
        )
    return evaluations // population


def _spec(values: Mapping[str, Any], arm: str, source: Source) -> Spec:
    try:
        Spec(**values)
    except ValidationError as error:
        raise explain(error, source, arm) from None
    return build(values)


def _task_of(spec: Spec, tasks: dict[str, Task]) -> Task:
    """The task that a spec searches, made once; nothing of its data is loaded."""
    key = canonical({k: v for k, v in spec.identity().items() if k not in ("strategy", "strategy_options", "seed")})
    if key not in tasks:
        tasks[key] = session.task_of(spec, Path())
    return tasks[key]


def _population(spec: Spec, arm: str, source: Source, tasks: dict[str, Task]) -> int:
    try:
        return session.strategy_of(spec, _task_of(spec, tasks), Path()).population
    except EvometaError as error:
        raise type(error)(f"{source.where('arms', arm)}arm {arm!r}: {error}") from None


def _check_domains(spec: StudySpec, variants: Sequence[Variant], tasks: dict[str, Task], source: Source) -> None:
    first = variants[0]
    wanted = _task_of(first.spec, tasks).split.test
    if not wanted:
        raise source.error(("base",), "the task has no test domain, so a study of it could not be opened at its end")
    for name in spec.apart:
        if name not in wanted:
            hint = did_you_mean(name, wanted)
            raise source.error(
                ("apart",), f"apart: no test domain is called {name!r}.{hint} Known: {', '.join(wanted)}"
            )
    if set(wanted) <= set(spec.apart):
        raise source.error(("apart",), "apart: expected at least one test domain that is averaged, got all apart")
    for variant in variants:
        task = _task_of(variant.spec, tasks)
        copies = [n for n in (*task.split.train, *task.split.validation) if "copy_of" in task.domain(n).tags]
        if copies and not variant.oracle:
            raise source.error(
                ("arms", variant.arm),
                f"arm {variant.label!r} searches on copies of sealed data ({copies[0]} ...): an oracle."
                " Say oracle = true",
            )
    for variant in variants[1:]:
        got = _task_of(variant.spec, tasks).split.test
        if got != wanted:
            raise source.error(
                ("arms", variant.arm),
                f"arms with different test domains: {first.label!r} has {', '.join(wanted)};"
                f" {variant.label!r} has {', '.join(got) or 'none'}. Give all the same split.test",
            )


def _rule(spec: StudySpec, source: Source, variants: Sequence[Variant], task: Task, sweeps: Sweeps) -> Rule | None:
    labels = [*(variant.label for variant in variants), BASELINE]
    if spec.rival not in labels:
        raise source.error(("rival",), f"rival: no arm is called {spec.rival!r}. Known: {', '.join(labels)}")
    if spec.query is not None and spec.query not in task.query_names:
        known = ", ".join(task.query_names)
        raise source.error(("query",), f"query: no query is called {spec.query!r}. Known: {known}")
    if not spec.claims:
        if spec.verdict is not None:
            raise source.error(("verdict",), "a verdict needs claims. Add [[claims]] with name, kind, arm, rival")
        return None
    declared = spec.verdict.model_dump(exclude={"allow_opened"}) if spec.verdict else {}
    if spec.verdict is not None and len(spec.seed_list) < 2:
        raise source.error(("seeds",), "a verdict on methods needs at least 2 search seeds, got 1. Write seeds = 10")
    try:
        rule = rule_from({"claims": spec.claims, **declared})
        check_names(rule, labels, [*task.query_names, *gap_of(task.query_names)], sweeps)
    except ConfigError as error:
        named = re.match(r"claim '([^']*)'", str(error))
        raise ConfigError(f"{_claim_line(source, named[1] if named else None)}{error}") from None
    return rule


def _claim_line(source: Source, name: str | None) -> str:
    """`FILE:LINE: ` of the claim of that name; of the verdict where there is none."""
    lines = source.path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if name is not None and re.fullmatch(rf"\s*name\s*=\s*[\"']{re.escape(name)}[\"']\s*(#.*)?", line):
            return f"{source.path}:{number}: "
    return source.where("verdict")


def _sweeps(variants: Sequence[Variant]) -> dict[str, dict[str, list[tuple[float, str]]]]:
    """swept key -> arm (with the values of other swept keys) -> its points, for trends and tables."""
    out: dict[str, dict[str, list[tuple[float, str]]]] = {}
    for variant in variants:
        for key, value in variant.point.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            rest = {k: v for k, v in variant.point.items() if k != key}
            series = ", ".join([variant.arm, *(f"{_short(k, variant.point)}={_word(v)}" for k, v in rest.items())])
            out.setdefault(key, {}).setdefault(series, []).append((float(value), variant.label))
    return out


def _planned(variant: Variant, seed: int) -> Planned:
    words = [f"{_short(key, variant.point)}-{_word(value)}" for key, value in variant.point.items()]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join([variant.arm, f"s{seed}", *words]))
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(f'{variant.label} {seed}'.encode()).hexdigest()[:8]}"
    spec = variant.spec.model_copy(update={"seed": seed, "name": name})
    return Planned(variant, seed, name, spec)


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _at(values: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for step in key.split("."):
        values = values.get(step) if isinstance(values, Mapping) else None
    return values


def _short(key: str, keys: Mapping[str, Any]) -> str:
    """The last step of a dotted key where no other ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) < 2 else key


def _word(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)

"""What is searched and what it is judged on: `Domain`, `Split`, `Objective`, `Task`.

The trainer is never handed the exam: `fit` receives a domain's support and nothing else, `judge`
receives what was learned and one query. Data may be given as a function without arguments, which is
called when (and only when) a domain is used; nothing here calls it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evometa.errors import ConfigError, did_you_mean
from evometa.space import Candidate, Space

Runs = Literal["jax", "python", "command"]
REDUCTIONS = ("mean", "worst", "cvar")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Domain:
    """A world: `support`, all that inner training may see, and named `queries` that judge what was learned.

    Each is a pytree of arrays (JAX tasks), any object (Python tasks) or a path (command tasks), or a
    function without arguments that returns one. Usual query names: `home` (held out, same
    distribution) and `away` (shifted). `tags` describe the domain (language, family, width ...); `data` among them
    names what it is made of, where several domains are made of the same. `sealed`: for `test` alone, whatever
    split a run asks for.
    """

    name: str
    support: Any
    queries: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    sealed: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"domain: expected a name of letters, digits, '_', '-', '.', got {self.name!r}")
        if not self.queries:
            raise ConfigError(
                f"domain {self.name!r}: expected at least one query, got none. Add queries={{'away': ...}}"
            )


@dataclass(frozen=True)
class Split:
    """Which domains drive the search, choose between finished candidates, and stay sealed."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("train", "validation", "test"):
            object.__setattr__(self, role, tuple(getattr(self, role)))
        if not self.train:
            raise ConfigError("split: expected at least one train domain, got none")
        roles: dict[str, str] = {}
        for role in ("train", "validation", "test"):
            for name in getattr(self, role):
                if name in roles:
                    raise ConfigError(
                        f"split: domain {name!r} is in {roles[name]} and in {role}; a domain has one role"
                    )
                roles[name] = role

    def role(self, name: str) -> str | None:
        """`train`, `validation`, `test`, or None where the domain takes no part."""
        return next((r for r in ("train", "validation", "test") if name in getattr(self, r)), None)


@dataclass(frozen=True)
class Objective:
    """The query whose loss is minimized, and how the losses of several domains become one number.

    `mean`; `worst` (the largest); `cvar` (the mean of the worst `fraction` of domains, Rockafellar and
    Uryasev 2000). Replicates are averaged first. The support loss is a diagnostic, never an objective.
    """

    query: str = "away"
    reduction: str = "mean"
    fraction: float = 0.25

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ConfigError(
                f"objective: expected a reduction of {', '.join(REDUCTIONS)}, got {self.reduction!r}."
                f"{did_you_mean(self.reduction, REDUCTIONS)}"
            )
        if not 0.0 < self.fraction <= 1.0:
            raise ConfigError(f"objective: expected 0 < fraction <= 1, got {self.fraction}")

    @staticmethod
    def parse(text: str) -> Objective:
        """`away`, `away:worst` or `away:cvar:0.25`."""
        query, *rest = text.split(":")
        try:
            reduction = rest[0] if rest else "mean"
            return Objective(query, reduction, *[float(x) for x in rest[1:]])
        except (ValueError, TypeError):
            raise ConfigError(f"objective: expected QUERY[:REDUCTION[:FRACTION]], got {text!r}") from None

    def __str__(self) -> str:
        tail = {"mean": "", "worst": ":worst", "cvar": f":cvar:{self.fraction:g}"}
        return self.query + tail[self.reduction]


@dataclass(frozen=True)
class Task:
    """A space, domains, and the two functions that train and judge.

    `fit(key, candidate, support) -> learned` and `judge(key, learned, query) -> {"loss": number, ...}`;
    or, in step form, `init(key, candidate, support) -> learner`, `step(key, candidate, learner, support)
    -> learner` and `marks`, the step counts at which the learner is judged (the last one is the plain
    query name, earlier ones are `away@50`). A task has one form or the other.

    `runs="jax"`: traceable functions, vmapped and compiled; keys are jax keys. `runs="python"`: anything;
    the key is an int for `numpy.random.default_rng`, the candidate holds Python numbers and choices.
    `runs="command"`: `fit` and `judge` are argument lists run as processes (see `command_task`).

    `metrics` declares what a Python or command judge returns besides `loss`, `support_loss` and
    `inner_steps`. `time_limit` bounds one cell of a Python or command task, in seconds.
    `controls` names variants of the task for control arms of a study (`regularizer`, `oracle`, ...), each as
    the options of the task's factory that make it: `{"regularizer": {"genome": "regularizer"}}`.
    Several objectives make a multi-objective task.
    """

    name: str
    space: Space
    domains: tuple[Domain, ...]
    judge: Any
    split: Split
    baseline: Candidate
    fit: Any = None
    init: Callable[..., Any] | None = None
    step: Callable[..., Any] | None = None
    marks: tuple[int, ...] = ()
    objective: Objective | tuple[Objective, ...] = Objective()
    runs: Runs = "jax"
    replicates: int = 1
    metrics: tuple[str, ...] = ()
    time_limit: float | None = None
    black_box: bool = False  # one function that sees everything: nothing is held out by construction
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""  # where a reader finds it: module or file
    folder: str = ""  # where a command task's relative paths start; set by a run, empty for the current folder

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "marks", tuple(self.marks))
        _check_task(self)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives as a tuple, however many there are."""
        return (self.objective,) if isinstance(self.objective, Objective) else tuple(self.objective)

    @property
    def query_names(self) -> tuple[str, ...]:
        """Names of everything a learner is judged on, marks included, in cell order."""
        names = list(dict.fromkeys(name for domain in self.domains for name in domain.queries))
        early = [f"{name}@{mark}" for name in names for mark in self.marks[:-1]]
        return tuple(names + early)

    def domain(self, name: str) -> Domain:
        """The domain of that name; `ConfigError` where there is none."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        known = [domain.name for domain in self.domains]
        raise ConfigError(
            f"task {self.name!r} has no domain {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}"
        )

    def with_(self, **changes: Any) -> Task:
        """A copy with other fields."""
        return replace(self, **changes)


def leave_one_out(domains: Sequence[str], validation: Sequence[str] = ()) -> list[Split]:
    """One split per domain: that one is the test, `validation` stays as given, the rest is train."""
    free = [name for name in domains if name not in set(validation)]
    if len(free) < 2:
        raise ConfigError(f"leave_one_out: expected at least two domains outside validation, got {free}")
    return [Split(tuple(n for n in free if n != out), tuple(validation), (out,)) for out in free]


def default_split(names: Sequence[str]) -> Split:
    """Three fifths train, one fifth validation, one fifth test, by a hash of the names (never by position)."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held = max(1, len(order) // 5)
    if len(order) < 3:
        return Split(tuple(names))
    return Split(tuple(sorted(order[2 * held :])), tuple(sorted(order[:held])), tuple(sorted(order[held : 2 * held])))


class TaskBuilder:
    """A task whose functions are attached by decorators; see `task`. Calling `build()` finishes it."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def _attach(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name in self._fields:
            raise ConfigError(f"task {self._fields['name']!r}: {name} is given twice")
        self._fields[name] = function
        return function

    def fit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach `fit(key, candidate, support) -> learned`."""
        return self._attach("fit", function)

    def judge(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach `judge(key, learned, query) -> {"loss": ...}`."""
        return self._attach("judge", function)

    def init(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach `init(key, candidate, support) -> learner` (step form)."""
        return self._attach("init", function)

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach `step(key, candidate, learner, support) -> learner` (step form)."""
        return self._attach("step", function)

    def build(self) -> Task:
        """The finished task; `ConfigError` where something is missing."""
        if "judge" not in self._fields:
            raise ConfigError(
                f"task {self._fields['name']!r}: expected a judge function, got none. Decorate one with @task.judge"
            )
        known = list(Task.__dataclass_fields__)
        for name in self._fields:
            if name not in known:
                close = did_you_mean(name, known)
                raise ConfigError(
                    f"task {self._fields['name']!r} has no field {name!r}.{close} Its fields: {', '.join(known)}"
                )
        return Task(**self._fields)


def task(
    *,
    space: Space | Mapping[str, Any],
    domains: Sequence[Domain] | Mapping[str, Mapping[str, Any]],
    name: str = "task",
    baseline: Candidate | None = None,
    split: Split | None = None,
    objective: Objective | str | tuple[Objective, ...] | None = None,
    **fields: Any,
) -> TaskBuilder:
    """Begin a task the short way; attach `fit` and `judge` (or `init`, `step`, `judge`) by decorators.

    `domains` are `Domain` objects or `{"name": {"support": ..., "home": ..., "away": ...}}`. Defaults: the
    baseline is the middle of the space, the split comes from a hash of the domain names, the objective is
    the mean of `away` (or of the only query). Other fields are those of `Task`.
    """
    if not isinstance(space, Space):
        space = Space(space)
    if isinstance(domains, Mapping):
        domains = [_short_domain(key, value) for key, value in domains.items()]
    queries = list(dict.fromkeys(query for domain in domains for query in domain.queries))
    if objective is None:
        objective = Objective(queries[0] if len(queries) == 1 else "away")
    elif isinstance(objective, str):
        objective = Objective.parse(objective)
    return TaskBuilder(
        {
            "name": name,
            "space": space,
            "domains": tuple(domains),
            "baseline": space.decode_host(space.center) if baseline is None else baseline,
            "split": split or default_split([domain.name for domain in domains]),
            "objective": objective,
            **fields,
        }
    )


def objective(*, space: Space | Mapping[str, Any], name: str = "objective", **fields: Any) -> Callable[..., Task]:
    """Turn one black-box function `f(key, candidate) -> loss` (or a dict of metrics) into a task.

    The function sees everything, so nothing is held out by construction and every report says so.
    """

    def wrap(function: Callable[..., Any]) -> Task:
        def fit(key: Any, candidate: Candidate, support: Any) -> Candidate:
            del key, support
            return candidate

        def judge(key: Any, learned: Candidate, query: Any) -> Any:
            del query
            result = function(key, learned)
            return result if isinstance(result, Mapping) else {"loss": result}

        empty: Any = () if fields.get("runs", "jax") == "jax" else None
        world = Domain("everything", support=empty, queries={"seen": empty})
        options = {"split": Split(("everything",)), "objective": Objective("seen"), **fields}
        builder = task(space=space, domains=[world], name=name, black_box=True, **options)
        builder.fit(fit)
        builder.judge(judge)
        return builder.build()

    return wrap


def command_task(*, fit: Sequence[str], judge: Sequence[str], time_limit: float | None = 3600.0, **fields: Any) -> Task:
    """A task whose training and judging are commands; `fields` are those of `task`.

    `fit` is run with one JSON object on standard input, `{"candidate", "key", "support", "learned"}`:
    `support` is the domain's support (a path, or any JSON value), `learned` an empty folder to leave
    things in. `judge` gets `{"key", "learned", "query"}` and prints its metrics as one JSON object on the
    last line of standard output. Relative paths, in the commands and in the data, are taken from the folder
    where the run was started.
    """
    for role, command in (("fit", fit), ("judge", judge)):
        if isinstance(command, str):  # a sequence too: of letters
            raise ConfigError(
                f"command_task: {role} expected a list of words such as ['python', 'train.py'],"
                f" got the string {command!r}"
            )
    builder = task(runs="command", time_limit=time_limit, **fields)
    builder.fit(list(fit))  # type: ignore[arg-type]
    builder.judge(list(judge))  # type: ignore[arg-type]
    return builder.build()


def _short_domain(name: str, parts: Mapping[str, Any]) -> Domain:
    if "support" not in parts:
        raise ConfigError(f"domain {name!r}: expected a 'support' entry, got {sorted(parts)}")
    queries = {key: value for key, value in parts.items() if key not in ("support", "tags")}
    return Domain(name, parts["support"], queries, parts.get("tags", {}))


def _check_task(task: Task) -> None:
    where = f"task {task.name!r}"
    if not NAME.fullmatch(task.name):
        raise ConfigError(f"task: expected a name of letters, digits, '_', '-', '.', got {task.name!r}")
    if not isinstance(task.space, Space):
        raise ConfigError(f"{where}: expected a Space, got {type(task.space).__name__}. Write space=Space({{...}})")
    stepwise = task.init is not None or task.step is not None or bool(task.marks)
    if (task.fit is not None) == stepwise:
        raise ConfigError(
            f"{where}: expected either fit, or init, step and marks; got {'both' if stepwise else 'neither'}"
        )
    if stepwise and (task.init is None or task.step is None or not task.marks):
        raise ConfigError(f"{where}: the step form needs init, step and marks=(...) together")
    if stepwise and (task.marks[0] < 1 or list(task.marks) != sorted(set(task.marks))):
        raise ConfigError(f"{where}: expected marks to be increasing step counts >= 1, got {task.marks}")
    if task.replicates < 1:
        raise ConfigError(f"{where}: expected replicates >= 1, got {task.replicates}")
    names = [domain.name for domain in task.domains]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two domains have the same name: {names}")
    for name in (*task.split.train, *task.split.validation, *task.split.test):
        if task.domain(name).sealed and name not in task.split.test:
            raise ConfigError(f"{where}: domain {name!r} is sealed: it can be a test domain and nothing else")
    for objective in task.objectives:
        if "@" in objective.query and objective.query not in task.query_names:
            known = task.query_names
            close = did_you_mean(objective.query, known)
            raise ConfigError(f"{where} has no query {objective.query!r}.{close} It has {', '.join(known)}")
        for name in (*task.split.train, *task.split.validation, *task.split.test):
            queries = task.domain(name).queries
            if objective.query.split("@")[0] not in queries:
                raise ConfigError(
                    f"{where}: the objective's query {objective.query!r} is missing in domain {name!r}, which has"
                    f" {', '.join(queries)}.{did_you_mean(objective.query, queries)}"
                    f" Try --objective {next(iter(queries))}"
                )
    task.space.encode(task.baseline)

"""Everything that a run computes with, built from its spec: task, strategy, data, plan, loop.

The same spec (and plan) always builds the same session; what it computes is then a function of the
generation alone. Runs, resumes, forks, replays and unsealing all start here.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from evometa.backends.inline import HostCells
from evometa.contract import Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.evaluate import data as datasets
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan, derive
from evometa.judging import Judge
from evometa.keys import Stream, stream_key
from evometa.levels import leveled, start_genome
from evometa.loop import CompiledLoop, HostLoop
from evometa.machine import numerics, spare_threads
from evometa.names import code_digest, load_strategy, load_task, strategy_digest
from evometa.spec import Spec, canonical, digest
from evometa.spec_task import task_from_table
from evometa.types import Cell, State, Strategy

# Libraries whose version can change a number. A resume under another one is refused.
PINNED = ("jax", "jaxlib", "evosax", "flax", "optax", "optuna", "numpy", "scipy", "evometa")


@dataclass
class Session:
    """One spec, ready to compute."""

    spec: Spec
    task: Task
    strategy: Strategy
    plan: Plan
    train: tuple[Loaded, ...]
    backend: CompiledCells | HostCells
    loop: CompiledLoop | HostLoop
    identity: dict[str, Any] = field(default_factory=dict)  # what run.json says and a resume compares
    _validation: Judge | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The columns of this run's losses."""
        return self.backend.cells

    def validation(self) -> Judge:
        """Judges on the validation domains (on the train domains where there are none); made once."""
        if self._validation is None:
            names = self.task.split.validation
            loaded = datasets.load(self.task, names) if names else self.train
            self._validation = Judge(self.task, loaded, self.plan)
        return self._validation

    @property
    def compiled(self) -> bool:
        """Whether whole blocks of generations run as one program."""
        return isinstance(self.loop, CompiledLoop)

    def initial_state(self, prior: Any = None) -> State:
        """The strategy's state before generation 0; `prior` is a genome, by default what the spec says."""
        if prior is None and self.spec.start != "center":
            prior = jnp.asarray(start_genome(self.spec, self.task))
        return self.strategy.init(stream_key(self.spec.seed, 0, Stream.INIT), prior)

    def retelling(self) -> HostLoop:
        """A loop that can tell stored generations again; the same functions, compiled apart."""
        if isinstance(self.loop, HostLoop):
            return self.loop
        objectives, seed, placebo = self.task.objectives, self.spec.seed, self.spec.placebo
        return HostLoop(self.strategy, _no_evaluation, self.cells, objectives, seed, placebo)


def prepare(spec: Spec, *, plan: Plan | None = None, base: Path = Path()) -> Session:
    """Build the session of a spec: load the train domains, derive the plan where none is given.

    Raises `NotFound` and `ConfigError` for what the spec gets wrong, `ResumeMismatch` where this process
    cannot give the plan.
    """
    spare_threads()
    task = task_of(spec, base)
    strategy = strategy_of(spec, task, base)
    if len(task.objectives) > strategy.objectives:
        raise ConfigError(
            f"strategy {spec.strategy!r} weighs {strategy.objectives} objective(s), the task has"
            f" {len(task.objectives)}."
            " Use nsga2 with strategy_options.objectives, or one --objective"
        )
    train = datasets.load(task, task.split.train)
    backend: CompiledCells | HostCells
    if task.runs == "jax":
        backend = CompiledCells(task, train, Plan(), task.replicates)
        plan = plan or _derive(spec, backend, strategy)
        plan.require()
        backend.replan(plan)
    else:
        plan = plan or Plan(block=spec.plan.block or 1)
        backend = HostCells(task, train, task.replicates)
    session = Session(spec, task, strategy, plan, train, backend, _loop(spec, task, strategy, backend, plan))
    session.identity = _identity(session, base)
    return session


def reseeded(session: Session, spec: Spec) -> Session:
    """The session of a spec that differs from another's in its seed, name and length only: nothing is traced again.

    Raises `ValueError` for any other spec.
    """
    ours, theirs = spec.identity(), session.spec.identity()
    if {**ours, "seed": 0} != {**theirs, "seed": 0}:
        raise ValueError("reseeded: the specs differ in more than their seed")
    identity = {**session.identity, "seed": spec.seed, "spec": {**session.identity["spec"], "seed": spec.seed}}
    return replace(session, spec=spec, loop=session.loop.with_seed(spec.seed), identity=identity)


def strategy_of(spec: Spec, task: Task, base: Path) -> Strategy:
    """The strategy that searches a spec's task."""
    if spec.levels == 0:  # no meta level: the baseline is all there is
        return load_strategy("static", task.space, None)
    return load_strategy(spec.strategy, task.space, spec.population, spec.strategy_options, base)


def task_of(spec: Spec, base: Path) -> Task:
    """The task that a spec searches: its split, objective, held columns and levels applied; loads no data."""
    task = load_task(spec.task, spec.task_options, base) if isinstance(spec.task, str) else task_from_table(spec.task)
    if task.runs == "command":
        # Where the run was started, as far as that folder is still there: a project may have been moved.
        task = task.with_(folder=str((base if base.is_dir() else Path()).absolute()))
    if spec.split is not None:
        task = task.with_(split=Split(tuple(spec.split.train), tuple(spec.split.validation), tuple(spec.split.test)))
    if spec.objective is not None:
        texts = [spec.objective] if isinstance(spec.objective, str) else spec.objective
        objectives = tuple(Objective.parse(text) for text in texts)
        known = task.query_names
        for objective in objectives:
            if objective.query not in known:
                close = did_you_mean(objective.query, known)
                raise ConfigError(
                    f"task {task.name!r} has no query {objective.query!r}.{close} It has {', '.join(known)}"
                )
        task = task.with_(objective=objectives[0] if len(objectives) == 1 else objectives)
    if spec.replicates is not None:
        task = task.with_(replicates=spec.replicates)
    if spec.fixed:
        task = task.with_(space=task.space.hold(dict(sorted(spec.fixed.items()))))  # in the order of run.json
    return leveled(task, spec, base)


def _derive(spec: Spec, backend: CompiledCells, strategy: Strategy) -> Plan:
    flops, live = backend.cost()
    row_bytes = 8.0 * (backend.task.space.dimension + len(backend.cells) * (2 + len(backend.metrics)))
    asked = spec.plan
    devices = asked.devices or len(jax.devices())
    plan = derive(
        flops=flops,
        live_bytes=live,
        population=strategy.population,
        row_bytes=row_bytes,
        devices=devices,
        platform=jax.default_backend(),
    )
    # A host loop leaves its block at a kill: every generation is a block of its own there.
    block = plan.block if _compiles(backend.task, strategy) else 1
    return Plan(asked.chunk or plan.chunk, asked.devices or plan.devices, asked.block or block, plan.platform)


def _compiles(task: Task, strategy: Strategy) -> bool:
    """Whether whole blocks of generations can be one program."""
    return task.runs == "jax" and strategy.traceable and not task.space.static


def _loop(
    spec: Spec, task: Task, strategy: Strategy, backend: CompiledCells | HostCells, plan: Plan
) -> CompiledLoop | HostLoop:
    cells, objectives, seed, placebo = backend.cells, task.objectives, spec.seed, spec.placebo
    if isinstance(backend, HostCells):
        return HostLoop(strategy, backend.host, cells, objectives, seed, placebo)
    if _compiles(task, strategy):
        return CompiledLoop(strategy, backend.evaluate, backend.data, cells, objectives, seed, plan.block, placebo)
    compiled = backend

    def evaluate(_: int, key: Any, genomes: Any) -> Any:
        return compiled.host(key, genomes), {}

    return HostLoop(strategy, evaluate, cells, objectives, seed, placebo)


def _no_evaluation(*_: Any) -> Any:
    raise AssertionError("this loop only tells what is stored")


def _identity(session: Session, base: Path) -> dict[str, Any]:
    """What makes this run this run, as JSON: written to run.json, compared by a resume."""
    task = session.task
    identity = {
        "spec": session.spec.identity(),
        "seed": session.spec.seed,
        "plan": session.plan.to_json(),
        "strategy": {
            "name": session.strategy.name,
            "population": session.strategy.population,
            "operators": list(session.strategy.operators),
            "code": strategy_digest(session.spec.strategy, base),
        },
        "task": {
            "name": task.name,
            "source": Path(task.source).name if task.source.endswith(".py") else task.source,
            "code": code_digest(task),
            "space": task.space.to_json(),
            "objectives": [str(objective) for objective in task.objectives],
            "baseline": [float(x) for x in task.space.encode(task.baseline)],
            "split": {"train": task.split.train, "validation": task.split.validation, "test": task.split.test},
            "replicates": task.replicates,
            "black_box": task.black_box,
            "runs": task.runs,
        },
        "data": datasets.digest(session.train, Path(task.folder)),
        "versions": {
            **{name: importlib.metadata.version(name) for name in PINNED},
            "python": platform.python_version(),
        },
        "machine": numerics(),
    }
    return json.loads(canonical(identity))


def identity_digest(identity: dict[str, Any]) -> str:
    """One word for an identity; checkpoints carry it. Python's own version does not count."""
    versions = {name: version for name, version in identity["versions"].items() if name != "python"}
    return digest({**identity, "versions": versions})

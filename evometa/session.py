"""Everything that a run computes with, built from its spec: task, strategy, data, plan, loop.

The same spec (and plan) always builds the same session; what it computes is then a function of the
generation alone. Runs, resumes, forks, replays and unsealing all start here.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from evometa.backends.chunks import ChunkedCells
from evometa.backends.inline import HostCells
from evometa.backends.pool import Diary, Pool
from evometa.contract import Task
from evometa.errors import ConfigError
from evometa.evaluate import data as datasets
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan, derive
from evometa.evaluate.staged import Hurdle, StagedCells
from evometa.judging import Judge
from evometa.keys import Stream, stream_key
from evometa.levels import start_genome
from evometa.loop import CompiledLoop, HostLoop
from evometa.machine import numerics, spare_threads
from evometa.names import code_digest, load_strategy, strategy_digest
from evometa.placement import Placement, limits_of, open_engine, order_of, place
from evometa.spec import Spec, canonical, digest
from evometa.spec_task import task_of
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
    backend: CompiledCells | StagedCells | HostCells
    loop: CompiledLoop | HostLoop
    identity: dict[str, Any] = field(default_factory=dict)  # what run.json says and a resume compares
    placement: Placement = Placement("inline")
    base: Path = Path()
    chunks: ChunkedCells | None = None  # where a pool computes a JAX task's cells
    _validation: Judge | None = None
    _pools: dict[int | None, Pool] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The columns of this run's losses."""
        return self.backend.cells

    def validation(self) -> Judge:
        """Judges on the validation domains (on the train domains where there are none); made once."""
        if self._validation is None:
            names = self.task.split.validation
            loaded = datasets.load(self.task, names) if names else self.train
            self._validation = self.judge(loaded)
        return self._validation

    def judge(self, loaded: Sequence[Loaded], opening: int | None = None) -> Judge:
        """Judges on loaded domains, by the session's workers where those compute Python and command tasks.

        `opening`: the number of the opening that test domains were loaded for; the workers' permission too.
        """
        pool = self.pool(opening) if isinstance(self.backend, HostCells) else None
        return Judge(self.task, loaded, self.plan, pool, self.spec.limits.output_mb)

    def pool(self, opening: int | None = None) -> Pool | None:
        """The workers of this session (with an opening: others, that may load test domains); None inline."""
        if self.placement.backend == "inline":
            return None
        if opening not in self._pools:

            def engine() -> Any:
                order = order_of(self.spec, self.task, self.base, self.plan, self.identity, opening)
                return open_engine(self.placement, order, self.task.runs, lambda text: made.note(text))

            scope = identity_digest(self.identity) if self.identity else digest(self.spec.identity())
            made = self._pools[opening] = Pool(engine, scope, limits_of(self.spec, self.task))
        return self._pools[opening]

    def keep_in(self, journal: Diary) -> None:
        """Have every finished unit written to a journal, as far as it is computed unit by unit."""
        if self.chunks is not None:
            self.chunks.journal = journal
        elif isinstance(self.backend, HostCells):
            self.backend.journal = journal

    def close(self) -> dict[str, int]:
        """End the session's workers; should they be needed again, new ones start.

        Returns how many were lost and replaced on the way, by what is known of their end.
        """
        lost: Counter[str] = Counter()
        for pool in self._pools.values():
            lost += Counter(pool.lost)
            pool.close()
        return dict(lost)

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
    placement = place(spec, task)
    strategy = strategy_of(spec, task, base)
    if len(task.objectives) > strategy.objectives:
        raise ConfigError(
            f"strategy {spec.strategy!r} weighs {strategy.objectives} objective(s), the task has"
            f" {len(task.objectives)}."
            " Use nsga2 with strategy_options.objectives, or one --objective"
        )
    train = datasets.load(task, task.split.train)
    backend: CompiledCells | StagedCells | HostCells
    hurdle = None if spec.hurdle is None else Hurdle(**spec.hurdle.model_dump())
    if task.runs == "jax":
        made = (task, train, Plan(), task.replicates)
        backend = CompiledCells(*made) if hurdle is None else StagedCells(*made, hurdle)
        lone = spec.levels > 1 and placement.backend != "inline"
        plan = plan or _derive(spec, backend, strategy, 1 if lone else len(jax.devices()))
        if lone and plan.devices > 1:
            raise ConfigError(
                f"plan.devices: a compiled search of searches has other last bits on {plan.devices} devices than on"
                " one, and workers compute on one. Go on inline, or start it anew with: --set plan.devices=1"
            )
        plan.require()
        backend.replan(plan)
    else:
        plan = plan or Plan(block=spec.plan.block or 1)
        backend = HostCells(task, train, task.replicates, output_mb=spec.limits.output_mb, hurdle=hurdle)
    loop = _loop(spec, task, strategy, backend, plan)
    session = Session(spec, task, strategy, plan, train, backend, loop, placement=placement, base=base.absolute())
    session.identity = _identity(session, base)
    if (pool := session.pool()) is not None:
        if isinstance(backend, HostCells):
            backend.pool = pool
        else:
            session.chunks = ChunkedCells(backend, pool)
            cells, objectives = backend.cells, task.objectives
            session.loop = HostLoop(strategy, session.chunks.host, cells, objectives, spec.seed, spec.placebo)
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


def _derive(spec: Spec, backend: CompiledCells | StagedCells, strategy: Strategy, most: int) -> Plan:
    flops, live = backend.cost()
    row_bytes = 8.0 * (backend.task.space.dimension + len(backend.cells) * (2 + len(backend.metrics)))
    asked = spec.plan
    devices = asked.devices or most
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
    spec: Spec, task: Task, strategy: Strategy, backend: CompiledCells | StagedCells | HostCells, plan: Plan
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

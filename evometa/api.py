"""The front door for Python: the same verbs as the command line, and an ask / tell loop of one's own."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from evometa import champion, driver, folder, trust
from evometa import unseal as unsealing
from evometa.archives import mirror
from evometa.archives.place import called, local
from evometa.archives.read import Archive
from evometa.contract import Task, TaskBuilder
from evometa.deployment import deployed_spec
from evometa.driver import Unwatched, Watch
from evometa.errors import ResumeMismatch, UsageError
from evometa.evaluate.plan import Plan
from evometa.keys import Stream, stream_key
from evometa.names import load_strategy
from evometa.placement import places
from evometa.session import Session, prepare
from evometa.space import Space
from evometa.spec import Spec, build
from evometa.types import Failure, Scores, Strategy


class Run:
    """A run on disk: `evometa.open("runs/x")`. In a notebook it shows itself as a small table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = folder.read_record(path)
        self.archive = Archive(path)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def generations(self) -> int:
        """How many generations are on disk."""
        return self.archive.generations()

    @property
    def champion(self) -> champion.Champion | None:
        """What the run recommends (see `Champion`); None before it was chosen."""
        return champion.last(self.path)

    @property
    def params(self) -> dict[str, Any]:
        """The champion as the candidate that a task receives: named numbers and choices."""
        best = self.champion
        if best is None:
            raise UsageError(f"{self.name} has no champion yet. Finish it first with: evometa resume {self.path}")
        return self.space.decode_host(best.genome)

    @property
    def space(self) -> Space:
        """The space that was searched."""
        return Space.from_json(self.record["task"]["space"])

    def lineage(self, columns: list[str] | None = None) -> Any:
        """Every candidate ever scored, as an Arrow table (`.to_pandas()`, `polars.from_arrow`, ...)."""
        return self.archive.table(columns)

    def top(self, k: int = 10) -> list[dict[str, Any]]:
        """The k rows of lowest fitness."""
        return self.archive.top(k)

    def ancestry(self, generation: int, index: int, depth: int | None = None) -> dict[str, list[Any]]:
        """Nodes and edges of a candidate's ancestry."""
        return self.archive.ancestry(generation, index, depth)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of one SELECT over the views lineage, scores and judgements."""
        from evometa.archives.query import query

        return query(self.path, sql)

    def unseal(self, seeds: int = unsealing.FEWEST_SEEDS) -> dict[str, Any]:
        """Open the test domains for the champion and record it; see `evometa/unseal.py` for what comes back."""
        with folder.locked(self.path):
            return unsealing.unseal(self.path, reopen(self.path), seeds)

    def __repr__(self) -> str:
        return f"Run({called(self.path)!r}, {self.generations} generations)"

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table>{rows}</table>"

    def summary(self) -> dict[str, Any]:
        """What the run is and how far it came, as a small table's rows."""
        task, best = self.record["task"], self.champion
        rows: dict[str, Any] = {
            "run": self.name,
            "task": f"{task['name']} ({', '.join(task['objectives'])})",
            "strategy": f"{self.record['strategy']['name']}, population {self.record['strategy']['population']}",
            "generations": f"{self.generations} of {folder.target(self.path)}",
        }
        if best is not None:
            who = (
                f"{best.generation}:{best.index}"
                if best.index is not None
                else f"recommended after generation {best.generation}"
            )
            rows["champion"] = who
            rows["validation"] = f"{best.validation:.4f} (baseline {best.baseline:.4f})"
        if task["black_box"]:
            rows["note"] = "one function: nothing held out by construction"
        return rows


def run(
    task: str | Task | TaskBuilder,
    *,
    strategy: str = "cma_es",
    generations: int = 40,
    population: int | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    name: str | None = None,
    watch: Watch | None = None,
    **spec: Any,
) -> Run:
    """Start a run and carry it to the end. `task` is a task, or anything that `evometa run` accepts.

    Other keywords are those of the spec (`objective`, `task_options`, `strategy_options`, `plan`, `limits`, ...);
    `backend`, `workers` and `gpus_per_worker` say where it is computed, which changes nothing of what comes out.
    A task object is kept in memory only: give a file or a name where the run is to be resumed elsewhere.
    """
    made = build(
        {
            "task": task if isinstance(task, str) else _reference(task),
            "strategy": strategy,
            "generations": generations,
            "population": population,
            "seed": seed,
            "name": name,
            **spec,
        }
    )
    return begin(made, local(out), watch=watch)


def begin(
    spec: Spec,
    out: Path,
    *,
    watch: Watch | None = None,
    fork: str | None = None,
    plan: Plan | None = None,
    session: Session | None = None,
) -> Run:
    """Start the run of a checked spec; `fork` is `RUN@GENERATION`, `plan` one to use instead of the derived.

    `session`: that spec's own, where it is made already (see `session.reseeded`).
    """
    mirror.reach(out)
    watch = watch or Unwatched()
    session = session or prepare(spec, plan=plan)
    forked, state = (None, None) if fork is None else _fork(fork, out, session)
    path = driver.start(session, out, forked=forked)
    with folder.locked(path):
        digest = hashlib.sha256((path / folder.RECORD).read_bytes()).hexdigest()
        origin = {"from": forked} if forked else {}
        where = session.placement.said()
        driver.record_event(path, "started", generations=spec.generations, run_json_sha256=digest, **origin, **where)
        return _finish(path, session, spec.generations, watch, None if forked is None else lambda: state)


def resume(path: str | Path, *, generations: int | None = None, watch: Watch | None = None, **where: Any) -> Run:
    """Go on with a run, to the number of generations that it was to have, or to `generations` in all.

    `where`: `backend`, `workers`, `gpus_per_worker`, for a run that goes on elsewhere than it was computed last.
    """
    path = folder.find(path)
    watch = watch or Unwatched()
    with folder.locked(path):
        session = reopen(path, where)
        until, done = folder.target(path), Archive(path).generations()
        if generations is not None and generations > until:
            driver.record_event(path, "extended", generations=generations)
            until = generations
        elif generations is not None and generations < done:
            raise UsageError(
                f"{path.name} has {done} generations already; expected --generations above that, got {generations}"
            )
        elif generations is not None:
            until = generations
        driver.record_event(path, "resumed", generation=done, until=until, **session.placement.said())
        forked = bool(folder.read_record(path).get("from"))
        return _finish(path, session, until, watch, (lambda: start_state(path, session)) if forked else None)


def deploy(
    path: str | Path,
    *,
    generations: int | None = None,
    population: int | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run the level below a nested run with its champion's settings (see `deployment.deployed_spec`), beside it."""
    path = folder.find(path)
    spec = deployed_spec(path, generations=generations, population=population)
    return begin(spec.model_copy(update={"name": name or spec.name}), local(out or path.parent), watch=watch)


def open(path: str | Path) -> Run:
    """A run on disk, by path or by its name in `runs/`."""
    return Run(folder.find(path))


def reopen(path: Path, where: Mapping[str, Any] | None = None) -> Session:
    """The session of a run on disk, exactly as it was. Raises `ResumeMismatch` where something changed.

    It computes where the run was computed last, or as `where` says (see `resume`).
    """
    record = folder.read_record(path)
    trust.require(path, record)
    session = _parent_session(path, record, places(path, where or {}))
    folder.compare(record, session.identity)
    return session


def _finish(path: Path, session: Session, until: int, watch: Watch, start: Callable[[], Any] | None) -> Run:
    try:
        unsealing.enter_search(path, session)
        state = driver.advance(path, session, until, watch, start)
        mirror.complete(path)
        best = champion.last(path)
        if best is None or best.generations != until:
            watch.note("choosing the champion on the validation domains")
            champion.choose(path, session, state, until)
    finally:
        lost = session.close()
    if lost:
        driver.record_event(path, "workers_lost", lost=lost)
    return Run(path)


def _reference(task: Task | TaskBuilder) -> str:
    """A name under which `load_task` finds an object of this process again."""
    built = task.build() if isinstance(task, TaskBuilder) else task
    module = sys.modules.setdefault("evometa_in_memory", type(sys)("evometa_in_memory"))
    attribute = f"task_{built.name}"
    setattr(module, attribute, built)
    return f"evometa_in_memory:{attribute}"


def _fork(reference: str, out: Path, session: Session) -> tuple[dict[str, Any], Any]:
    """What run.json says of a fork's origin, and the state that it starts from.

    With the parent's strategy, the fork goes on with the parent's own state and counts on from its generation
    (`first`); with another, it begins at the parent's recommendation and counts from 0.
    """
    name, at, number = reference.rpartition("@")
    if not at or not number.isdigit():
        raise UsageError(f"--from expected RUN@GENERATION, got {reference!r}. Try: --from runs/ladder@12")
    path, generation = folder.find(name, out), int(number)
    parent, there = folder.read_record(path), Archive(path).generations()
    if generation > there:
        raise UsageError(
            f"--from: {path.name} has {there} generations, so a fork can start at 0 .. {there}, got {generation}"
        )
    first = generation if _same_strategy(parent, session) else 0
    if session.spec.generations <= first:
        raise UsageError(
            f"--from: a fork at generation {generation} counts on from there;"
            f" expected --generations above {generation}, got {session.spec.generations}"
        )
    forked = {"run": path.name, "path": called(path), "generation": generation, "first": first}
    return forked, _forked_state(path, generation, session)


def _same_strategy(parent: Mapping[str, Any], session: Session) -> bool:
    return parent["strategy"] == session.identity["strategy"] and all(
        parent["spec"][key] == session.identity["spec"][key] for key in ("strategy", "strategy_options", "population")
    )


def _forked_state(path: Path, generation: int, session: Session) -> Any:
    """The parent's own state where the strategy is the same, else a new one that starts at its recommendation."""
    parent = folder.read_record(path)
    if parent["task"]["space"] != session.identity["task"]["space"]:
        raise ResumeMismatch(
            f"--from: {path.name} searched another space, so its genomes mean nothing here. Start a new run"
        )
    origin = _parent_session(path, parent)
    state = driver.state_at(path, origin, generation, start_state(path, origin))
    return state if _same_strategy(parent, session) else session.initial_state(origin.strategy.recommend(state))


def _parent_session(path: Path, record: Mapping[str, Any], where: Mapping[str, Any] | None = None) -> Session:
    trust.require(path, record, same=False)
    spec = build({**record["spec"], "generations": record["generations"], "name": path.name, **(where or {})})
    return prepare(spec, plan=Plan.of_record(record["plan"], path), base=Path(record["folder"]))


def start_state(path: Path, session: Session) -> Any:
    """What a forked run started from (told again from its parent's rows); None for an ordinary run."""
    origin = folder.read_record(path).get("from")
    if not origin:
        return None
    return _forked_state(folder.parent(path, origin), origin["generation"], session)


# --- an ask / tell loop of one's own -----------------------------------------------------------------


def strategy(name: str, space: Space | Mapping[str, Any], *, population: int | None = None, **options: Any) -> Strategy:
    """A strategy by name: pure functions `init, ask, tell, recommend` (see `Strategy`)."""
    space = space if isinstance(space, Space) else Space(space)
    return load_strategy(name, space, population, options)


class Asked(NamedTuple):
    """One generation of a `search`: candidates to score, in order."""

    generation: int
    candidates: list[dict[str, Any]]
    genomes: np.ndarray  # [P, D] float32


class search:  # lower case: it reads as a verb, `evometa.search(space)`
    """Keep your own loop: `s = evometa.search(space)`, `asked = s.ask()`, `s.tell(losses)`, `s.best()`.

    Losses are lower-is-better floats, one per candidate; NaN or infinity marks a failure. Nothing is held
    out and nothing is recorded: what you score on is up to you.
    """

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        strategy: str = "cma_es",
        *,
        population: int | None = None,
        seed: int = 0,
        start: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.space = space if isinstance(space, Space) else Space(space)
        self.strategy = load_strategy(strategy, self.space, population, options)
        self.seed, self.generation = seed, 0
        prior: Any = None if start is None else self.space.encode(start)
        self.state = self.strategy.init(stream_key(seed, 0, Stream.INIT), prior)
        self._genomes: Any = None

    def ask(self) -> Asked:
        """The candidates of the next generation, as the nested dicts of the space."""
        if self._genomes is not None:
            raise UsageError(f"expected tell() for generation {self.generation} before the next ask()")
        key = stream_key(self.seed, self.generation, Stream.ASK)
        self._genomes, _, self.state = self.strategy.ask(key, self.state)
        genomes = np.asarray(self._genomes)
        return Asked(self.generation, [self.space.decode_host(genome) for genome in genomes], genomes)

    def tell(self, losses: Any) -> None:
        """The losses of the candidates that `ask` returned, in their order: `[P]`."""
        if self._genomes is None:
            raise UsageError("expected ask() before tell()")
        fitness: Any = np.asarray(losses, np.float32)
        if fitness.shape != (len(self._genomes),):
            raise UsageError(f"tell expected {len(self._genomes)} losses (shape [P]), got shape {fitness.shape}")
        ok = np.isfinite(fitness)
        scores = Scores(
            loss=fitness[:, None],
            evaluated=jnp.ones((len(fitness), 1), bool),
            fitness=jnp.where(ok, fitness, jnp.inf).astype(jnp.float32)[:, None],
            descriptor=jnp.zeros((len(fitness), 0), jnp.float32),
            failure=jnp.where(ok, jnp.int8(Failure.OK), jnp.int8(Failure.NONFINITE)),
            metrics={},
        )
        key = stream_key(self.seed, self.generation, Stream.TELL)
        self.state = self.strategy.tell(key, self.state, self._genomes, scores)
        self._genomes, self.generation = None, self.generation + 1

    def best(self) -> dict[str, Any]:
        """What the strategy recommends so far (a mean or a likely-best, not the luckiest)."""
        return self.space.decode_host(np.asarray(self.strategy.recommend(self.state)))

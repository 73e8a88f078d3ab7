"""What a run is asked to do: the spec, from TOML, from the command line or from Python, checked in one place."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from evometa.errors import ConfigError, NotFound, UsageError, did_you_mean


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class PlanSpec(_Part):
    """Overrides of the derived plan; None means derived."""

    chunk: int | None = Field(None, ge=1)
    devices: int | None = Field(None, ge=1)
    block: int | None = Field(None, ge=1)


class SplitSpec(_Part):
    """Overrides of the task's split."""

    train: list[str]
    validation: list[str] = []
    test: list[str] = []


Number = Annotated[float, Strict()]


class ColumnTable(_Part):
    """A column of a command task's space; what fits together is for `Space` to say."""

    kind: Literal["real", "log", "integer", "categorical", "weights"]
    low: Number = 0.0
    high: Number = 1.0
    choices: list[Any] = []
    shape: list[int] = []
    scale: Number = 1.0
    static: bool = False


def _column(kind: Literal["real", "log"], low: float, high: float) -> ColumnTable:
    return ColumnTable(kind=kind, low=low, high=high)


class NestSpec(_Part):
    """A search below the top level: run anew for each candidate of the level above.

    `tunes`: their strategy's hyperparameters that the level above moves, as columns; `prior`: it also moves the
    genome that they start from; `slots`: columns of the task that only level 2 moves. `judged_on`: judge on the same
    domains by this query, which the searches below do not see, instead of on other domains (two levels only).
    """

    strategy: str = "cma_es"
    strategy_options: dict[str, Any] = {}
    population: int = Field(8, ge=1)
    generations: int = Field(8, ge=1)
    tunes: dict[str, ColumnTable] = Field(default_factory=lambda: {"sigma": _column("log", 0.02, 1.0)})
    prior: bool = True
    slots: list[str] = []
    judged_on: str | None = None


class LimitsSpec(_Part):
    """What one training with its judgements may use (JAX tasks: one chunk of candidates); None is no limit.

    `seconds`: wall time, by default the task's `time_limit`. `memory_mb`: resident memory of a worker and all that it
    starts. `output_mb`: what it writes to its standard output and error. The last two need worker processes.
    """

    seconds: float | None = Field(None, gt=0)
    memory_mb: float | None = Field(None, gt=0)
    output_mb: float | None = Field(None, gt=0)


class HurdleSpec(_Part):
    """A cheap hurdle first: who fails it is not judged on the rest; see evaluate/staged.py.

    `domains`: the first so many of the train domains; `keep`: the share of a generation that passes; `below`: and only
    with a loss below this.
    """

    domains: int = Field(1, ge=1)
    keep: float = Field(0.5, gt=0, le=1)
    below: float | None = None


class ChampionSpec(_Part):
    """How the champion is chosen: the recommendation and the `observed` best, `replicates` fresh seeds each."""

    observed: int = Field(4, ge=0)
    replicates: int = Field(5, ge=1)


def _words(value: Any) -> Any:
    # A string is a sequence too: of letters.
    if isinstance(value, str):
        raise PydanticCustomError("words", "expected a list of words such as ['python', 'train.py']")
    return value


Words = Annotated[list[str], Field(min_length=1), BeforeValidator(_words)]


class TaskTable(_Part):
    """A command task, written into the spec: the fields of `evometa.Task` that have a meaning there."""

    name: str = "command"
    fit: Words
    judge: Words
    space: dict[str, ColumnTable] = Field(min_length=1)
    domains: dict[str, dict[str, Any]] = Field(min_length=1)
    baseline: dict[str, Any] | None = None
    split: SplitSpec | None = None
    objective: str | None = None
    replicates: int = Field(1, ge=1)
    metrics: list[str] = []
    time_limit: float | None = Field(3600.0, gt=0)
    black_box: bool = False


def _start(value: Any) -> Any:
    if isinstance(value, str) and value not in ("baseline", "center"):
        raise PydanticCustomError("start", 'expected "baseline", "center" or a genome (a list of numbers)')
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


PLACES = ("backend", "workers", "gpus_per_worker")  # where a run is computed: no part of what it is


class Spec(_Part):
    """Everything that decides a run's numbers, except how many generations it is carried to, and where it runs."""

    task: str | dict[str, Any]
    task_options: dict[str, Any] = {}
    strategy: str = "cma_es"
    strategy_options: dict[str, Any] = {}
    population: int | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    objective: str | list[str] | None = None
    split: SplitSpec | None = None
    replicates: int | None = Field(None, ge=1)
    start: Annotated[str | list[float], AfterValidator(_start)] = "baseline"
    fixed: dict[str, Any] = {}
    placebo: bool | Literal["noise"] = False  # true: told permuted scores; "noise": told random numbers
    levels: int = Field(1, ge=0, le=4)
    nest: Annotated[list[NestSpec], Field(min_length=1), BeforeValidator(_listed)] = Field(
        default_factory=lambda: [NestSpec.model_validate({})]
    )
    hurdle: HurdleSpec | None = None
    champion: ChampionSpec = Field(default_factory=lambda: ChampionSpec.model_validate({}))
    limits: LimitsSpec = Field(default_factory=lambda: LimitsSpec.model_validate({}))
    backend: Literal["inline", "processes", "ray"] | None = None  # None: see placement.py
    workers: int | None = Field(None, ge=1)
    gpus_per_worker: float | None = Field(None, ge=0)
    plan: PlanSpec = Field(default_factory=lambda: PlanSpec.model_validate({}))
    generations: int = Field(40, ge=1)
    name: str | None = None

    def below(self, level: int) -> NestSpec:
        """How the search of a level below the top is run: `[nest]` for all, or its own of several `[[nest]]`."""
        return self.nest[min(level, len(self.nest)) - 1]

    def identity(self) -> dict[str, Any]:
        """The part that makes two runs the same run: all but its name, its length and where it is computed.

        Keys that came later are left out at their defaults, so that older runs stay the runs they are.
        """
        neutral: dict[str, Any] = {"fixed": {}, "placebo": False, "levels": 1, "hurdle": None}
        unused = {name for name, value in neutral.items() if getattr(self, name) == value}
        unused |= {"nest"} if self.levels < 2 else set()
        unused |= {"limits"} if self.limits == LimitsSpec.model_validate({}) else set()
        # Every run says "inline": it once was a choice that made another run.
        return {**self.model_dump(exclude={"generations", "name", *PLACES, *unused}), "backend": "inline"}


def build(values: Mapping[str, Any], source: Path | None = None) -> Spec:
    """A checked spec; errors name the key, the line in `source` where there is one, and the nearest key."""
    try:
        spec = Spec(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, source)) from None
    if isinstance(spec.task, dict):
        check_task_table(spec.task, source)
    return spec


def check_task_table(table: Mapping[str, Any], source: Path | None = None) -> TaskTable:
    """The checked `[task]` table of a spec; raises `ConfigError` as `build` does.

    The spec keeps the table as it was written: its digest is that of what the user typed.
    """
    try:
        return TaskTable.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, source, ("task",))) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The raw table of a spec file. Raises `NotFound`, or `ConfigError` with the line where TOML breaks."""
    if not path.is_file():
        raise NotFound(f"no spec file is called {str(path)!r}")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def assign(values: dict[str, Any], settings: list[str]) -> None:
    """Apply `key=value` settings (`population=64`, `strategy_options.sigma=0.3`) to a raw table, in place."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set expected KEY=VALUE, got {setting!r}. Try --set strategy_options.sigma=0.3")
        *path, leaf = key.strip().split(".")
        node = values
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {key}: {step!r} is a value, not a table")
        try:
            node[leaf] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            node[leaf] = text.strip()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


# Members of unions, as pydantic calls them in the place of an error.
_MEMBERS = (
    "str",
    "dict[str,any]",
    "list[str]",
    "list[float]",
    "function-after[_start(), union[str,list[float]]]",
    "bool",
    "literal['noise']",
)


def explain(error: ValidationError, source: Path | None, under: tuple[str, ...] = ()) -> str:
    """What is wrong, as one line with its place in the file and the nearest key."""
    # A key that nobody knows before one that is missing: it may be the same, with a typo.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    # A union reports the member that failed; the key is what the user typed.
    steps = [str(step) for step in first["loc"] if not (isinstance(step, int) and first["loc"][0] == "nest")]
    path = [*under, *(step for step in steps if step not in _MEMBERS)]
    key = ".".join(path)
    where = f"{source}:{line_of(source, path)}: " if source else ""
    if first["type"] == "extra_forbidden":
        fields = _table_of(path[:-1]).model_fields
        return f"{where}unknown key {key!r}.{did_you_mean(path[-1], fields)} Known: {', '.join(fields)}"
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return f"{where}{key}: {first['msg'][0].lower()}{first['msg'][1:]}{got}"


def _table_of(path: list[str]) -> type[BaseModel]:
    """The model of the table at a key."""
    models: dict[str, type[BaseModel]] = {
        "plan": PlanSpec,
        "split": SplitSpec,
        "champion": ChampionSpec,
        "hurdle": HurdleSpec,
        "limits": LimitsSpec,
        "nest": NestSpec,
        "task": TaskTable,
        "task.split": SplitSpec,
    }
    if path[:2] in (["task", "space"], ["nest", "tunes"]):
        return ColumnTable
    return models.get(".".join(path), Spec)


def line_of(source: Path, path: list[str]) -> int:
    """Line of the key in a TOML file, or of the table around it, as well as a text search can tell; else 1."""
    table: list[str] = []
    best, depth = 1, 0
    for number, line in enumerate(source.read_text().splitlines(), 1):
        text = line.strip()
        if text.startswith("["):
            here = table = text.strip("[]").strip().split(".")
        else:
            here = [*table, *text.split("=")[0].strip().split(".")]
        if here == path[: len(here)] and len(here) > depth:
            best, depth = number, len(here)
    return best

"""What a run is asked to do: the spec, from TOML, from the command line or from Python, checked in one place."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class ChampionSpec(_Part):
    """How the champion is chosen: the recommendation and the `observed` best, `replicates` fresh seeds each."""

    observed: int = Field(4, ge=0)
    replicates: int = Field(5, ge=1)


class Spec(_Part):
    """Everything that decides a run's numbers, except how many generations it is carried to."""

    task: str | dict[str, Any]
    task_options: dict[str, Any] = {}
    strategy: str = "cma_es"
    strategy_options: dict[str, Any] = {}
    population: int | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    objective: str | list[str] | None = None
    split: SplitSpec | None = None
    replicates: int | None = Field(None, ge=1)
    start: Literal["baseline", "center"] = "baseline"
    champion: ChampionSpec = Field(default_factory=lambda: ChampionSpec.model_validate({}))
    backend: Literal["inline"] = "inline"
    plan: PlanSpec = Field(default_factory=lambda: PlanSpec.model_validate({}))
    generations: int = Field(40, ge=1)
    name: str | None = None

    def identity(self) -> dict[str, Any]:
        """The part that makes two runs the same run: all but name and length."""
        return self.model_dump(exclude={"generations", "name"})


def build(values: Mapping[str, Any], source: Path | None = None) -> Spec:
    """A checked spec; errors name the key, the line in `source` where there is one, and the nearest key."""
    try:
        return Spec(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from None


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


def _explain(error: ValidationError, source: Path | None) -> str:
    first = error.errors()[0]
    path = [str(step) for step in first["loc"]]
    # A union reports the member that failed; the key is what the user typed.
    key = ".".join(step for step in path if step not in ("str", "dict[str,any]", "list[str]"))
    where = f"{source}:{_line_of(source, path)}: " if source else ""
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"plan": PlanSpec, "split": SplitSpec, "champion": ChampionSpec}
        fields = (models[path[0]] if len(path) > 1 and path[0] in models else Spec).model_fields
        return f"{where}unknown key {key!r}.{did_you_mean(path[-1], fields)} Known: {', '.join(fields)}"
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return f"{where}{key}: {first['msg'][0].lower()}{first['msg'][1:]}{got}"


def _line_of(source: Path, path: list[str]) -> int:
    """Line of the key in a TOML file, as well as a text search can tell; 1 where it cannot."""
    table, best = "", 1
    for number, line in enumerate(source.read_text().splitlines(), 1):
        text = line.strip()
        if text.startswith("["):
            table = text.strip("[]").strip()
            if table in (path[-1], ".".join(path)):
                best = number
        elif text.split("=")[0].strip() == path[-1] and table in ("", ".".join(path[:-1])):
            return number
    return best

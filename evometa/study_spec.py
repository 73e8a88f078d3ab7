"""What a study is asked to do: arms x seeds x (optionally) a sweep, from TOML, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from evometa.contract import NAME
from evometa.errors import ConfigError, NotFound, did_you_mean
from evometa.spec import ChampionSpec, line_of, read_toml
from evometa.spec import explain as explain_run

# Keys of an arm that are the study's; all others are those of a run's spec.
ARM_KEYS = ("control", "budget", "why", "deploy", "oracle")
OWN_KEYS = ("seed", "name")  # of a run's spec, that the study sets itself


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Deploy(_Part):
    """The run that an arm of several levels ends in; None: as long and as large as its lower searches.

    `champion`: how that run's champion is chosen; None: as any ordinary run's is, whatever the arm says of the searches
    above it.
    """

    generations: int | None = Field(None, ge=1)
    population: int | None = Field(None, ge=1)
    champion: ChampionSpec | None = None


class ArmSpec(BaseModel):
    """One arm: the study's keys, and keys of a run's spec (`changes`) that differ from `[base]`."""

    model_config = ConfigDict(extra="allow")

    control: str | None = None
    budget: Literal["equal", "free"] = "equal"
    why: str = ""
    deploy: Deploy | None = None
    oracle: bool = False  # it searches on the test domains' own data: it runs last, and counts as a look

    @property
    def changes(self) -> dict[str, Any]:
        """The keys of a run's spec."""
        return dict(self.model_extra or {})


class Rule(_Part):
    """The pre-declared verdict: claims by name (see verdict.py), and whether data seen before may confirm."""

    confirms: list[str] = []
    refutes: list[str] = []
    least_domains: int = Field(0, ge=0)
    least_seeds: int = Field(0, ge=0)
    allow_opened: bool = False


class Profile(_Part):
    """What a profile changes.

    `only`: the arms that it runs, of all that the file has. Claims that need another arm go with it, and so does a
    verdict that counts on such a claim: a rule holds whole or not at all.
    """

    only: list[str] | None = Field(None, min_length=1)
    seeds: int | list[int] | None = None
    inner_seeds: int | None = None
    apart: list[str] | None = None
    base: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = {}
    sweep: dict[str, Any] = {}


class StudySpec(_Part):
    """A study with its profile applied. `Study` of study_plan.py is what it comes to."""

    name: str
    seeds: int | list[int] = 10  # search seeds: how many, or which
    inner_seeds: int = Field(10, ge=10)  # fresh seeds per test domain at the opening
    budget: Literal["evaluations", "inner_steps"] = "evaluations"  # what must be equal between arms
    evaluations: int | None = Field(None, ge=1)  # per run; None: generations x population, as each arm has them
    rival: str = "baseline"  # every arm is compared with this one
    query: str | None = None  # the query compared on; by default what `evometa compare` takes
    apart: list[str] = []  # test domains that are judged and shown, but in no average, interval or claim
    families: str | None = None  # a tag of domains: intervals over its values are shown, too
    base: dict[str, Any]
    arms: dict[str, ArmSpec] = Field(min_length=1)
    sweep: dict[str, Any] = {}  # key of a run's spec -> its values
    claims: list[dict[str, Any]] = []
    verdict: Rule | None = None
    profiles: dict[str, Profile] = {}

    @field_validator("name")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise PydanticCustomError("name", "expected a name of letters, digits, '_', '-', '.'")
        return value

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: int | list[int]) -> int | list[int]:
        chosen = [value] if isinstance(value, int) else value
        if not chosen or min(chosen) < (1 if isinstance(value, int) else 0) or len(set(chosen)) < len(chosen):
            raise PydanticCustomError("seeds", "expected how many seeds, at least 1, or a list of different seeds >= 0")
        return value

    @property
    def seed_list(self) -> list[int]:
        """The search seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the study's numbers, as plain data."""
        data = self.model_dump(exclude={"profiles", "arms"})
        return data | {"arms": {name: self._resolved(arm) for name, arm in self.arms.items()}}

    def _resolved(self, arm: ArmSpec) -> dict[str, Any]:
        """An arm as plain data, with the way in which a deployed run's champion is chosen.

        Left out where it is the arm's own: so it always was before `deploy` had a key for it, and the records of
        studies of that time say what they mean.
        """
        data, values = arm.model_dump(), merge(self.base, arm.changes)
        if values.get("levels", 1) < 2:
            return data
        own = ChampionSpec.model_validate(values.get("champion", {}))
        deploy = arm.deploy or Deploy.model_validate({})
        chosen = deploy.champion or ChampionSpec.model_validate({})
        if chosen != own:
            data["deploy"] = {**deploy.model_dump(), "champion": chosen.model_dump()}
        elif data["deploy"] is not None:
            del data["deploy"]["champion"]
        return data


class Source(NamedTuple):
    """Where a study was read from: file and raw table, to name lines in errors."""

    path: Path
    raw: dict[str, Any]

    def where(self, *keys: str) -> str:
        """`FILE:LINE: ` of the key, or of the table around it."""
        return f"{self.path}:{line_of(self.path, list(keys))}: "

    def error(self, keys: tuple[str, ...], text: str) -> ConfigError:
        """The error about a key, with its line."""
        return ConfigError(f"{self.where(*keys)}{text}")


def read(path: Path, profile: str | None = None) -> tuple[StudySpec, Source]:
    """The checked study of a TOML file under one of its profiles.

    Raises `NotFound` for the file or the profile, `ConfigError` with the line for what the file gets wrong.
    """
    source = Source(path, read_toml(path))
    spec = _checked(source.raw, source)
    for name, arm in spec.arms.items():
        _check_arm(name, arm, source)
    for key in OWN_KEYS:
        if key in spec.base:
            raise source.error(("base", key), f"base.{key} is set by the study. Write seeds = [...], or name = ...")
    if profile is None:
        return spec, source
    if profile not in spec.profiles:
        have = f"It has {', '.join(spec.profiles)}" if spec.profiles else "It has none"
        raise NotFound(f"study {spec.name!r} has no profile {profile!r}.{did_you_mean(profile, spec.profiles)} {have}")
    return _checked(_with_profile(source, spec.profiles[profile], profile), source), source


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; tables are merged, everything else is replaced."""
    out = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else deepcopy(value)
    return out


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}` of nested tables: `[sweep]` may write `a.b = [..]` or `"a.b" = [..]`."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def explain(error: ValidationError, source: Source, arm: str) -> ConfigError:
    """What a run's spec gets wrong, at the line of the arm or of `[base]`, whichever has the key."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    keys = [str(step) for step in first["loc"]][:2]
    in_arm = keys and keys[0] in source.raw["arms"].get(arm, {})
    return source.error(("arms", arm, *keys) if in_arm else ("base", *keys), f"arm {arm!r}: {explain_run(error, None)}")


def _checked(values: Mapping[str, Any], source: Source) -> StudySpec:
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        raise _own_error(error, source) from None


def _own_error(error: ValidationError, source: Source) -> ConfigError:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    path = [str(step) for step in first["loc"] if not isinstance(step, int) and step not in ("list[int]", "int")]
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = {"verdict": Rule, "profiles": Profile, "arms": Deploy}.get(path[0], StudySpec)
        model = ChampionSpec if path[-2:-1] == ["champion"] else model
        known = (StudySpec if len(path) == 1 else model).model_fields
        hint = did_you_mean(path[-1], known)
        return source.error(tuple(path), f"unknown key {'.'.join(path)!r}.{hint} Known: {', '.join(known)}")
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    text = first["msg"][0].lower() + first["msg"][1:]
    return source.error(tuple(path), f"{'.'.join(path)}: {text}{got}")


def _check_arm(name: str, arm: ArmSpec, source: Source) -> None:
    if not NAME.fullmatch(name) or len(name) > 24:
        raise source.error(
            ("arms", name), f"expected an arm's name of up to 24 letters, digits, '_', '-', '.', got {name!r}"
        )
    if arm.budget == "free" and not arm.why:
        raise source.error(
            ("arms", name), f'arm {name!r}: a free budget needs a reason for the report. Add why = "..."'
        )
    for key in OWN_KEYS:
        if key in arm.changes:
            raise source.error(("arms", name, key), f"arms.{name}.{key} is set by the study. Write seeds = [...]")


def _with_profile(source: Source, profile: Profile, name: str) -> dict[str, Any]:
    raw, known = source.raw, source.raw["arms"]
    for key, arms in (("arms", profile.arms), ("only", profile.only or ())):
        for arm in arms:
            if arm not in known:
                does = "changes" if key == "arms" else "keeps"
                raise source.error(
                    ("profiles", name, key, *([arm] if key == "arms" else [])),
                    f"profile {name!r} {does} an arm that does not exist: {arm!r}.{did_you_mean(arm, known)}"
                    f" Known: {', '.join(known)}",
                )
    changed = {k: v for k, v in profile.model_dump(exclude={"only"}).items() if v not in (None, {})}
    if profile.only is not None:
        raw = _kept(raw, profile.only)
        changed["arms"] = {arm: values for arm, values in profile.arms.items() if arm in profile.only}
    if "sweep" in changed:
        changed["sweep"] = {**flat(raw.get("sweep", {})), **flat(changed["sweep"])}
        raw = {**raw, "sweep": {}}
    return merge(raw, {**changed, "name": f"{raw['name']}-{name}"})


def _kept(raw: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    """A study's table with some of its arms, the claims that these suffice for, and a verdict that is still whole."""

    def suffices(claim: Mapping[str, Any]) -> bool:
        named = [str(claim.get(key, "")).partition(",")[0] for key in ("arm", "rival")]
        return all(name not in raw["arms"] or name in only for name in named)

    out = {**raw, "arms": {name: values for name, values in raw["arms"].items() if name in only}}
    out["claims"] = [claim for claim in raw.get("claims", []) if suffices(claim)]
    names = {claim.get("name") for claim in out["claims"]}
    verdict = raw.get("verdict", {})
    if not names.issuperset([*verdict.get("confirms", []), *verdict.get("refutes", [])]):
        out.pop("verdict")
    return out

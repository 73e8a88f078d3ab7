"""A verdict by a rule that was stated before anybody looked.

A `Claim` is one statement that can turn out false. A `Rule` says which claims confirm (all of them) and which
refute (any of them); `evaluate` gives every claim its number, interval and truth value, and the rule its
outcome: confirmed, refuted, undecided, or contradictory (both).

"All of these" needs no correction for their number: it is false wherever one of them is (an intersection-union
test, Berger 1982). "Any of these" and claims that are reported on their own are corrected by Holm's method, each
kind among its own.

kind        | holds where (difference = arm - rival, lower is better)
better      | the interval's upper end is below 0
worse       | its lower end is above 0
equivalent  | the 1 - 2 alpha interval lies inside -margin..margin (two one-sided tests)
no-better   | its lower end is above -margin: if anything is gained, it is less than the margin
trend       | the slope over a sweep variable `falls` (`rises`, or `either`): its interval excludes 0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from evometa.comparison import Arm, compare_arms, components, detectable, differences, holm, trend
from evometa.errors import ConfigError, EvometaError, did_you_mean
from evometa.statistics import Interval

KINDS = ("better", "worse", "equivalent", "no-better", "trend")
DIRECTIONS = ("falls", "rises", "either")
CONFIRMED, REFUTED, UNDECIDED, CONTRADICTORY = "confirmed", "refuted", "undecided", "contradictory"

# variable -> arm -> its points: (value of the variable, name of the arm that has it)
Sweeps = Mapping[str, Mapping[str, Sequence[tuple[float, str]]]]


@dataclass(frozen=True)
class Claim:
    """One statement that can turn out false; see the module's table for its kinds."""

    name: str
    kind: str
    arm: str
    rival: str = ""  # may be empty for a trend only: then of the arm's own loss
    query: str = ""  # empty: the comparison's objective query
    margin: float = 0.0  # equivalent, no-better: in units of the loss, above 0
    over: str = ""  # trend: the sweep's variable; `arm`, and `rival` where it is swept too, are names in that sweep
    direction: str = "falls"  # trend: of the loss or difference; it falls where the arm gets better

    def text(self) -> str:
        """The claim in words."""
        where = f" on {self.query}" if self.query else ""
        if self.kind == "trend":
            what = f"{self.arm} - {self.rival}" if self.rival else f"loss of {self.arm}"
            verb = "falls or rises" if self.direction == "either" else self.direction
            return f"{what}{where} {verb} with {self.over}"
        words = {
            "better": "loses less than",
            "worse": "loses more than",
            "equivalent": f"is within {self.margin:g} of",
            "no-better": f"gains less than {self.margin:g} over",
        }
        return f"{self.arm} {words[self.kind]} {self.rival}{where}"


@dataclass(frozen=True)
class Rule:
    """What would confirm and what would refute, by the names of claims; others are reported on their own."""

    claims: tuple[Claim, ...]
    confirms: tuple[str, ...] = ()  # all of them
    refutes: tuple[str, ...] = ()  # any of them
    least_domains: int = 0  # with fewer the outcome is undecided
    least_seeds: int = 0


@dataclass(frozen=True)
class Finding:
    """A claim and what the data say."""

    claim: Claim
    figure: float  # the difference arm - rival, or the slope
    low: float  # of the interval at `level`; NaN where `note` says why
    high: float
    level: float
    p_value: float  # against the claim's opposite; at or below 1 - level where the claim holds
    adjusted: float  # Holm's, among the claims that refute, or among those reported on their own
    holds: bool  # without correction: what "all of" asks
    holds_adjusted: bool  # what "any of" asks
    estimand: str
    unit: str
    searches: int
    domains: int
    detectable: float  # the smallest difference that this design finds with 80 % chance; NaN for a trend
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """A rule, evaluated."""

    outcome: str  # confirmed, refuted, undecided, contradictory
    why: str  # one sentence
    findings: tuple[Finding, ...]  # in the order of the claims
    rule: Rule

    def to_json(self) -> dict[str, Any]:
        """Plain data; None where there is no number."""
        rows = []
        for finding in self.findings:
            row = {name: _plain(value) for name, value in asdict(finding).items() if name != "claim"}
            name = finding.claim.name
            roles = [role for role in ("confirms", "refutes") if name in getattr(self.rule, role)]
            rows.append({**asdict(finding.claim), "text": finding.claim.text(), "roles": roles, **row})
        return {
            "outcome": self.outcome,
            "why": self.why,
            "confirms": list(self.rule.confirms),
            "refutes": list(self.rule.refutes),
            "least_domains": self.rule.least_domains,
            "least_seeds": self.rule.least_seeds,
            "claims": rows,
        }


def rule_from(values: Mapping[str, Any]) -> Rule:
    """A rule from a table, as TOML or JSON gives it: `claims` (tables with the fields of `Claim`), `confirms`,
    `refutes` (names of claims), `least_domains`, `least_seeds`.

    Raises `ConfigError` in one line: an unknown key, kind or claim, a margin that is missing or unused.
    """
    _check_keys(values, [field.name for field in fields(Rule)], "rule")
    claims = tuple(_claim(table) for table in values.get("claims", ()))
    if not claims:
        raise ConfigError("a rule needs at least one claim: {name, kind, arm, rival}")
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two claims are called {name!r}; every claim needs its own name")
    for role in ("confirms", "refutes"):
        listed = values.get(role, ())
        if isinstance(listed, str):
            raise ConfigError(f"{role}: expected a list of claims' names, got {listed!r}")
        for name in listed:
            if name not in names:
                hint = did_you_mean(str(name), names)
                raise ConfigError(f"{role}: no claim is called {name!r}.{hint} Known: {', '.join(names)}")
    least = {key: values.get(key, 0) for key in ("least_domains", "least_seeds")}
    for key, value in least.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{key}: expected a number of units, got {value!r}")
    return Rule(claims, tuple(values.get("confirms", ())), tuple(values.get("refutes", ())), **least)


def check_names(rule: Rule, arms: Sequence[str], queries: Sequence[str], sweeps: Sweeps | None = None) -> None:
    """Raise `ConfigError` for an arm, query or sweep that does not exist: to be called before anything is run."""
    sweeps = sweeps or {}
    for claim in rule.claims:
        where = f"claim {claim.name!r}"
        if claim.kind == "trend":
            _known(claim.over, sweeps, f"{where}: no sweep is over")
            swept = sweeps[claim.over]
            _known(claim.arm, swept, f"{where}: the sweep over {claim.over} has no arm")
            if claim.rival and claim.rival not in swept:
                _known(claim.rival, arms, f"{where}: no arm is called")
            for _, name in [*swept[claim.arm], *swept.get(claim.rival, ())]:
                _known(name, arms, f"{where}: the sweep over {claim.over} names the unknown arm")
        else:
            for name in (claim.arm, claim.rival):
                _known(name, arms, f"{where}: no arm is called")
        if claim.query:
            _known(claim.query, queries, f"{where}: no query is called")


def evaluate(
    rule: Rule, arms: Mapping[str, Arm], query: str, sweeps: Sweeps | None = None, *, level: float = 0.95
) -> Verdict:
    """Evaluate every claim on the arms, and the rule on the claims.

    `query`: of the claims that name none. `sweeps`: variable -> arm -> [(value, arm's name)], for trends.
    Raises `ConfigError` for unknown names, `EvometaError` for arms that were not judged on the same cells.
    """
    check_names(rule, list(arms), list(dict.fromkeys(q for arm in arms.values() for q in arm.losses)), sweeps)
    findings = [_finding(claim, arms, query, sweeps or {}, level) for claim in rule.claims]
    refuting = [i for i, claim in enumerate(rule.claims) if claim.name in rule.refutes]
    alone = [i for i, claim in enumerate(rule.claims) if claim.name not in (*rule.refutes, *rule.confirms)]
    for family in (refuting, alone):
        for i, adjusted in zip(family, holm([findings[i].p_value for i in family]), strict=True):
            holds = findings[i].holds and adjusted <= 1 - level
            findings[i] = replace(findings[i], adjusted=adjusted, holds_adjusted=holds)
    outcome, why = _outcome(rule, {finding.claim.name: finding for finding in findings})
    return Verdict(outcome, why, tuple(findings), rule)


def _outcome(rule: Rule, found: Mapping[str, Finding]) -> tuple[str, str]:
    small = [
        f"{least} {what} (the least has {have})"
        for what, least, have in (
            ("domains", rule.least_domains, min(f.domains for f in found.values())),
            ("search seeds", rule.least_seeds, min(f.searches for f in found.values())),
        )
        if have < least
    ]
    if small:
        return UNDECIDED, f"the rule asks for at least {' and '.join(small)}"
    open_ = [name for name in rule.confirms if not found[name].holds]
    against = [name for name in rule.refutes if found[name].holds_adjusted]
    confirmed, refuted = bool(rule.confirms) and not open_, bool(against)
    if confirmed and refuted:
        return CONTRADICTORY, f"every confirming claim holds, and so does what refutes: {', '.join(against)}"
    if refuted:
        return REFUTED, f"what refutes holds: {', '.join(against)}"
    if confirmed:
        return CONFIRMED, "every confirming claim holds, and nothing that refutes does"
    if not rule.confirms:
        return UNDECIDED, "nothing that refutes holds, and the rule names nothing that confirms"
    return UNDECIDED, f"nothing that refutes holds, but these do not hold either: {', '.join(open_)}"


def _finding(claim: Claim, arms: Mapping[str, Arm], query: str, sweeps: Sweeps, level: float) -> Finding:
    query = claim.query or query
    try:
        if claim.kind == "trend":
            interval, arm = _trend(claim, arms, query, sweeps, level)
            found = math.nan
        else:
            arm, rival = arms[claim.arm], arms[claim.rival]
            interval = compare_arms(arm, rival, query, level=level).difference
            parts = components(differences(arm, rival, query))
            found = detectable(parts, len(arm.seeds), len(arm.domains), alpha=1 - level)
    except EvometaError as error:
        raise type(error)(f"claim {claim.name!r}: {error}") from None
    p_value = _p_value(claim, interval)
    return Finding(
        replace(claim, query=query),
        interval.difference,
        interval.low,
        interval.high,
        level,
        p_value,
        math.nan,
        p_value <= 1 - level,
        p_value <= 1 - level,
        interval.estimand,
        interval.unit,
        len(arm.seeds),
        len(arm.domains),
        found,
        interval.note,
    )


def _trend(claim: Claim, arms: Mapping[str, Arm], query: str, sweeps: Sweeps, level: float) -> tuple[Interval, Arm]:
    swept = sweeps[claim.over]
    points = sorted(swept[claim.arm])
    first = arms[points[0][1]]
    zero = Arm(first.name, first.seeds, first.domains, {query: np.zeros((len(first.seeds), len(first.domains), 1))})
    rivals = dict(swept.get(claim.rival, ()))
    cells = []
    for value, name in points:
        if claim.rival in swept and value not in rivals:
            raise EvometaError(f"rival {claim.rival!r} has no arm at {claim.over} = {value:g}")
        loss = -differences(zero, arms[name], query)  # [L, N] in the order of the first point
        if claim.rival:
            loss += differences(zero, arms[rivals.get(value, claim.rival)], query)
        cells.append(loss)
    try:
        return trend([value for value, _ in points], cells, level=level), first
    except ValueError as error:
        raise EvometaError(f"{error}") from None


def _p_value(claim: Claim, found: Interval) -> float:
    """Two-sided where the interval is: p <= 1 - level exactly where the claim's condition on the interval holds."""
    if math.isnan(found.low):
        return math.nan
    margin = claim.margin
    if claim.kind == "equivalent":
        return max(_above(found, -margin), _below(found, margin))
    if claim.kind == "no-better":
        return min(1.0, 2 * _above(found, -margin))
    below, above = min(1.0, 2 * _below(found, 0.0)), min(1.0, 2 * _above(found, 0.0))
    if claim.kind == "better" or (claim.kind == "trend" and claim.direction == "falls"):
        return below
    if claim.kind == "worse" or claim.direction == "rises":
        return above
    return min(below, above)


def _below(found: Interval, bound: float) -> float:
    """One-sided p of "the truth is at or above `bound`"."""
    if not found.error:
        return 0.0 if found.difference < bound else 1.0
    from scipy.special import stdtr

    return float(stdtr(found.freedom, (found.difference - bound) / found.error))


def _above(found: Interval, bound: float) -> float:
    return _below(found._replace(difference=-found.difference), -bound)


def _claim(table: Any) -> Claim:
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a claim as a table {{name, kind, arm, rival}}, got {table!r}")
    where = f"claim {table.get('name', '')!r}"
    _check_keys(table, [field.name for field in fields(Claim)], where)
    for key in ("name", "kind", "arm"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise ConfigError(f"{where}: {key} is missing")
    kind, margin = table["kind"], table.get("margin", 0.0)
    _known(kind, KINDS, f"{where}: no kind of claim is called")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ConfigError(f"{where}: margin: expected a number in units of the loss, got {margin!r}")
    if kind in ("equivalent", "no-better"):
        if margin <= 0:
            raise ConfigError(f"{where}: {kind} needs a margin above 0, in units of the loss, got {margin:g}")
    elif margin:
        raise ConfigError(f"{where}: {kind} has no margin; equivalent and no-better have one")
    if kind == "trend":
        if not table.get("over"):
            raise ConfigError(f"{where}: a trend needs `over`, the variable of a sweep")
        _known(table.get("direction", "falls"), DIRECTIONS, f"{where}: no direction is called")
    else:
        if not table.get("rival"):
            raise ConfigError(f"{where}: rival is missing")
        if table["rival"] == table["arm"]:
            raise ConfigError(f"{where}: {table['arm']!r} is compared with itself")
        for key in ("over", "direction"):
            if key in table:
                raise ConfigError(f"{where}: {kind} has no {key!r}; only a trend has")
    return Claim(**{**table, "margin": float(margin)})


def _check_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}")


def _known(name: Any, known: Any, words: str) -> None:
    if name not in known:
        shown = ", ".join(known) or "none"
        raise ConfigError(f"{words} {str(name)!r}.{did_you_mean(str(name), known)} Known: {shown}")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""A rule that was stated before: its claims, their truth, its outcome."""

from __future__ import annotations

import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evometa.comparison import Arm, compare_arms
from evometa.errors import ConfigError, EvometaError
from evometa.statistics import equivalent
from evometa.verdict import Claim, Rule, check_names, evaluate, rule_from

DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(size=(10, 8, 3))


def arm(name, level, home=None, seeds=10, domains=8):
    """An arm that loses `level` on away, `home` on home, each cell by a little luck of its own."""
    luck = 0.1 * np.random.default_rng(sum(map(ord, name))).normal(size=NOISE.shape)
    grid = (NOISE + luck)[:seeds, :domains]
    losses = {"away": grid + level, "home": grid + (level if home is None else home)}
    return Arm(name, tuple(range(seeds)), tuple("abcdefgh"[:domains]), losses)


ARMS = {a.name: a for a in (arm("nested", 0.0, 2.0), arm("plain", 1.0, 1.0), arm("tuned", 0.02), arm("placebo", 1.01))}


def claim(name, kind, one="nested", other="plain", **more):
    return {"name": name, "kind": kind, "arm": one, "rival": other, **more}


def judge(claims, confirms=(), refutes=(), arms=None, **more):
    rule = rule_from({"claims": claims, "confirms": list(confirms), "refutes": list(refutes), **more})
    return evaluate(rule, arms or ARMS, "away")


# --- the kinds of claim ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, one, other, more, holds",
    [
        ("better", "nested", "plain", {}, True),
        ("better", "plain", "nested", {}, False),
        ("better", "nested", "tuned", {}, False),
        ("worse", "plain", "nested", {}, True),
        ("worse", "nested", "plain", {"query": "home"}, True),
        ("better", "nested", "plain", {"query": "home"}, False),
        ("equivalent", "placebo", "plain", {"margin": 0.2}, True),
        ("equivalent", "placebo", "plain", {"margin": 0.005}, False),
        ("equivalent", "nested", "plain", {"margin": 0.5}, False),
        ("no-better", "placebo", "plain", {"margin": 0.2}, True),
        ("no-better", "plain", "nested", {"margin": 0.2}, True),
        ("no-better", "nested", "plain", {"margin": 0.2}, False),
    ],
)
def test_a_claim_holds_where_its_interval_says_so(kind, one, other, more, holds):
    found = judge([claim("c", kind, one, other, **more)]).findings[0]
    expected = compare_arms(ARMS[one], ARMS[other], more.get("query", "away")).difference
    assert (found.figure, found.low, found.high) == expected[:3]
    assert found.estimand == expected.estimand and (found.searches, found.domains) == (10, 8)
    assert found.holds is found.holds_adjusted is holds
    assert found.adjusted == found.p_value, "a single claim needs no correction"
    assert 0 < found.detectable < 1


@settings(max_examples=60, deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(0.02, 0.3), st.integers(0, 10**6))
def test_p_values_and_intervals_never_disagree(shift, margin, seed):
    luck = np.random.default_rng(seed).normal(size=(5, 6, 1))
    one = Arm("one", tuple(range(5)), tuple("abcdef"), {"away": 0.3 * luck + shift})
    arms = {"one": one, "zero": one._replace(name="zero", losses={"away": 0 * luck})}
    claims = [
        claim(k, k, "one", "zero", **({"margin": margin} if "e" not in k[:1] and "n" in k[:1] else {}))
        for k in ("better", "worse", "no-better")
    ]
    found = {
        f.claim.name: f
        for f in judge(
            [*claims, claim("same", "equivalent", "one", "zero", margin=margin)],
            ["better", "worse", "no-better", "same"],
            arms=arms,
        ).findings
    }
    interval = compare_arms(one, arms["zero"], "away").difference
    assert found["better"].holds is (interval.high < 0)
    assert found["worse"].holds is (interval.low > 0)
    assert found["no-better"].holds is (interval.low > -margin)
    assert found["same"].holds is equivalent(interval, margin).equivalent
    assert found["same"].p_value == pytest.approx(equivalent(interval, margin).p_value)


def test_arms_that_agree_exactly_have_a_truth_too():
    same = {"a": ARMS["plain"], "b": ARMS["plain"]._replace(name="b")}
    found = judge([claim("eq", "equivalent", "a", "b", margin=0.1), claim("better", "better", "a", "b")], arms=same)
    assert [f.holds for f in found.findings] == [True, False]


def test_a_failed_arm_claims_nothing():
    broken = arm("nested", 0.0)
    broken.losses["away"][0, 0, 0] = np.nan
    found = judge(
        [
            claim(k, k, margin=0.5 if k in ("equivalent", "no-better") else 0)
            for k in ("better", "worse", "equivalent", "no-better")
        ],
        arms={**ARMS, "nested": broken},
    )
    assert not any(f.holds or f.holds_adjusted for f in found.findings)
    assert all(math.isnan(f.p_value) and "failed" in f.note for f in found.findings)
    assert json.dumps(found.to_json(), allow_nan=False)


# --- trends ------------------------------------------------------------------------------------------------------

SWEEP = {
    "languages": {
        "nested": [(1, "nested 1"), (2, "nested 2"), (4, "nested 4")],
        "home": [(1, "home 1"), (2, "home 2"), (4, "home 4")],
    }
}
SWEPT = {
    a.name: a
    for a in (
        *[arm(f"nested {n}", 1.0 - 0.2 * n) for n in (1, 2, 4)],
        *[arm(f"home {n}", 1.0 - 0.1 * n) for n in (1, 2, 4)],
        arm("plain", 1.0),
    )
}


@pytest.mark.parametrize(
    "more, slope, holds",
    [
        ({}, -0.2, True),
        ({"rival": "plain"}, -0.2, True),
        ({"rival": "home"}, -0.1, True),
        ({"direction": "rises"}, -0.2, False),
        ({"direction": "either"}, -0.2, True),
        ({"arm": "home", "rival": "nested", "direction": "rises"}, 0.1, True),
        ({"arm": "home", "rival": "home"}, 0.0, False),
    ],
)
def test_a_trend_over_a_sweep(more, slope, holds):
    rule = Rule(
        (Claim(**{"name": "grows", "kind": "trend", "arm": "nested", "over": "languages", **more}),), ("grows",)
    )
    # Points are matched by name, also where an arm has its seeds in another order.
    turned = SWEPT["nested 2"]
    arms = {
        **SWEPT,
        "nested 2": turned._replace(seeds=turned.seeds[::-1], losses={q: x[::-1] for q, x in turned.losses.items()}),
    }
    found = evaluate(rule, arms, "away", SWEEP)
    assert found.findings[0].figure == pytest.approx(slope, abs=0.03)
    assert found.findings[0].holds is holds and (found.outcome == "confirmed") is holds


def test_a_sweep_with_a_hole():
    sweep = {"languages": {**SWEEP["languages"], "home": SWEEP["languages"]["home"][:2]}}
    rule = rule_from({"claims": [claim("t", "trend", "nested", "home", over="languages")]})
    with pytest.raises(EvometaError, match="claim 't': rival 'home' has no arm at languages = 4"):
        evaluate(rule, SWEPT, "away", sweep)
    one = {"languages": {"nested": [(1, "nested 1")]}}
    with pytest.raises(EvometaError, match="claim 't': Expected one array for each of at least two"):
        evaluate(
            rule_from({"claims": [{"name": "t", "kind": "trend", "arm": "nested", "over": "languages"}]}),
            SWEPT,
            "away",
            one,
        )


# --- the rule -----------------------------------------------------------------------------------------------------

BETTER, NARROW = claim("beats plain", "better"), claim("narrow is worse", "worse", query="home")
LEAK, MATCHED = (
    claim("placebo gains", "better", "placebo", "plain"),
    claim("tuned matches", "equivalent", "nested", "tuned", margin=0.2),
)


def test_all_of_confirms_any_of_refutes():
    assert judge([BETTER, NARROW], ["beats plain", "narrow is worse"]).outcome == "confirmed"
    assert judge([BETTER, NARROW, LEAK], ["beats plain", "narrow is worse"], ["placebo gains"]).outcome == "confirmed"
    both = judge([BETTER, MATCHED], ["beats plain"], ["tuned matches"])
    assert both.outcome == "contradictory" and "tuned matches" in both.why
    open_ = judge([BETTER, LEAK], ["beats plain", "placebo gains"])
    assert open_.outcome == "undecided" and "do not hold either: placebo gains" in open_.why
    refuted = judge([LEAK, MATCHED, BETTER], ["placebo gains"], ["tuned matches"])
    assert refuted.outcome == "refuted" and refuted.why == "what refutes holds: tuned matches"
    assert judge([BETTER]).outcome == "undecided" and judge([LEAK], [], ["placebo gains"]).outcome == "undecided"


def test_a_design_that_is_too_small_decides_nothing():
    assert judge([BETTER], ["beats plain"], least_domains=8, least_seeds=10).outcome == "confirmed"
    small = judge([BETTER], ["beats plain"], least_domains=9, least_seeds=11)
    assert small.outcome == "undecided"
    assert small.why == "the rule asks for at least 9 domains (the least has 8) and 11 search seeds (the least has 10)"


def test_any_of_is_corrected_and_all_of_is_not():
    """Four claims of p near 0.03: each holds alone, together none may refute, and all may confirm."""
    luck = np.random.default_rng(3).normal(size=(6, 7, 1))
    luck -= luck.mean()
    probe = Arm("probe", tuple(range(6)), tuple("abcdefg"), {"away": luck})
    error = compare_arms(probe, probe._replace(losses={"away": 0 * luck}), "away").difference.error
    arms = {f"arm{n}": probe._replace(name=f"arm{n}", losses={"away": luck - 2.9 * error}) for n in range(4)}
    arms["zero"] = probe._replace(name="zero", losses={"away": 0 * luck})
    claims = [claim(f"c{n}", "better", f"arm{n}", "zero") for n in range(4)]
    names = [one["name"] for one in claims]
    together = judge(claims, names, arms=arms)
    assert 0.0125 < together.findings[0].p_value < 0.05
    assert together.outcome == "confirmed" and math.isnan(together.findings[0].adjusted)
    against = judge(claims, [], names, arms=arms)
    assert against.outcome == "undecided" and all(f.holds and not f.holds_adjusted for f in against.findings)
    assert against.findings[0].adjusted == pytest.approx(4 * against.findings[0].p_value)
    assert judge(claims[:1], [], names[:1], arms=arms).outcome == "refuted"
    alone = judge(claims[:2], arms=arms)
    assert [f.adjusted for f in alone.findings] == pytest.approx([2 * alone.findings[0].p_value] * 2)


def test_a_verdict_is_plain_data():
    found = judge([BETTER, NARROW, LEAK, MATCHED], ["beats plain", "narrow is worse"], ["tuned matches"]).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["outcome"] == "contradictory" and found["confirms"] == ["beats plain", "narrow is worse"]
    rows = {row["name"]: row for row in found["claims"]}
    assert rows["narrow is worse"]["text"] == "nested loses more than plain on home"
    assert rows["tuned matches"]["roles"] == ["refutes"] and rows["placebo gains"]["roles"] == []
    assert rows["beats plain"]["adjusted"] is None and rows["beats plain"]["query"] == "away"


# --- what is wrong with a rule -------------------------------------------------------------------------------------


def test_a_rule_as_a_file_has_it():
    rule = rule_from(
        tomllib.loads("""
        confirms = ["gains"]
        least_domains = 5
        [[claims]]
        name = "gains"
        kind = "better"
        arm = "nested"
        rival = "plain"
        [[claims]]
        name = "grows"
        kind = "trend"
        arm = "nested"
        over = "languages"
        """)
    )
    assert rule.least_domains == 5 and rule.claims[0] == Claim("gains", "better", "nested", "plain")
    assert rule.claims[1].text() == "loss of nested falls with languages"


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "at least one claim"),
        ({"claim": []}, "rule: unknown key 'claim'. Did you mean \"claims\"?"),
        ({"claims": ["x"]}, "expected a claim as a table"),
        ({"claims": [{"name": "a", "kind": "better", "rival": "plain"}]}, "claim 'a': arm is missing"),
        ({"claims": [{"name": "a", "kind": "better", "arm": "nested"}]}, "claim 'a': rival is missing"),
        ({"claims": [claim("a", "beter")]}, "no kind of claim is called 'beter'. Did you mean \"better\"?"),
        ({"claims": [claim("a", "better", "plain")]}, "'plain' is compared with itself"),
        ({"claims": [claim("a", "equivalent")]}, "equivalent needs a margin above 0"),
        ({"claims": [claim("a", "no-better", margin="1")]}, "expected a number in units of the loss, got '1'"),
        ({"claims": [claim("a", "better", margin=0.1)]}, "better has no margin"),
        ({"claims": [claim("a", "better", over="x")]}, "only a trend has"),
        ({"claims": [claim("a", "trend")]}, "a trend needs `over`"),
        ({"claims": [claim("a", "trend", over="x", direction="fall")]}, "no direction is called 'fall'. Did you mean \"falls\"?"),
        ({"claims": [claim("a", "better", marign=1)]}, "unknown key 'marign'. Did you mean \"margin\"?"),
        ({"claims": [claim("a", "better"), claim("a", "worse")]}, "two claims are called 'a'"),
        ({"claims": [claim("gains", "better")], "confirms": ["gain"]}, "confirms: no claim is called 'gain'. Did you mean \"gains\"?"),
        ({"claims": [claim("a", "better")], "refutes": "a"}, "refutes: expected a list"),
        ({"claims": [claim("a", "better")], "least_seeds": -1}, "least_seeds: expected a number of units, got -1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(values, words):
    with pytest.raises(ConfigError) as raised:
        rule_from(values)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "more, words",
    [
        (claim("a", "better", "nestd"), "claim 'a': no arm is called 'nestd'. Did you mean \"nested\"?"),
        (claim("a", "better", "nested", "plan"), "no arm is called 'plan'. Did you mean \"plain\"?"),
        (claim("a", "better", query="hom"), "no query is called 'hom'. Did you mean \"home\"?"),
        (claim("a", "trend", over="lang"), "no sweep is over 'lang'. Did you mean \"languages\"?"),
        (claim("a", "trend", "plain", "nested", over="languages"), "the sweep over languages has no arm 'plain'"),
    ],
)
def test_unknown_names_are_found_before_anything_is_run(more, words):
    sweeps = {"languages": {"nested": [(1, "nested"), (2, "tuned")]}}
    with pytest.raises(ConfigError) as raised:
        check_names(rule_from({"claims": [more]}), list(ARMS), ["away", "home"], sweeps)
    assert words in str(raised.value)


def test_arms_on_other_cells_are_refused_by_the_claim():
    arms = {**ARMS, "plain": arm("plain", 1.0, seeds=9)}
    with pytest.raises(
        EvometaError, match="claim 'beats plain': expected 'nested' and 'plain' on the same search seeds"
    ):
        judge([BETTER], arms=arms)


# --- as a reader sees it ------------------------------------------------------------------------------------------


def test_a_verdict_in_words():
    from evometa.reports.compare import verdict_markdown, verdict_text

    data = judge(
        [BETTER, NARROW, LEAK, MATCHED], ["beats plain", "narrow is worse"], ["tuned matches"], least_domains=5
    ).to_json()
    for text in (verdict_text(data), verdict_markdown(data)):
        for words in (
            "Outcome: contradictory: every confirming claim holds, and so does what refutes: tuned matches.",
            "Confirmed by all of: beats plain, narrow is worse. Refuted by any of: tuned matches.",
            "The rule asks for at least 5 domains.",
            "nested loses more than plain on home",
            "reported alone",
            "method against method, on new search seeds and new domains like these; unit: search seed x domain.",
        ):
            assert words in text, words
    row = next(line for line in verdict_text(data).splitlines() if line.startswith("placebo gains"))
    assert row.split()[-1] == "no"
    broken = arm("nested", 0.0)
    broken.losses["away"][0, 0, 0] = np.nan
    said = verdict_text(judge([BETTER], arms={**ARMS, "nested": broken}).to_json())
    assert "No interval: 1 of 80 cells failed (not finite), never averaged." in said and "nan" not in said

"""Arms against each other: numbers calculated by hand, and intervals that cover what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from evometa import comparison
from evometa.comparison import (
    Arm,
    Components,
    compare_arms,
    components,
    detectable,
    differences,
    gap_closed,
    holm,
    power,
    restrict,
    summarize,
    trend,
)
from evometa.errors import EvometaError
from evometa.statistics import crossed, over_domains


def arm(name, cells, seeds=None, domains=None):
    """An arm whose inner seeds average to `cells` [L, N]."""
    cells = np.asarray(cells, float)
    wobble = np.array([-0.5, 0.5])
    seeds = tuple(range(len(cells))) if seeds is None else seeds
    domains = tuple("abcdefghijklmnop"[: cells.shape[1]]) if domains is None else domains
    return Arm(name, seeds, domains, {"away": cells[:, :, None] + wobble, "home": cells[:, :, None] * 2 + wobble})


def zero(like):
    return arm("rival", np.zeros(np.shape(like)))


CELLS = np.array([[-1.0, -2.0, 0.5], [-2.0, -4.0, 0.0], [-3.0, -3.0, 1.0], [-1.0, -1.0, 0.1]])


def test_a_comparison_equals_a_calculation_by_hand():
    found = compare_arms(arm("arm", CELLS + 7), arm("rival", 0 * CELLS + 7), "away")
    rows, columns, mean = CELLS.mean(1), CELLS.mean(0), CELLS.mean()
    v_rows, v_columns = rows.var(ddof=1) / 4, columns.var(ddof=1) / 3
    rest = CELLS - rows[:, None] - columns + mean
    variance = max(v_rows + v_columns - (rest**2).sum() / 6 / 12, v_rows, v_columns)
    half = stats.t.ppf(0.975, 2) * math.sqrt(variance)
    assert np.allclose(found.difference[:3], [mean, mean - half, mean + half])
    assert found.difference.unit == "search seed x domain" and "method against method" in found.difference.estimand
    assert np.allclose(found.per_domain, columns) and (found.wins, found.ties) == (2, 0)
    assert found.improvement.value == 8.5 / 12, "eight cells below zero, and a tie counts half"
    assert compare_arms(arm("arm", CELLS), zero(CELLS), "home").difference.difference == pytest.approx(2 * mean)
    assert compare_arms(zero(CELLS), zero(CELLS), "away").ties == 3


def test_pairing_is_by_name_and_not_by_position():
    one = arm("one", CELLS)
    other = arm("other", CELLS[::-1, ::-1] + 1, (3, 2, 1, 0), ("c", "b", "a"))
    assert np.allclose(differences(one, other, "away"), -1)
    few = restrict(one, (3, 1))
    assert few.seeds == (3, 1) and np.allclose(few.losses["away"].mean(2), CELLS[[3, 1]])
    with pytest.raises(EvometaError, match="'one' has no search seed 7; it has 0, 1, 2, 3"):
        restrict(one, (1, 7))


def test_what_is_not_paired_is_refused_with_what_differs():
    one = arm("one", CELLS)
    with pytest.raises(EvometaError, match="same search seeds, but only 'one' has 3 and only 'two' has 9"):
        compare_arms(one, arm("two", CELLS, (0, 1, 2, 9)), "away")
    with pytest.raises(EvometaError, match="same domains, but only 'two' has d"):
        compare_arms(one, arm("two", np.zeros((4, 4))), "away")
    with pytest.raises(EvometaError, match="not judged on query 'awya'. Did you mean \"away\"?"):
        compare_arms(one, one, "awya")


def test_a_smaller_design_says_what_it_can_speak_of():
    one = compare_arms(arm("arm", CELLS[:1]), zero(CELLS[:1]), "away")
    assert one.difference == over_domains(CELLS[0]) and one.difference.unit == "domain"
    here = compare_arms(arm("arm", CELLS[:, :1]), zero(CELLS[:, :1]), "away").difference
    assert (here.unit, here.count) == ("search seed", 4) and "this domain only" in here.estimand
    assert np.allclose([here.low, here.high], stats.t.interval(0.95, 3, CELLS[:, 0].mean(), stats.sem(CELLS[:, 0])))
    single = arm("arm", [[0.0]])
    noisy = single._replace(losses={"away": np.array([[[1.0, 2.0, 4.0]]])})
    rival = single._replace(losses={"away": np.array([[[1.0, 1.0, 1.0]]])})
    found = compare_arms(noisy, rival, "away")
    assert found.difference.unit == "inner seed" and found.difference.difference == pytest.approx(4 / 3)
    assert math.isnan(found.improvement.low) and math.isnan(summarize(noisy, "away").middle.low)


def test_families_are_units_of_their_own():
    groups = {"a": "north", "b": "north", "c": "south"}
    found = compare_arms(arm("arm", CELLS), zero(CELLS), "away", groups=groups).families
    by_family = np.stack([CELLS[:, :2].mean(1), CELLS[:, 2]], axis=1)
    assert found is not None and found[:3] == pytest.approx(crossed(by_family)[:3])
    assert found.unit == "search seed x family" and found.note == "4 search seeds x 2 families"
    one = compare_arms(arm("arm", CELLS[:1]), zero(CELLS[:1]), "away", groups=groups).families
    assert one is not None and one.unit == "family" and one.count == 2
    with pytest.raises(EvometaError, match="a family for every domain, got none for c"):
        compare_arms(arm("arm", CELLS), zero(CELLS), "away", groups={"a": "x", "b": "y"})


def test_a_failed_cell_is_never_averaged():
    broken = arm("arm", CELLS)
    broken.losses["away"][1, 2, 0] = np.nan
    found = compare_arms(broken, zero(CELLS), "away")
    assert math.isnan(found.difference.difference) and "failed" in found.difference.note
    assert math.isnan(found.improvement.value) and "failed" in found.improvement.note
    told = summarize(broken, "away")
    assert told.failed == 1 and math.isnan(told.mean) and math.isnan(told.middle.value)
    assert "failed" in gap_closed(broken, zero(CELLS), arm("o", CELLS - 1), "away").note
    assert math.isnan(components(differences(broken, zero(CELLS), "away")).residual)
    assert not math.isnan(compare_arms(broken, zero(CELLS), "home").difference.low), "the other query is whole"


# --- interquartile mean, probability of improvement ------------------------------------------------------------------


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    cells = np.arange(16.0).reshape(4, 4)
    cells[0, 0], cells[3, 3] = -1e6, 1e6
    found = summarize(arm("arm", cells), "away")
    assert found.middle.value == np.arange(4, 12).mean() and found.mean == pytest.approx(cells.mean())
    assert found.middle.low < found.middle.value < found.middle.high
    assert found.middle == summarize(arm("arm", cells), "away").middle, "the same cells, the same interval"
    assert np.allclose(found.per_domain, cells.mean(0))
    assert "three search seeds" in summarize(arm("arm", cells[:2]), "away").middle.note


def test_where_all_cells_agree_the_smaller_count_bounds_the_probability():
    """0.025^(1/n): the least share under which n of n is not surprising (Clopper & Pearson 1934)."""
    found = compare_arms(arm("arm", np.full((10, 5), -1.0)), arm("rival", np.zeros((10, 5))), "away").improvement
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.025 ** (1 / 5))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(float, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.integers(-3, 3)))
def test_the_probability_is_a_share_and_its_mirror_is_the_rivals(cells):
    one = compare_arms(arm("arm", cells), zero(cells), "away").improvement
    other = compare_arms(zero(cells), arm("arm", cells), "away").improvement
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert np.allclose([one.value, one.low, one.high], [1 - other.value, 1 - other.high, 1 - other.low])


# --- gap closed --------------------------------------------------------------------------------------------------


def test_the_gap_closed_by_hand():
    """All closed by the oracle itself, none by the baseline; halves are halves."""
    baseline, oracle = arm("baseline", CELLS + 10), arm("oracle", CELLS + 8 + 0.1 * CELLS**2)
    assert gap_closed(oracle, baseline, oracle, "away")[:3] == pytest.approx((1, 1, 1))
    assert gap_closed(baseline, baseline, oracle, "away")[:3] == (0, 0, 0)
    half = arm("half", (baseline.losses["away"] + oracle.losses["away"]).mean(2) / 2)
    assert gap_closed(half, baseline, oracle, "away")[:3] == pytest.approx((0.5, 0.5, 0.5))
    nothing = gap_closed(half, baseline, baseline, "away")
    assert math.isnan(nothing.value) and "no gap to close" in nothing.note
    unclear = gap_closed(half, baseline, arm("x", baseline.losses["away"].mean(2) - CELLS), "away")
    assert (
        math.isfinite(unclear.value) and math.isnan(unclear.low) and "not clearly different from zero" in unclear.note
    )
    alone = gap_closed(*[arm(str(x), [[float(x)]]) for x in (1, 2, 0)], "away")
    assert alone.value == 0.5 and "at least two" in alone.note


@pytest.mark.parametrize("shape", [(6, 9), (9, 4), (1, 8), (7, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_fiellers_ends_are_where_the_difference_stops_being_significant(shape, seed):
    """At both ends r, the interval of (baseline - arm) - r (baseline - oracle) just touches zero."""
    draw = np.random.default_rng(seed)
    effects = [draw.normal(size=(shape[0], 1)) + draw.normal(size=shape[1]) + draw.normal(size=shape) for _ in range(3)]
    base, one, best = effects[0] + 20, 0.3 * effects[1] + effects[0] + 14, 0.3 * effects[2] + effects[0] + 10
    baseline, oracle = arm("baseline", base), arm("oracle", best)
    found = gap_closed(arm("arm", one), baseline, oracle, "away")
    assert found.low < found.value < found.high
    assert found.value == pytest.approx((base - one).mean() / (base - best).mean())
    for end in (found.low, found.high):
        mix = arm("mix", (base - one) - end * (base - best))
        touched = compare_arms(mix, zero(base), "away").difference
        assert min(abs(touched.low), abs(touched.high)) < 1e-9 * (touched.high - touched.low)


# --- trends -----------------------------------------------------------------------------------------------------


def test_a_trend_is_the_mean_of_the_cells_slopes():
    x = [1.0, 2.0, 4.0, 8.0]
    slopes = CELLS / 10
    cells = [CELLS**2 + 5 + value * slopes for value in x]
    found = trend(x, cells)
    assert found[:3] == pytest.approx(crossed(slopes)[:3]), "what a cell loses at every value cancels"
    assert found.estimand.startswith("slope per unit")
    assert trend(x, [row[:1] for row in cells])[:3] == pytest.approx(over_domains(slopes[0])[:3])
    by_hand = np.polyfit(x, [row[2, 1] for row in cells], 1)[0]
    assert by_hand == pytest.approx(slopes[2, 1])
    for values in ([1.0], [2.0, 2.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="at least two different values"):
            trend(values, cells[: min(2, len(values))])


# --- several claims ------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2]
    assert holm([0.01, math.nan, 0.5]) == pytest.approx([0.03, 1, 1]), "what could not be tested is a claim too"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_never_lowers(p_values, chance):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))
    order = list(range(len(p_values)))
    chance.shuffle(order)
    assert holm([p_values[i] for i in order]) == pytest.approx([adjusted[i] for i in order])
    ranked = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)


# --- what a design can find -----------------------------------------------------------------------------------------


def sample(draw, searches, domains, sizes, mean=0.0):
    one, two, three = sizes
    rows, columns = draw.normal(size=(searches, 1)), draw.normal(size=domains)
    return mean + one * rows + two * columns + three * draw.normal(size=(searches, domains))


def test_components_are_unbiased():
    draw = np.random.default_rng(0)
    found = np.mean([components(sample(draw, 8, 10, (1.0, 2.0, 0.5))) for _ in range(400)], axis=0)
    assert found == pytest.approx([1.0, 4.0, 0.25], rel=0.12)
    assert all(math.isnan(x) for x in components(np.ones((1, 5))))


def test_power_is_how_often_the_interval_excludes_zero():
    draw = np.random.default_rng(1)
    sizes = (0.4, 1.0, 0.5)
    told = power(Components(0.16, 1.0, 0.25), 8, 12, 1.2)
    hits = [not (r := crossed(sample(draw, 8, 12, sizes, 1.2))).low <= 0 <= r.high for _ in range(600)]
    assert np.mean(hits) == pytest.approx(told, abs=0.06) and 0.6 < told < 0.9


def test_power_agrees_with_the_noncentral_t():
    for searches, domains, effect in ((2, 9, 0.7), (5, 5, 1.0), (10, 12, 0.4)):
        error = math.sqrt(0.3 / searches + 0.5 / domains + 0.2 / (searches * domains))
        freedom = min(searches, domains) - 1
        limit = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(limit, freedom, effect / error) + stats.nct.cdf(-limit, freedom, effect / error)
        assert power(Components(0.3, 0.5, 0.2), searches, domains, effect) == pytest.approx(expected, abs=1e-4)


def test_the_detectable_difference_has_the_stated_power():
    found = Components(0.3, 0.5, 0.2)
    for searches, domains in ((2, 5), (5, 12), (10, 16)):
        effect = detectable(found, searches, domains)
        assert power(found, searches, domains, effect) == pytest.approx(0.8, abs=1e-3)
    assert power(found, 5, 12, 0.0) == pytest.approx(0.05, abs=1e-3)
    assert detectable(found, 10, 16) < detectable(found, 5, 12) < detectable(found, 2, 5)
    assert detectable(found, 10, 16, chance=0.9) > detectable(found, 10, 16)
    assert math.isnan(power(found, 1, 12, 1.0)) and math.isnan(detectable(found, 5, 1))
    assert detectable(Components(0.0, 0.0, 0.0), 5, 5) == 0 and power(Components(0.0, 0.0, 0.0), 5, 5, 0.1) == 1


# --- do they cover? ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "searches, domains, sizes", [(5, 12, (1, 0.3, 0.5)), (10, 8, (0.3, 1, 0.5)), (1, 10, (0, 1, 0.5))]
)
def test_intervals_cover_about_what_they_say(monkeypatch, searches, domains, sizes):
    """300 comparisons each: below 0.91 a 95 % interval of true coverage would be a chance of one in 500."""
    monkeypatch.setattr(comparison, "RESAMPLES", 200)
    draw = np.random.default_rng(searches)
    spread, trials = math.sqrt(sum(size**2 for size in sizes)), 300
    covered = np.zeros(3)
    for _ in range(trials):
        cells = sample(draw, searches, domains, sizes, -0.5 * spread)
        chance = compare_arms(arm("arm", cells), zero(cells), "away").improvement
        middle = summarize(arm("arm", cells), "away").middle
        whole = sample(draw, searches, domains, sizes, 4.0)
        part = 0.6 * whole + 0.5 * sample(draw, searches, domains, sizes)
        gap = gap_closed(arm("arm", -part), zero(cells), arm("oracle", -whole), "away")
        covered += [
            chance.low <= stats.norm.cdf(0.5) <= chance.high,
            middle.low <= -0.5 * spread <= middle.high,
            gap.low <= 0.6 <= gap.high,
        ]
    assert (covered / trials >= 0.91).all(), covered / trials
    assert covered[2] / trials < 1

"""Intervals, tests, the champion: agreement with scipy, calculation by hand, coverage."""

import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evometa import statistics
from evometa.likely import likely_best
from evometa.statistics import (
    crossed,
    equivalent,
    over_domains,
    over_seeds,
    per_domain,
    sign_flip,
)

ttest: Any = stats.ttest_1samp


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def assert_covers(hits: int, trials: int, level: float = 0.95):
    """Within four standard errors of the nominal level."""
    assert abs(hits / trials - level) < 4 * math.sqrt(level * (1 - level) / trials)


# --- one unit at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_equal_scipys_t(level):
    x = draws(7, 10) + 0.3
    for told, units in [
        (over_domains(x, level), x.mean(1)),
        (over_domains(x[:, 0], level), x[:, 0]),
        (over_seeds(x, level), x.mean(0)),
        (per_domain(x, level)[3], x[3]),
    ]:
        known = ttest(units, 0)
        low, high = known.confidence_interval(level)
        np.testing.assert_allclose(told[:3], [units.mean(), low, high], rtol=1e-12)
        assert (told.count, told.level, told.freedom) == (len(units), level, len(units) - 1)


def test_every_interval_names_its_estimand_and_unit():
    x = draws(4, 5)
    assert over_seeds(x)[4:7] == ("this champion on these domains only", "inner seed", 5)
    assert over_domains(x)[4:7] == ("this champion on new domains like these", "domain", 4)
    assert over_domains(x, groups="aabb")[4:7] == (
        "this champion on new families of domains like these",
        "family",
        2,
    )
    assert crossed(x)[5:7] == ("search seed x domain", 4)
    assert "method against method" in crossed(x).estimand
    assert per_domain(x, names=["de", "hi", "tr", "ta"])[1].estimand.endswith("domain hi only")


def test_more_seeds_never_stand_in_for_domains():
    x = np.repeat(draws(5, 1), 1000, axis=1)
    assert over_domains(x).count == 5
    np.testing.assert_allclose(over_domains(x)[:3], over_domains(x[:, 0])[:3])


def test_a_family_is_one_unit():
    x = draws(6)
    told = over_domains(x, groups=["slavic", "indic", "slavic", "turkic", "indic", "slavic"])
    means = [x[[0, 2, 5]].mean(), x[[1, 4]].mean(), x[3]]
    np.testing.assert_allclose(told[:3], over_domains(means)[:3])
    assert told.p_value == over_domains(means).p_value


# --- sign flips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
def test_sign_flip_equals_scipys_permutation_test(n):
    x = draws(n, seed=n) + 0.4
    known = stats.permutation_test((x,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=10**6)
    assert sign_flip(x) == (pytest.approx(known.pvalue), "exact")


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flip_counts_every_way_ties_included(values):
    x = np.array(values) / 10
    flips = np.array(list(itertools.product([-1, 1], repeat=len(x))))
    above = np.abs(flips @ values) >= abs(sum(values))  # integers: no rounding
    assert sign_flip(x)[0] == above.mean()


def test_sign_flip_of_the_clearest_case_is_two_in_two_to_the_n():
    for n in (4, 12, 31, 32):
        assert sign_flip(np.arange(1, n + 1)) == (2 / 2**n, "exact")


def test_sampled_sign_flip_is_seeded_and_close_to_the_exact_one(monkeypatch):
    x = draws(20) + 0.3
    exact, _ = sign_flip(x)
    monkeypatch.setattr(statistics, "EXACT_UNITS", 10)
    sampled, how = sign_flip(x)
    assert how == "sampled" and sign_flip(x) == (sampled, how)
    assert abs(sampled - exact) < 5 * math.sqrt(exact / statistics.SAMPLED_FLIPS)
    assert sign_flip(np.ones(100))[0] == 1 / (statistics.SAMPLED_FLIPS + 1)  # never zero


# --- crossed ------------------------------------------------------------------------------------


def test_crossed_equals_a_calculation_by_hand():
    # rows 1 2 3 / 3 2 7: row means 2, 4; column means 2, 2, 5; mean 3; residuals 0 1 -1 / 0 -1 1
    told = crossed([[1, 2, 3], [3, 2, 7]])
    v_searches, v_domains, v_residual = 2 / 2, 3 / 3, (4 / 2) / 6
    assert told.difference == 3
    assert told.error == pytest.approx(math.sqrt(v_searches + v_domains - v_residual))
    assert told.high - 3 == pytest.approx(stats.t.ppf(0.975, 1) * told.error)
    assert told.p_value == pytest.approx(2 * stats.t.sf(3 / told.error, 1))
    assert (told.count, told.freedom, told.test) == (2, 1, "t")


def test_crossed_is_never_narrower_than_either_spread_alone():
    for seed in range(200):
        x = draws(4, 6, seed=seed)  # no effects at all: the sum often falls below one of its terms
        error = crossed(x).error
        assert error >= x.mean(1).std(ddof=1) / math.sqrt(4) * (1 - 1e-12)
        assert error >= x.mean(0).std(ddof=1) / math.sqrt(6) * (1 - 1e-12)


def test_crossed_does_not_care_which_side_is_which():
    x = draws(5, 8)
    np.testing.assert_allclose(crossed(x)[:3], crossed(x.T)[:3])


def test_a_pure_interaction_is_no_certainty():
    told = crossed([[1.0, -1.0], [-1.0, 1.0]])
    assert told.low < -1 and told.high > 1


# --- edges --------------------------------------------------------------------------------------


def test_one_unit_has_no_interval():
    for told in [over_domains([[1.0, 2.0]]), over_seeds([[1.0], [2.0]]), crossed([[1.0, 2.0]])]:
        assert told.difference == 1.5
        assert math.isnan(told.low) and math.isnan(told.high) and told.p_value is None
        assert "no interval" in told.note
    assert math.isnan(over_domains([1.0, 2.0, 3.0], groups="aaa").low)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_failed_cell_is_never_averaged(bad):
    x = draws(4, 5)
    x[1, 2] = bad
    for told in [over_seeds(x), over_domains(x), over_domains(x, groups="aabb"), crossed(x)]:
        assert np.isnan(told[:3]).all() and told.p_value is None and told.failed == 1
        assert "1 of 20 cells failed" in told.note
    alone = per_domain(x)
    assert [told.failed for told in alone] == [0, 1, 0, 0]
    assert [math.isnan(told.low) for told in alone] == [False, True, False, False]
    assert not equivalent(x, 100.0).equivalent


def test_equal_differences_give_a_true_interval_of_width_zero():
    told = over_domains(np.full((5, 3), 0.1))
    assert told.difference == told.low == told.high == pytest.approx(0.1)
    assert told.p_value == 2 / 2**5  # five domains cannot say more, however clear they are
    assert "same difference" in told.note
    told = crossed(np.full((3, 4), 0.1))
    assert told[:3] == (0.1, 0.1, 0.1) and told.p_value is None
    assert over_domains(np.zeros(4)).p_value == 1


@given(
    st.lists(st.integers(-1000, 1000), min_size=6, max_size=6),
    st.integers(-990, 990),
    st.booleans(),
)
def test_intervals_scale_and_mirror(values, power, flip):
    x = np.array(values).reshape(2, 3) / 7
    factor = (-1) ** flip * 2.0**power
    for function in (over_seeds, over_domains, crossed):
        one, other = function(x), function(x * factor)
        ends = sorted([other.low / factor, other.high / factor])
        np.testing.assert_allclose([other.difference / factor, *ends], one[:3], rtol=1e-12, atol=1e-12)
        assert one.p_value == pytest.approx(other.p_value)


def test_losses_at_the_end_of_float64_raise_no_warning():
    told = over_domains([1.7e308, -1.7e308, 1.7e308])
    assert math.isfinite(told.difference) and told.low == -math.inf and told.high == math.inf
    assert over_domains([5e-324, 1e-310]).low < 0


def test_wrong_shapes_and_levels_say_what_was_expected():
    with pytest.raises(ValueError, match=r"\[domains, seeds\].*got an array of shape \(2, 2, 2\)"):
        over_domains(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="not empty"):
        over_seeds([])
    with pytest.raises(ValueError, match="search seeds, domains"):
        crossed([1.0, 2.0])
    with pytest.raises(ValueError, match="level=95"):
        over_domains([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="level=0"):
        crossed(draws(3, 3), level=0)
    with pytest.raises(ValueError, match=r"one group label per domain \(3\), got 2"):
        over_domains([1.0, 2.0, 3.0], groups="ab")
    with pytest.raises(ValueError, match=r"one name per domain \(3\), got 1"):
        per_domain(draws(3, 3), names=["a"])
    with pytest.raises(ValueError, match="finite units"):
        sign_flip([1.0, np.nan])


# --- equivalence --------------------------------------------------------------------------------


def test_equivalence_is_two_one_sided_tests():
    x = draws(9) * 0.2 + 0.05
    told = equivalent(x, margin=0.3)
    above = ttest(x, -0.3, alternative="greater")
    below = ttest(x, 0.3, alternative="less")
    assert told.p_value == pytest.approx(max(above.pvalue, below.pvalue))
    low, high = ttest(x, 0).confidence_interval(0.9)
    assert (told.low, told.high) == (pytest.approx(low), pytest.approx(high))
    assert told.equivalent and (told.unit, told.count, told.alpha) == ("domain", 9, 0.05)


@given(st.integers(0, 300), st.floats(0.05, 2.0))
def test_equivalence_and_its_p_value_agree(seed, margin):
    told = equivalent(crossed(draws(4, 6, seed=seed)), margin)
    assert told.equivalent == (told.p_value < told.alpha)
    assert told.estimand == statistics.METHODS


def test_no_interval_is_never_equivalence():
    told = equivalent([0.0], margin=1.0)
    assert not told.equivalent and math.isnan(told.p_value) and "no interval" in told.note
    assert equivalent(np.zeros(5), margin=1e-9).equivalent  # width zero, and inside
    assert not equivalent(np.ones(5), margin=1.0).equivalent  # on the edge is not inside
    for margin in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="margin above 0"):
            equivalent(np.zeros(5), margin=margin)
    with pytest.raises(ValueError, match="alpha"):
        equivalent(np.zeros(5), margin=1.0, alpha=0.5)


# --- coverage, small (benchmarks/coverage.py is the large one) ----------------------------------


def test_over_domains_covers_new_domains_and_pooled_cells_do_not():
    rng, trials = np.random.default_rng(1), 1500
    hits = pooled = 0
    for x in rng.normal(size=(trials, 6, 1)) + rng.normal(size=(trials, 6, 10)):
        told, naive = over_domains(x), ttest(x.ravel(), 0)
        hits += told.low <= 0 <= told.high
        pooled += naive.pvalue >= 0.05
    assert_covers(hits, trials)
    assert pooled / trials < 0.7


def test_over_seeds_covers_these_domains():
    rng, trials = np.random.default_rng(2), 1500
    truth, hits = rng.normal(size=(trials, 4)), 0
    for domains, x in zip(truth, truth[:, :, None] + rng.normal(size=(trials, 4, 6)), strict=True):
        told = over_seeds(x)
        hits += told.low <= domains.mean() <= told.high
    assert_covers(hits, trials)


def test_crossed_covers_new_searches_on_new_domains():
    rng, trials, hits = np.random.default_rng(3), 1500, 0
    for _ in range(trials):
        told = crossed(rng.normal(size=(10, 1)) + rng.normal(size=(1, 8)) + rng.normal(size=(10, 8)))
        hits += told.low <= 0 <= told.high
    assert 0.94 < hits / trials < 0.99  # a little wide, by the smaller count


def test_sign_flip_p_values_are_uniform_without_an_effect():
    rng = np.random.default_rng(4)
    p = np.array([sign_flip(x)[0] for x in rng.standard_t(2, size=(3000, 9))])
    for level in (0.05, 0.25, 0.5):
        attainable = math.floor(level * 2**8) / 2**8
        assert_covers(int((p > attainable).sum()), len(p), 1 - attainable)


# --- the champion -------------------------------------------------------------------------------


def judged(rng, candidates, domains, spread, replicates=2, noise=1.0):
    """True losses [K] (the recommendation is as good as any) and judged losses [K, N, R]."""
    truth = spread * rng.normal(size=candidates)
    cells = truth[:, None, None] + rng.normal(size=(domains, replicates))
    return truth, cells + noise * rng.normal(size=(candidates, domains, replicates))


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_a_champion_promises_what_it_keeps(spread):
    rng, promised, luckiest, regret = np.random.default_rng(5), [], [], []
    for _ in range(600):
        truth, losses = judged(rng, 12, 4, spread)
        choice = likely_best(losses)
        naive = losses.mean((1, 2))
        promised.append(choice.loss - truth[choice.index])
        luckiest.append(naive.min() - truth[naive.argmin()])
        regret.append(truth[choice.index] - truth[naive.argmin()])
    assert np.mean(luckiest) < -0.15
    assert abs(np.mean(promised)) < 0.25 * abs(np.mean(luckiest))
    assert np.mean(regret) < 0.1  # shrinking keeps nearly all that choosing gains


def test_on_pure_noise_the_recommendation_mostly_stays():
    rng = np.random.default_rng(6)
    chosen = [likely_best(judged(rng, 12, 5, 0.0)[1], prior=7).index for _ in range(400)]
    assert np.mean(np.array(chosen) == 7) > 0.7


def test_a_clear_winner_wins_and_is_not_oversold():
    rng = np.random.default_rng(7)
    truth, losses = judged(rng, 6, 5, 0.0, noise=0.1)
    losses[4] -= 3
    choice = likely_best(losses)
    assert choice.index == 4 and choice.probability_best[4] > 0.99 and choice.p_value is not None
    assert choice.p_value < 1e-6
    assert choice.naive_loss <= choice.loss < choice.posterior[0] - 2.5
    assert (choice.unit, choice.count) == ("domain", 5)


def test_shrinkage_equals_the_closed_form_when_noise_is_equal():
    # three candidates, residuals of equal size: tau^2 = spread of the means - noise
    base = np.array([[1.0, -1, 0, 0], [0, 1.0, -1, 0], [-1, 0, 1.0, 0]]) * 0.5
    means = np.array([0.0, 2.0, 4.0])
    choice = likely_best(base + means[:, None], prior=2)
    noise = base.var(1, ddof=1)[0] / 4 * 3 / 2
    assert choice.between == pytest.approx(math.sqrt(4 - noise))
    np.testing.assert_allclose(choice.posterior, 2 + (means - 2) * (4 - noise) / 4)
    assert choice.index == 0 and choice.naive_loss == pytest.approx(0)


def test_probability_best_agrees_with_draws():
    _, losses = judged(np.random.default_rng(8), 5, 6, 0.6)
    choice = likely_best(losses, evidence=1.0)
    paired = losses.mean(2)
    own = (paired - paired.mean(0)).var(1, ddof=1) / 6 * 5 / 4
    noise = (5 * own + 8 * own.mean()) / 13
    width = np.sqrt(choice.between**2 * noise / (choice.between**2 + noise))
    sample = choice.posterior + width * draws(200_000, 5)
    share = np.bincount(sample.argmin(1), minlength=5) / len(sample)
    np.testing.assert_allclose(choice.probability_best, share, atol=0.005)
    assert choice.probability_best.sum() == pytest.approx(1)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.01, 1e6))
def test_the_choice_does_not_depend_on_order_or_shift(seed, spread):
    rng = np.random.default_rng(seed)
    _, losses = judged(rng, 5, 4, spread)
    order = rng.permutation(5)
    choice = likely_best(losses, prior=int(order[0]))
    other = likely_best(losses[order] + draws(4, 1, seed=seed), prior=0)  # shifted per domain
    assert order[other.index] == choice.index
    np.testing.assert_allclose(other.probability_best, choice.probability_best[order], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_failed_candidates_cannot_win(bad):
    _, losses = judged(np.random.default_rng(9), 5, 4, 1.0)
    losses[2] -= 100
    losses[2, 1, 0] = bad
    choice = likely_best(losses)
    rest = likely_best(np.delete(losses, 2, axis=0))
    assert choice.index in (0, 1, 3, 4) and choice.loss == rest.loss
    assert choice.posterior[2] == np.inf and choice.probability_best[2] == 0
    assert choice.failed.tolist() == [False, False, True, False, False]
    assert "1 of 5 candidates failed" in choice.note
    assert "recommendation itself failed" in likely_best(losses, prior=2).note


def test_nothing_left_to_choose_from():
    with pytest.raises(ValueError, match="All 3 candidates failed"):
        likely_best(np.full((3, 2, 2), np.nan))
    losses = np.ones((2, 3, 1))
    losses[0] = np.nan
    choice = likely_best(losses)
    assert (choice.index, choice.loss, choice.p_value) == (1, 1.0, None)
    with pytest.raises(ValueError, match="prior in 0..1"):
        likely_best(losses, prior=2)
    with pytest.raises(ValueError, match="evidence"):
        likely_best(losses, evidence=0.0)
    with pytest.raises(ValueError, match="candidates, domains, replicates"):
        likely_best(np.ones(3))


def test_few_cells_degenerate_gracefully():
    single = likely_best([[3.0], [1.0], [2.0]])  # one cell each: no idea of the noise
    assert (single.index, single.loss, single.p_value) == (0, 3.0, None)
    equal = likely_best(np.full((4, 3, 2), 0.1), prior=2)
    assert (equal.index, equal.between, equal.p_value) == (2, 0.0, 1.0)
    exact = likely_best(np.array([[3.0], [1.0], [2.0]]) + np.arange(4), prior=2)  # no noise
    assert (exact.index, exact.loss, exact.p_value) == (1, 2.5, 0.0)
    _, losses = judged(np.random.default_rng(10), 4, 1, 5.0, replicates=8)
    assert (likely_best(losses).unit, likely_best(losses).count) == ("replicate", 8)


def test_statistics_needs_neither_jax_nor_scipy_to_import():
    code = "import sys, evometa.statistics; sys.exit('jax' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The section "reliability" of evals.py by simulation, against closed forms and scipy.

    python -m pytest -q tests/test_reliability.py   # 25 s on one core, no torch

Coverage is enumerated where the counts are discrete (no chance in it), simulated with fixed seeds elsewhere.
Exact intervals cover at least 95 % at every rate, more where counts are few: the settings here have enough.
"""
import math

import numpy as np
import pytest
from scipy import stats

import evals

def test_first_accepted_serves_every_threshold_from_one_pool():
    scores = np.random.default_rng(3).random((200_000, 4, 6))  # a uniform score: a = tau
    for tau in 0.2, 0.5, 0.9:
        found = evals.first_accepted(scores, tau)
        assert found.shape == (200_000, 4) and found.min() == 1 and found.max() == 6
        assert found.mean() == pytest.approx((1 - (1 - tau) ** 6) / tau, rel=0.01)
    assert evals.first_accepted([[0.5, 0.4], [0.4, 0.1], [0.9, 0.8]], 0.5).tolist() == [2, 1, 2]  # below
    assert evals.first_accepted([[-math.inf, math.inf]], -9).tolist() == [1]  # logits


# ---- exact bounds

def poisson(mean):
    k = np.arange(stats.poisson.ppf(1 - 1e-9, mean) + 1).astype(int)
    return k, stats.poisson.pmf(k, mean)


def test_binomial_bound_is_scipys_and_covers():
    large = [(0, 5000), (5, 10**5), (10**5 - 1, 10**5), (5 * 10**4, 10**5)]
    for k, n in [(0, 7), (1, 7), (7, 7), (3, 100), *large]:
        test, found = stats.binomtest(k, n), evals.binomial_bound(k, n)
        assert found["ci95"] == pytest.approx(test.proportion_ci(method="exact")) and found["value"] == k / n
        less = stats.binomtest(k, n, alternative="less").proportion_ci(method="exact")
        assert found["upper"] == pytest.approx(less.high)
    n = 400
    ends = np.array([evals.binomial_bound(k, n)["ci95"] for k in range(n + 1)])
    upper = np.array([evals.binomial_bound(k, n)["upper"] for k in range(n + 1)])
    P = np.linspace(0.05, 0.5, 91)
    weight = stats.binom.pmf(np.arange(n + 1), n, P[:, None])  # (P, k)
    both = (weight * ((ends[:, 0] <= P[:, None]) & (P[:, None] <= ends[:, 1]))).sum(1)
    one = (weight * (P[:, None] <= upper)).sum(1)
    assert both.min() >= 0.95 and one.min() >= 0.95 and both.mean() < 0.97 and one.mean() < 0.965


def test_zero_failures_and_the_labels_that_a_claim_takes():
    for n in 1, 30, 100_000:
        assert evals.zero_failures(n) == pytest.approx(evals.binomial_bound(0, n)["upper"])
    assert round(evals.zero_failures(100_000), 6) == 0.00003  # the paper's test set: 0.0030 %
    for p in 0.1, 0.01, 3e-5:
        n = evals.labels_needed(p)
        assert evals.zero_failures(n) <= p < evals.zero_failures(n - 1)
    assert evals.labels_needed(0.5, 0.99) == 7  # 0.5^7 < 0.01


# ---- the adversary's time

@pytest.mark.parametrize("mean", [25, 40, 60.5])
def test_time_to_find_covers(mean):
    """As many minutes as `mean` finds take on average, and until as many finds as that."""
    k, weight = poisson(mean)
    ends = np.array([evals.time_to_find(int(n), mean)["ci95"] for n in k])  # a minute a find is the truth
    assert 0.95 <= (weight * ((ends[:, 0] <= 1) & (1 <= ends[:, 1]))).sum() < 0.97
    finds = int(mean)
    low, high = evals.time_to_find(finds, 1)["ci95"]
    total = stats.gamma(finds)
    assert 0.95 <= total.cdf(1 / low) - total.cdf(1 / high) < 0.97
    for k in 1, 2, finds, 5000:
        found = evals.time_to_find(k, 130)
        assert found["ci95"] == pytest.approx(260 / stats.chi2.ppf([0.975, 0.025], [2 * k + 2, 2 * k]))
        assert found["value"] == 130 / k and found["exposure"] == 130
    none = evals.time_to_find(0, 100)
    assert none["value"] == none["ci95"][1] == math.inf
    assert none["ci95"][0] == pytest.approx(100 / -math.log(0.025))


@pytest.mark.parametrize("mean0, mean1, ratio", [(40, 40, 1), (50, 25, 2), (30, 45, 0.5)])
def test_time_ratio_covers_and_agrees_with_scipy(mean0, mean1, ratio):
    T0, T1 = mean0, mean1 * ratio  # a minute a find in arm 0, `ratio` minutes in arm 1
    (k0, w0), (k1, w1) = (tuple(x[w > 1e-5] for x in (k, w)) for k, w in map(poisson, (mean0, mean1)))
    ends = np.array([[evals.time_ratio(int(a), T0, int(b), T1)["ci95"] for b in k1] for a in k0])
    inside = (ends[..., 0] <= ratio) & (ratio <= ends[..., 1])
    assert 0.94 < (np.outer(w0, w1) * inside).sum() < 0.97
    found = evals.time_ratio(12, 130, 9, 260)
    p = np.array(stats.binomtest(12, 21).proportion_ci(method="exact"))
    assert found["ci95"] == pytest.approx(p / (1 - p) * 2) and found["value"] == pytest.approx(8 / 3)
    for a, b in (40, 20), (25, 20), (22, 60):  # scipy's test of two Poisson rates: the same verdict
        lo, hi = evals.time_ratio(a, 300, b, 300)["ci95"]
        assert (not lo <= 1 <= hi) == (stats.poisson_means_test(a, 300, b, 300).pvalue < 0.05), (a, b)


def test_time_ratio_at_the_edges():
    assert evals.time_ratio(0, 5, 3, 5)["ci95"][0] == 0 == evals.time_ratio(0, 5, 3, 5)["value"]
    never = evals.time_ratio(3, 5, 0, 5)
    assert never["value"] == never["ci95"][1] == math.inf and 0 < never["ci95"][0] < math.inf
    nothing = evals.time_ratio(0, 5, 0, 5)
    assert math.isnan(nothing["value"]) and nothing["ci95"] == [0, math.inf]


def hunts(n, ratio, rng, budget=40):
    """Times to a find on n targets in two arms, cut off at the budget; targets differ fivefold."""
    hard = rng.choice([4, 8, 20], n)
    times = rng.exponential(np.stack([hard, hard * ratio]))
    return np.minimum(times, budget), times < budget


def test_paired_time_ratio_covers_where_targets_differ():
    T, found = hunts(2_000_000, 2, np.random.default_rng(4))
    truth = (T[1].sum() / found[1].sum()) / (T[0].sum() / found[0].sum())
    rng, inside = np.random.default_rng(5), 0
    for _ in range(1000):
        T, found = hunts(120, 2, rng)
        low, high = evals.paired_time_ratio(T[0], found[0], T[1], found[1], n_boot=400)["ci95"]
        inside += low <= truth <= high
    assert 0.93 < inside / 1000 < 0.97, inside


def test_paired_time_ratio_on_small_numbers():
    found = evals.paired_time_ratio([1, 2, 3], [1, 1, 1], [2, 4, 6], [1, 1, 1])
    assert found["value"] == 2 and found["ci95"] == [2, 2]  # each target took twice as long: nothing varies
    never = evals.paired_time_ratio([1, 2], [1, 0], [5, 5], [0, 0])
    assert never["value"] == never["ci95"][1] == math.inf
    slow = evals.paired_time_ratio([5, 5, 5, 5], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 0, 1])
    assert slow["value"] == pytest.approx(1 / 15) and slow["ci95"][0] == 0


def test_logrank_is_scipys():
    rng = np.random.default_rng(6)
    p = []
    for i in range(300):
        T, found = np.round(hunts(20, 1, rng)[0], 0), rng.random((2, 20)) < 0.8  # rounded: with ties
        p.append(evals.logrank_p(T[0], found[0], T[1], found[1]))
        if i < 20:
            arms = [stats.CensoredData.right_censored(*arm) for arm in zip(T, ~found)]
            assert p[-1] == pytest.approx(stats.logrank(*arms).pvalue)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09  # equal arms
    T, found = hunts(200, 3, rng)
    assert evals.logrank_p(T[0], found[0], T[1], found[1]) < 1e-6
    assert math.isnan(evals.logrank_p([1, 2], [0, 0], [3], [0]))  # nobody found anything


# ---- quality

def test_preference_splits_ties_and_covers():
    assert evals.preference(10, 5, 20)["value"] == 0.625
    assert evals.preference(0, 20, 20) == evals.preference(10, 0, 20)  # nobody can tell: as a coin
    n, k = 100, np.arange(101)
    ends = np.array([evals.preference(int(wins), 0, n)["ci95"] for wins in k])
    P = np.linspace(0.3, 0.7, 81)[:, None]
    cover = (stats.binom.pmf(k, n, P) * ((ends[:, 0] <= P) & (P <= ends[:, 1]))).sum(1)
    assert 0.93 < cover.min() and 0.94 < cover.mean() < 0.96


@pytest.mark.parametrize("name, args", [
    ("first_accepted", ([[0.1, None]], 0.5)), ("first_accepted", ([[]], 0.5)), ("first_accepted", (0.1, 0.5)),
    ("binomial_bound", (2, 1)), ("binomial_bound", (0, 0)),
    ("time_to_find", (-1, 5)), ("time_to_find", (1, 0)),
    ("time_ratio", (1, 0, 1, 5)), ("time_ratio", (-1, 5, 1, 5)),
    ("paired_time_ratio", ([1], [1], [1, 2], [1, 1])), ("paired_time_ratio", ([1], [0], [1], [0])),
    ("paired_time_ratio", ([0], [1], [1], [1]))])
def test_what_makes_no_sense_is_an_error(name, args):
    with pytest.raises(ValueError, match=f"^{name}: "):
        getattr(evals, name)(*args)

"""`spend` against brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvq_jax.calibration.spending import spend

OPTION = st.tuples(st.integers(0, 20), st.floats(0, 100, allow_subnormal=False))
CHOICES = st.lists(st.lists(OPTION, min_size=1, max_size=5), min_size=1, max_size=4)


def totals(choices, chosen):
    options = [own[i] for own, i in zip(choices, chosen, strict=True)]
    return sum(bits for bits, _ in options), sum(cost for _, cost in options)


def brute_force(choices, budget):
    """The least cost within the budget."""
    everything = (totals(choices, x) for x in itertools.product(*map(_places, choices)))
    return min(cost for bits, cost in everything if bits <= budget)


def _places(own):
    return range(len(own))


@given(CHOICES, st.integers(0, 60))
def test_within_one_step_of_the_optimum(choices, extra):
    cheapest = [min(own) for own in choices]
    budget = sum(bits for bits, _ in cheapest) + extra
    chosen = spend(choices, budget)
    bits, cost = totals(choices, chosen)
    assert bits <= budget
    least = brute_force(choices, budget)
    gap = max(
        first[1] - min(cost for _, cost in own)
        for first, own in zip(cheapest, choices, strict=True)
    )
    assert least - 1e-9 <= cost <= least + gap + 1e-9
    assert spend(choices, budget) == chosen


@given(CHOICES)
def test_everything_where_bits_abound(choices):
    _, cost = totals(choices, spend(choices, 1000))
    assert cost == sum(min(cost for _, cost in own) for own in choices)


@given(
    st.lists(st.lists(st.floats(0, 9), min_size=0, max_size=4), min_size=1, max_size=4),
    st.integers(0, 16),
)
def test_the_optimum_for_steps_of_one_bit_and_falling_gains(gains, budget):
    choices = []
    for own in gains:
        costs = [50.0 - sum(sorted(own)[::-1][:n]) for n in range(len(own) + 1)]
        choices.append(list(enumerate(costs)))
    bits, cost = totals(choices, spend(choices, budget))
    assert bits <= budget
    assert cost == pytest.approx(brute_force(choices, budget))


@pytest.mark.parametrize(
    ("choices", "budget", "expected"),
    [
        ([], 0, []),
        ([[(3, 1.0)]], 3, [0]),
        ([[(8, 0.0), (2, 5.0), (2, 4.0)]], 7, [2]),
        # (4, 4.0) lies above the line from (2, 5.0) to (8, 0.0), but fits.
        ([[(2, 5.0), (4, 4.0), (8, 0.0)]], 7, [1]),
        ([[(2, 5.0), (4, 4.0), (8, 0.0)]], 8, [2]),
        # The step of the first does not fit: the second gets what is left.
        ([[(1, 9.0), (9, 0.0)], [(1, 2.0), (2, 1.5)]], 9, [0, 1]),
        # Equal gains: the first parameter.
        ([[(1, 2.0), (2, 1.0)], [(1, 2.0), (2, 1.0)]], 3, [1, 0]),
        # More bits, no less cost.
        ([[(1, 1.0), (2, 1.0), (3, 2.0)]], 9, [0]),
    ],
)
def test_by_hand(choices, budget, expected):
    assert spend(choices, budget) == expected


def test_a_budget_that_is_too_small():
    with pytest.raises(ValueError, match="budget: expected at least 5, got 4"):
        spend([[(2, 1.0), (9, 0.0)], [(3, 1.0)]], 4)

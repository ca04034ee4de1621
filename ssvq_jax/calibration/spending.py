"""A budget of bits spent where it saves most: choices along the lower convex hulls."""

import itertools
from collections.abc import Sequence

Choices = Sequence[tuple[int, float]]
"""`(bits, cost)` of every option of one parameter."""


def spend(choices: Sequence[Choices], budget: int) -> list[int]:
    """Choose one option each, of least cost in all within a budget of bits.

    All begin with the fewest bits. Then steps along the lower convex hull of
    `(bits, cost)` are taken by falling gain per bit, for all parameters together, until
    one does not fit: a Lagrangian's choice, the best there is for the bits it takes.
    What is left goes to the best gain per bit that still fits, off the hull, too.

    The cost exceeds the least by no more than the gain of the first step that did not
    fit, one step of one parameter; without such a step it is the least.

    Args:
      choices: `(bits, cost)` of the options, for every parameter.
      budget: Bits to spend.

    Returns:
      The index of the option of every parameter. The same for the same arguments: of
      equal ones the first.

    Raises:
      ValueError: Fewer bits than all of the cheapest options take.

    Examples:
      >>> spend([[(2, 1.0), (4, 0.1)], [(2, 9.0), (4, 0.9)]], budget=6)
      [0, 1]

    References:
      Shoham and Gersho 1988, Efficient bit allocation for an arbitrary set of
      quantizers.
    """
    hulls = [_hull(options) for options in choices]
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(choices[i][option][0] for i, option in enumerate(chosen))
    if left < 0:
        raise ValueError(f"budget: expected at least {budget - left}, got {budget}")
    steps = sorted(
        (-_slope(choices[i][now], choices[i][then]), i, place)
        for i, hull in enumerate(hulls)
        for place, (now, then) in enumerate(itertools.pairwise(hull))
    )
    for _, i, place in steps:
        now, then = hulls[i][place : place + 2]
        bits = choices[i][then][0] - choices[i][now][0]
        if bits > left:
            break
        chosen[i] = then
        left -= bits
    while True:
        upgrades = [
            (-_slope(options[now], option), i, then)
            for i, (options, now) in enumerate(zip(choices, chosen, strict=True))
            for then, option in enumerate(options)
            if option[1] < options[now][1] and 0 < option[0] - options[now][0] <= left
        ]
        if not upgrades:
            return chosen
        _, i, then = min(upgrades)
        left -= choices[i][then][0] - choices[i][chosen[i]][0]
        chosen[i] = then


def _hull(options: Choices) -> list[int]:
    """Options with ever more bits, less cost, and no more gain per bit than before."""
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (*options[i], i)):
        if hull and options[i][1] >= options[hull[-1]][1]:
            continue
        while len(hull) > 1 and (
            _slope(options[hull[-2]], options[hull[-1]])
            < _slope(options[hull[-1]], options[i])
        ):
            hull.pop()
        hull.append(i)
    return hull


def _slope(now: tuple[int, float], then: tuple[int, float]) -> float:
    """Cost saved per bit more."""
    return (now[1] - then[1]) / (then[0] - now[0])

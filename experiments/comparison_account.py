"""The comparison's account: what agrees with the paper, and what does not."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments import comparison_text as text
from experiments import markdown
from experiments.comparison_numbers import Run, difference, gap, named, seeds, share
from experiments.methods import BITS, TITLES

# One method against another, and the paper's points between them at 1.5 bits.
_CLAIMS = (
    ("vq", "float", "-25"),
    ("fixed", "vq", "0"),
    ("learned", "vq", "+7"),
    ("frozen", "learned", "+8"),
    ("frozen", "vq", "+15"),
    ("frozen", "mvq", ""),
    ("frozen", "uniform", ""),
)
# SSVQ against a method; EfficientNet-Lite0 and MobileNet-V2.
_FEW_CLAIMS = (("vq", "", ""), ("mvq", "+1.3", "+0.8"), ("uniform", "", ""))

_Runs = Callable[[str, str], list[Run]]


def account(results: dict[str, dict[str, Any]]) -> str:
    """The section, from the results of the headline, the bits and few images."""
    longest, sweep = seeds(results["cifar10_headline"]), results["cifar10_bits"]

    def ours(method: str, bits: str) -> list[Run]:
        if bits in ("1.25", "1.5"):
            return longest.get((method, "32" if method == "float" else bits), [])
        return named(sweep, method if method == "float" else f"{method}-{bits}")

    def few(method: str, bits: str) -> list[Run]:
        return named(results["few_images"], f"{method}-{bits}")

    def lost(bits: str) -> str:
        mean, _ = difference(longest["float", "32"], longest["vq", bits])
        return f"{100 * mean:.1f}"

    compared = [(f"{TITLES[a]} - {TITLES[b]}", a, b, paper) for a, b, paper in _CLAIMS]
    matched = [
        (f"{net}: SSVQ - {TITLES[b]}", f"{net}-ssvq", f"{net}-{b}", papers[i])
        for i, net in enumerate(("efficientnet_lite0", "mobilenet_v2_100_unfolded"))
        for b, *papers in _FEW_CLAIMS
    ]
    return text.ACCOUNT.format(
        vq_more=lost("1.5"),
        vq_fewer=lost("1.25"),
        frozen=share(longest["frozen", "1.5"], "frozen"),
        compared=_gaps(compared, ours, [f"{b:g}" for b in BITS]),
        few=_gaps(matched, few, ["1.5", "2", "3", "4"]),
    )


def _gaps(
    claims: Iterable[tuple[str, str, str, str]], runs: _Runs, bits: Sequence[str]
) -> str:
    """A row for every claim: title, one method, the other, the paper's points."""
    rows = [
        [title, paper, *(gap(runs(one, b), runs(other, b)) for b in bits)]
        for title, one, other, paper in claims
    ]
    return markdown.table(["points", "paper", *(f"{b} bits" for b in bits)], rows)

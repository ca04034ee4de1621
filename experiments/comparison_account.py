"""The comparison's account: what agrees with the paper, and what does not."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments import comparison_text as text
from experiments import markdown
from experiments.comparison_numbers import (
    FEW_NETWORKS,
    Run,
    difference,
    gap,
    named,
    seeds,
    share,
)
from experiments.methods import BITS, TITLES, at

# One method against another, and the paper's points between them at 1.5 bits.
_CLAIMS = (
    ("vq", "float", "-25"),
    ("fixed", "vq", "~0"),
    ("learned", "vq", "~+7"),
    ("frozen", "vq", "~+12 to +15"),
    ("frozen", "learned", "~+8"),
    ("learned", "mvq", ""),
    ("learned", "uniform", ""),
    ("learned", "float", ""),
)
# SSVQ against a method; the paper's points for both networks.
_FEW_CLAIMS = (("vq", "", ""), ("mvq", "+1.3", "+0.8"), ("uniform", "", ""))

SOURCES = (
    "cifar10_headline",
    "cifar10_bits",
    "cifar10_3_bits",
    "cifar10_ablation",
    "dominance",
    "few_images",
)
"""Configs whose results the account takes."""

_Runs = Callable[[str, str], list[Run]]


def account(results: dict[str, dict[str, Any]]) -> str:
    """The section, from the results that `SOURCES` names."""
    longest, images = seeds(results["cifar10_headline"]), results["few_images"]
    ablation, cosines = results["cifar10_ablation"], results["dominance"]["methods"]

    def long(method: str, bits: str) -> list[Run]:
        return longest.get((method, "32" if method == "float" else bits), [])

    def short(method: str, bits: str) -> list[Run]:
        name = method if method == "float" else f"{method}-{bits}"
        return named(results["cifar10_3_bits" if bits == "3" else "cifar10_bits"], name)

    def few(method: str, bits: str) -> list[Run]:
        return named(images, f"{method}-{bits}")

    def points(ours: list[Run], theirs: list[Run]) -> str:
        return f"{100 * difference(ours, theirs)[0]:.1f}"

    def back(bits: str) -> str:
        gained, _ = difference(long("learned", bits), long("vq", bits))
        lost, _ = difference(long("float", bits), long("vq", bits))
        return f"{100 * gained / lost:.0f} %" if lost else "nothing"

    compared = [(f"{TITLES[a]} - {TITLES[b]}", a, b, paper) for a, b, paper in _CLAIMS]
    columns = [
        (f"{b:g} bits, 3 epochs", short, f"{b:g}") for b in BITS if "vq" in at(b)
    ]
    columns += [(f"{b} bits, 10 epochs", long, b) for b in ("1.25", "1.5")]
    matched = [
        (f"{title}: SSVQ - {TITLES[b]}", f"{net}-ssvq", f"{net}-{b}", papers[i])
        for i, (net, title) in enumerate(FEW_NETWORKS.items())
        for b, *papers in _FEW_CLAIMS
    ]
    few_columns = [(f"{b} bits", few, b) for b in ("1.5", "2", "3", "4")]
    net = next(iter(FEW_NETWORKS))
    tenth, tenfold = (named(ablation, f"sign_rate-{x}-learned") for x in ("0.1", "10"))
    moved = "an epoch: bottom 60 %"
    return text.ACCOUNT.format(
        learned_more=points(long("learned", "1.5"), long("vq", "1.5")),
        learned_fewer=points(long("learned", "1.25"), long("vq", "1.25")),
        back_more=back("1.5"),
        back_fewer=back("1.25"),
        fewer_bits=points(long("learned", "1.25"), long("vq", "1.5")),
        vq_more=points(long("float", "1.5"), long("vq", "1.5")),
        vq_fewer=points(long("float", "1.25"), long("vq", "1.25")),
        freezing=gap(long("frozen", "1.5"), long("learned", "1.5")),
        cosine=f"{cosines['learned'][moved]:.2f}",
        cosine_vq=f"{cosines['vq'][moved]:.2f}",
        tenth=points(short("learned", "1.5"), tenth),
        tenfold=points(short("learned", "1.5"), tenfold),
        tenfold_flipped=share(tenfold, "flipped"),
        frozen=share(long("frozen", "1.5"), "frozen"),
        flipped=share(long("frozen", "1.5"), "flipped"),
        uniform=gap(long("uniform", "2"), long("float", "2")),
        few_vq=points(few(f"{net}-vq", "1.5"), few(f"{net}-ssvq", "1.5")),
        few_flipped=share(few(f"{net}-ssvq", "1.5"), "flipped"),
        compared=_gaps(compared, columns),
        few=_gaps(matched, few_columns),
    )


def _gaps(
    claims: Iterable[tuple[str, str, str, str]],
    columns: Sequence[tuple[str, _Runs, str]],
) -> str:
    """A row for every claim: title, one method, the other, the paper's points."""
    rows = [
        [
            title,
            paper,
            *(gap(runs(one, bits), runs(other, bits)) for _, runs, bits in columns),
        ]
        for title, one, other, paper in claims
    ]
    return markdown.table(["points", "paper", *(c[0] for c in columns)], rows)

"""The comparison as a page: its tables, from the results."""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments import comparison_text as text
from experiments.methods import BITS, SIGNED, TITLES

Run = dict[str, Any]
Results = dict[str, dict[str, Any]]

# Freezings in a run; the paper's interval in its 12,500 steps, and what it reports.
_INTERVALS = (
    (125, "100", "60.9", ""),
    (62, "200", "61.5", ""),
    (25, "500", "61.9", "60.8"),
    (12, "1,000", "61.6", ""),
)
# The paper's top-1 on ImageNet, DeiT-Tiny at 21x.
_PAPER = {
    ("vq", "1.5"): "~47",
    ("fixed", "1.5"): "~47",
    ("learned", "1.5"): "~54",
    ("frozen", "1.5"): "61.9",
}


def page(results: Results) -> str:
    """The page, from the results of the configs by their names."""
    sections = {
        "deit_96_cifar10": _float,
        "cifar10_headline": _headline,
        "cifar10_bits": _bits,
        "cifar10_ablation": _ablation,
        "dominance": _dominance,
        "deit_tiny_cifar10": _exact_shape,
        "few_images": _few_images,
        "cifar10_rates": _rates,
        "cifar10_mvq": _masks,
        "cifar10_thresholds": _thresholds,
    }
    parts = [text.INTRODUCTION]
    for name, section in sections.items():
        if name in results:
            parts.append(section(results))
        else:
            parts.append(f"## Not run yet: {name}\n")
    return "\n".join(parts)


def accuracy(counts: dict[str, Any]) -> float:
    """Share of the images whose class comes first."""
    return counts["top1"] / counts["images"]


def interval(counts: dict[str, Any]) -> float:
    """Half of the 95 % interval of `accuracy`, by the normal approximation."""
    share = accuracy(counts)
    return 1.96 * math.sqrt(share * (1 - share) / counts["images"])


def difference(ours: Iterable[Run], theirs: Iterable[Run]) -> tuple[float, float]:
    """Mean difference in accuracy, image by image, and half of its 95 % interval.

    Args:
      ours: Runs of one method with different seeds.
      theirs: Those of another method, on the same test images.
    """
    means = []
    for runs in (ours, theirs):
        bits = [_right(run) for run in runs]
        means.append(np.mean(bits, axis=0))
    gaps = means[0] - means[1]
    spread = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    return float(np.mean(gaps)), 1.96 * spread


def seeds(runs: dict[str, Run]) -> dict[tuple[str, str], list[Run]]:
    """The headline's runs METHOD-BITS-SEED, by method and bits."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for name, run in runs.items():
        method, bits, _ = name.split("-")
        groups.setdefault((method, bits), []).append(run)
    return groups


def _right(run: Run) -> np.ndarray:
    """Whether each test image was right, 0 or 1."""
    packed = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
    return np.unpackbits(packed, count=run["test"]["images"]).astype(np.float64)


def _float(results: Results) -> str:
    runs = results["deit_96_cifar10"]
    run = runs["float"]
    epochs = run["experiment"]["optimization"]["epochs"]
    images = run["validation"]["images"]
    last = [100 * x["validation_top1"] / images for x in run["curve"][-10:]]
    return _filled(
        text.FLOAT,
        "deit_96_cifar10",
        runs,
        epochs=epochs,
        test=_percent(run["test"]),
        last=f"{min(last):.1f} to {max(last):.1f} %",
    )


def _headline(results: Results) -> str:
    runs = results["cifar10_headline"]
    groups = seeds(runs)

    def table(bits: str, *others: tuple[str, str]) -> str:
        rows = []
        for key in (*others, *((method, bits) for method in TITLES)):
            if key not in groups:
                continue
            own = groups[key]
            gap = ""
            if key[0] != "vq" and ("vq", bits) in groups:
                mean, half = difference(own, groups["vq", bits])
                gap = f"{100 * mean:+.2f} ± {100 * half:.2f}"
            tests = [100 * accuracy(run["test"]) for run in own]
            rows.append(
                [
                    TITLES[key[0]],
                    f"{own[0].get('bits_per_weight', 32):.3f}",
                    f"{own[0].get('ratio', 1):.1f}x",
                    _percent(own[0]["before"]),
                    f"{np.mean(tests):.2f}",
                    " ".join(f"{x:.2f}" for x in tests),
                    gap,
                    _share(own, "flipped"),
                    _share(own, "frozen"),
                    _PAPER.get(key, ""),
                ]
            )
        header = ["", "bits", "ratio", "before, %", "tuned, %", "seeds", "to VQ"]
        return _table([*header, "flipped", "frozen", "paper, %"], rows)

    return _filled(
        text.HEADLINE,
        "cifar10_headline",
        runs,
        more=table("1.5", ("float", "32"), ("uniform", "2")),
        fewer=table("1.25"),
        half=f"{100 * interval(groups['float', '32'][0]['test']):.1f}",
    )


def _bits(results: Results) -> str:
    runs = results["cifar10_bits"]
    rows = []
    for method in TITLES:
        for bits in BITS:
            run = runs.get(f"{method}-{bits:g}")
            if run is None:
                continue
            rows.append(
                [
                    TITLES[method],
                    f"{run['bits_per_weight']:.3f}",
                    f"{run['ratio']:.1f}x",
                    _percent(run["before"]),
                    f"{_percent(run['test'])} ± {100 * interval(run['test']):.1f}",
                ]
            )
    header = ["method", "bits", "ratio", "before, %", "tuned, %"]
    return _filled(
        text.BITS,
        "cifar10_bits",
        runs,
        table=_table(header, rows),
        float=_percent(runs["float"]["test"]),
    )


def _ablation(results: Results) -> str:
    runs = results["cifar10_ablation"]
    usual, longest = (
        results.get(name, {}) for name in ("cifar10_bits", "cifar10_headline")
    )

    def tested(run: Run | None) -> str:
        return "" if run is None else _percent(run["test"])

    rows = []
    for method in ("vq", *SIGNED):
        found = runs.get(f"epochs-1-{method}"), usual.get(f"{method}-1.5")
        rows.append(
            [TITLES[method], *map(tested, (*found, longest.get(f"{method}-1.5-0")))]
        )
    by_epochs = _table(["epochs", "1", "3", "10"], rows)
    rows = []
    for checks, interval, majority, average in _INTERVALS:
        found = [runs.get(f"interval-{checks}-{d}") for d in ("majority", "average")]
        if found[0] is None:
            found[0] = usual.get("frozen-1.5")
        rows.append([checks, *map(tested, found), interval, majority, average])
    header = ["freezings", "majority", "average", "paper: interval", "majority"]
    by_interval = _table([*header, "average"], rows)
    rows = []
    for title, run in (
        ("as tuned", usual.get("learned-1.5")),
        ("sign rate / 10", runs.get("sign_rate-0.1")),
        ("sign rate * 10", runs.get("sign_rate-10")),
        ("latent scale / 10", runs.get("latent_scale-0.1")),
        ("latent scale * 10", runs.get("latent_scale-10")),
    ):
        flipped = "" if run is None else f"{100 * run['flipped']:.1f}"
        rows.append([title, tested(run), flipped])
    by_rate = _table(["SSVQ, learned signs", "tuned, %", "flipped, %"], rows)
    return _filled(
        text.ABLATION,
        "cifar10_ablation",
        runs,
        epochs=by_epochs,
        interval=by_interval,
        rate=by_rate,
    )


def _dominance(results: Results) -> str:
    found = results["dominance"]
    header = list(found["methods"]["vq"])
    rows = [
        [TITLES[method], *(f"{row[k]:.2f}" if k in row else "" for k in header)]
        for method, row in found["methods"].items()
    ]
    return text.DOMINANCE.format(
        table=_table(["", *header], rows), command=found["command"]
    )


def _exact_shape(results: Results) -> str:
    runs = results["deit_tiny_cifar10"]
    rows = [
        [
            name,
            f"{run.get('bits_per_weight', 32):.3f}",
            f"{run.get('model_ratio', 1):.1f}x",
            _percent(run["before"]),
            _percent(run["test"]),
            f"{run['bytes']:,}",
        ]
        for name, run in runs.items()
    ]
    header = ["method", "bits", "whole model", "before, %", "tuned, %", "file, bytes"]
    return _filled(
        text.EXACT,
        "deit_tiny_cifar10",
        runs,
        table=_table(header, rows),
    )


def _few_images(results: Results) -> str:
    runs = results["few_images"]
    networks = sorted({name.split("-")[0] for name in runs})
    tables = []
    for network in networks:
        rows = []
        for name, run in runs.items():
            own, _, method = name.partition("-")
            if own != network:
                continue
            cells = []
            for counts in (run["before"], run["test"]):
                images = counts["images"]
                cells += [
                    f"{100 * counts[k] / images:.1f}"
                    for k in ("top1", "top5", "agreement")
                ]
            bits, ratio = f"{run['bits_per_weight']:.2f}", f"{run['model_ratio']:.1f}x"
            rows.append([method, bits, ratio, *cells])
        header = ["", "bits", "whole model"]
        header += [
            f"{t}{k}" for t in ("", "tuned: ") for k in ("top-1", "top-5", "same")
        ]
        tables.append(f"**{network}**\n\n{_table(header, rows)}")
    return _filled(
        text.FEW,
        "few_images",
        runs,
        tables="\n".join(tables),
    )


def _rates(results: Results) -> str:
    runs = results["cifar10_rates"]
    rows = []
    for name, run in runs.items():
        method, *rates = name.split("-")
        own = _of(runs, method)
        best = max(x["validation"]["top1"] for x in own)
        mark = " (best)" if run["validation"]["top1"] == best else ""
        rows.append(
            [TITLES[method], " / ".join(rates), _percent(run["validation"]) + mark]
        )
    header = ["method", "rates", "validation, %"]
    return _filled(text.RATES, "cifar10_rates", runs, table=_table(header, rows))


def _masks(results: Results) -> str:
    runs = results["cifar10_mvq"]
    rows = [
        [
            name.removeprefix("mvq-").replace("of", " of "),
            f"{run['bits_per_weight']:.3f}",
            _percent(run["validation"]),
        ]
        for name, run in runs.items()
    ]
    header = ["kept", "bits", "validation, %"]
    return _filled(text.MASKS, "cifar10_mvq", runs, table=_table(header, rows))


def _thresholds(results: Results) -> str:
    runs = results["cifar10_thresholds"]
    rows = [
        [
            " to ".join(
                f"{x:g}"
                for x in run["experiment"]["compression"]["freezing"]["threshold"]
            ),
            _percent(run["validation"]),
            f"{100 * run['flipped']:.1f}",
            f"{100 * run['frozen']:.1f}",
        ]
        for run in runs.values()
    ]
    header = ["threshold", "validation, %", "flipped, %", "frozen, %"]
    return _filled(
        text.THRESHOLDS, "cifar10_thresholds", runs, table=_table(header, rows)
    )


def _filled(template: str, config: str, runs: dict[str, Run], **values: Any) -> str:
    """A section, with the command that runs its config and the minutes it took."""
    script = "train" if config == "deit_96_cifar10" else "compress"
    return template.format(
        minutes=f"{sum(run['minutes'] for run in runs.values()):.0f}",
        command=f"python -m experiments.{script} experiments/configs/{config}.py "
        "--data-dir DIR --results experiments/results",
        **values,
    )


def _of(runs: dict[str, Run], method: str) -> list[Run]:
    """The runs of one method, whose names start with it."""
    return [run for name, run in runs.items() if name.split("-")[0] == method]


def _percent(counts: dict[str, Any]) -> str:
    return f"{100 * accuracy(counts):.2f}"


def _share(runs: Sequence[Run], name: str) -> str:
    found = [run[name] for run in runs if name in run]
    return f"{100 * np.mean(found):.1f} %" if found else ""


def _table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"

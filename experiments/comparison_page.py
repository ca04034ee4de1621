"""The comparison as a page: its tables, from the results."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments import comparison_text as text
from experiments import markdown
from experiments.comparison_account import SOURCES, account
from experiments.comparison_numbers import (
    FEW_METHODS,
    FEW_NETWORKS,
    Run,
    accuracy,
    gap,
    half,
    named,
    percent,
    seeds,
    share,
)
from experiments.configs.cifar10_ablation import CHECKS
from experiments.methods import BITS, SIGNED, TITLES

Results = dict[str, dict[str, Any]]

# The paper's intervals, in steps, and what it reports.
_INTERVALS = (
    ("100", "60.9", ""),
    ("200", "61.5", ""),
    ("500", "61.9", "60.8"),
    ("1,000", "61.6", ""),
)
# The paper's top-1 on ImageNet, DeiT-Tiny at 21x.
_PAPER = {
    ("vq", "1.5"): "~47",
    ("fixed", "1.5"): "~47",
    ("learned", "1.5"): "~54",
    ("frozen", "1.5"): "61.9",
}


def page(results: Results, diverged: Sequence[str] = ()) -> str:
    """The page.

    Args:
      results: Of the configs, by their names.
      diverged: Names of runs that have diverged and are not among them.
    """
    sections = {
        "deit_96_cifar10": _float,
        "cifar10_headline": _headline,
        "cifar10_bits": partial(_by_bits, "cifar10_bits", text.BITS),
        "cifar10_3_bits": partial(_by_bits, "cifar10_3_bits", text.THREE_BITS),
        "cifar10_ablation": _ablation,
        "dominance": _dominance,
        "deit_tiny_cifar10": _exact_shape,
        "few_images": _few_images,
        "cifar10_rates": partial(_rates, "cifar10_rates", text.RATES),
        "cifar10_mvq": _masks,
        "cifar10_thresholds": _thresholds,
        "cifar10_3_bits_rates": partial(
            _rates, "cifar10_3_bits_rates", text.THREE_BITS_RATES
        ),
        "few_images_rates": _few_rates,
    }
    parts = [text.INTRODUCTION]
    if diverged:
        parts.append(f"Diverged, and left out: {', '.join(diverged)}.\n")
    if results.keys() >= set(SOURCES):
        parts.append(account(results))
    for name, section in sections.items():
        if name in results:
            parts.append(section(results))
        else:
            parts.append(f"## No results: {name}\n")
    minutes = [x["minutes"] for runs in results.values() for x in _timed(runs)]
    parts.append(text.COMMANDS.format(hours=f"{sum(minutes) / 60:.1f}"))
    return "\n".join(parts)


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
        test=percent(run["test"]),
        last=f"{min(last):.1f} to {max(last):.1f} %",
    )


def _headline(results: Results) -> str:
    runs = results["cifar10_headline"]
    groups = seeds(runs)

    def at(bits: str, *others: tuple[str, str]) -> str:
        rows = []
        for key in (*others, *((method, bits) for method in TITLES)):
            if key not in groups:
                continue
            own = groups[key]
            tests = [100 * accuracy(run["test"]) for run in own]
            rows.append(
                [
                    TITLES[key[0]],
                    f"{own[0].get('bits_per_weight', 32):.3f}",
                    f"{own[0].get('ratio', 1):.1f}x",
                    f"{np.mean([100 * accuracy(run['before']) for run in own]):.2f}",
                    f"{np.mean(tests):.2f}",
                    " ".join(f"{x:.2f}" for x in tests),
                    "" if key[0] == "vq" else gap(own, groups.get(("vq", bits), [])),
                    share(own, "flipped"),
                    share(own, "frozen"),
                    _PAPER.get(key, ""),
                ]
            )
        header = ["", "bits", "ratio", "before, %", "tuned, %", "seeds", "minus VQ"]
        return markdown.table([*header, "flipped", "frozen", "paper, %"], rows)

    return _filled(
        text.HEADLINE,
        "cifar10_headline",
        runs,
        more=at("1.5", ("float", "32"), ("uniform", "2")),
        fewer=at("1.25"),
        half=half(groups["float", "32"][0]),
    )


def _by_bits(config: str, template: str, results: Results) -> str:
    runs, rows = results[config], []
    for method in TITLES:
        for bits in BITS:
            run = runs.get(f"{method}-{bits:g}")
            if run is None:
                continue
            rows.append(
                [
                    TITLES[method],
                    _codec(run),
                    f"{run['bits_per_weight']:.3f}",
                    f"{run['ratio']:.1f}x",
                    percent(run["before"]),
                    f"{percent(run['test'])} ± {half(run)}",
                    gap([run], [runs["float"]]),
                ]
            )
    header = ["method", "codec", "bits", "ratio", "before, %", "tuned, %"]
    return _filled(
        template,
        config,
        runs,
        table=markdown.table([*header, "minus float32"], rows),
        before=percent(runs["float"]["before"]),
        float=percent(runs["float"]["test"]),
    )


def _ablation(results: Results) -> str:
    runs = results["cifar10_ablation"]
    usual, longest = (
        results.get(name, {}) for name in ("cifar10_bits", "cifar10_headline")
    )

    def tested(found: list[Run]) -> str:
        return percent(found[0]["test"]) if found else ""

    rows = []
    for method in ("vq", *SIGNED):
        name = f"{method}-1.5"
        short, long = named(runs, f"epochs-1-{method}"), named(longest, f"{name}-0")
        rows.append([TITLES[method], *map(tested, (short, named(usual, name), long))])
    by_epochs = markdown.table(["epochs", "1", "3", "10"], rows)
    rows = []
    for checks, (steps, *papers) in zip(CHECKS, _INTERVALS, strict=True):
        majority, average = (
            named(runs, f"interval-{checks}-{d}") for d in ("majority", "average")
        )
        majority = majority or named(usual, "frozen-1.5")
        rows.append([checks, tested(majority), tested(average), steps, *papers])
    header = ["freezings, about", "majority", "average", "paper: interval", "majority"]
    by_interval = markdown.table([*header, "average"], rows)
    rows = []
    for title, learned, frozen in (
        ("as tuned", named(usual, "learned-1.5"), named(usual, "frozen-1.5")),
        *(
            (title, *(named(runs, f"{name}-{method}") for method in SIGNED[1:]))
            for title, name in (
                ("sign rate / 10", "sign_rate-0.1"),
                ("sign rate * 10", "sign_rate-10"),
                ("latent scale / 10", "latent_scale-0.1"),
                ("latent scale * 10", "latent_scale-10"),
            )
        ),
    ):
        cells = [tested(learned), share(learned, "flipped")]
        cells += [tested(frozen), share(frozen, "flipped"), share(frozen, "frozen")]
        rows.append([title, *cells])
    header = ["", "learned, %", "flipped", "learned + frozen, %", "flipped", "frozen"]
    by_rate = markdown.table(header, rows)
    return _filled(
        text.ABLATION,
        "cifar10_ablation",
        runs,
        half=half(next(iter(runs.values()))),
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
        table=markdown.table(["", *header], rows),
        **{k: found[k] for k in ("images", "steps", "minutes", "command")},
    )


def _exact_shape(results: Results) -> str:
    runs = results["deit_tiny_cifar10"]
    rows = [
        [
            name,
            f"{run.get('bits_per_weight', 32):.3f}",
            f"{run.get('model_ratio', 1):.1f}x",
            percent(run["before"]),
            percent(run["test"]),
            f"{run['bytes']:,}",
        ]
        for name, run in runs.items()
    ]
    header = ["method", "bits", "whole model", "before, %", "tuned, %", "file, bytes"]
    return _filled(
        text.EXACT,
        "deit_tiny_cifar10",
        runs,
        half=half(runs["float"]),
        table=markdown.table(header, rows),
    )


def _few_images(results: Results) -> str:
    runs = results["few_images"]
    tables = []
    for network, title in FEW_NETWORKS.items():
        rows = []
        for name, run in runs.items():
            own, method, _ = name.split("-")
            if own != network:
                continue
            cells = [FEW_METHODS[method], _codec(run), f"{run['bits_per_weight']:.2f}"]
            cells += [f"{run[k]:.1f}x" for k in ("ratio", "model_ratio")]
            for counts in (run["before"], run["test"]):
                cells += [
                    f"{100 * counts[k] / counts['images']:.1f}"
                    for k in ("top1", "top5", "agreement")
                ]
            rows.append([*cells, share([run], "flipped"), share([run], "frozen")])
        header = ["", "codec", "bits", "ratio", "whole"]
        header += [
            f"{when}: {k}"
            for when in ("before", "tuned")
            for k in ("top-1", "top-5", "agrees")
        ]
        table = markdown.table([*header, "flipped", "frozen"], rows)
        tables.append(f"**{title}**\n\n{table}")
    return _filled(text.FEW, "few_images", runs, tables="\n\n".join(tables))


def _rates(config: str, template: str, results: Results) -> str:
    runs = results[config]
    header = ["method", "rates", "validation, %"]
    table = markdown.table(header, _best_marked(runs, "top1"))
    return _filled(template, config, runs, table=table)


def _few_rates(results: Results) -> str:
    runs = results["few_images_rates"]
    groups: dict[tuple[str, str], dict[str, Run]] = {}
    for name, run in runs.items():
        network, method, bits, rates = name.split("-", 3)
        groups.setdefault((network, bits), {})[f"{method}-{rates}"] = run
    rows: dict[tuple[str, ...], list[str]] = {}
    for (network, bits), own in groups.items():
        column = 2 * list(FEW_NETWORKS).index(network)
        marked = _best_marked(own, "agreement")
        for (method, rates, agrees), run in zip(marked, own.values(), strict=True):
            key = (method, bits, rates)
            cells = rows.setdefault(key, [""] * 2 * len(FEW_NETWORKS))
            cells[column : column + 2] = agrees, f"{run['curve'][-1]['loss']:.2f}"
    header = ["method", "bits", "rates"]
    for title in FEW_NETWORKS.values():
        header += [f"{title}: agrees, %", "loss in the last epoch"]
    table = markdown.table(header, [[*key, *cells] for key, cells in rows.items()])
    return _filled(text.FEW_RATES, "few_images_rates", runs, table=table)


def _best_marked(runs: dict[str, Run], by: str) -> list[list[str]]:
    """Method, rates and share of the validation images of runs METHOD-RATE[-RATE]."""
    rows = []
    for name, run in runs.items():
        method, *rates = name.split("-")
        best = max(x["validation"][by] for x in _of(runs, method))
        percents = 100 * run["validation"][by] / run["validation"]["images"]
        mark = " (best)" if run["validation"][by] == best else ""
        title = TITLES.get(method, method.upper())
        rows.append([title, " / ".join(rates), f"{percents:.2f}{mark}"])
    return rows


def _masks(results: Results) -> str:
    runs = results["cifar10_mvq"]
    rows = [
        [
            name.removeprefix("mvq-").replace("of", " of "),
            f"{run['bits_per_weight']:.3f}",
            percent(run["validation"]),
        ]
        for name, run in runs.items()
    ]
    header = ["kept", "bits", "validation, %"]
    return _filled(text.MASKS, "cifar10_mvq", runs, table=markdown.table(header, rows))


def _thresholds(results: Results) -> str:
    runs = results["cifar10_thresholds"]
    rows = [
        [
            " to ".join(
                f"{x:g}"
                for x in run["experiment"]["compression"]["freezing"]["threshold"]
            ),
            percent(run["validation"]),
            f"{100 * run['flipped']:.1f}",
            f"{100 * run['frozen']:.1f}",
        ]
        for run in runs.values()
    ]
    header = ["threshold", "validation, %", "flipped, %", "frozen, %"]
    return _filled(
        text.THRESHOLDS, "cifar10_thresholds", runs, table=markdown.table(header, rows)
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


def _timed(runs: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """What has taken minutes among a config's results."""
    return [runs] if "minutes" in runs else runs.values()


def _codec(run: Run) -> str:
    """The numbers of the first rule's codec: `(64, 4, int8)`."""
    codec = run["experiment"]["compression"]["rules"][0]["codec"]
    return re.sub(r"^\w+|\w+=|'", "", codec)


def _of(runs: dict[str, Run], method: str) -> list[Run]:
    """The runs of one method, whose names start with it."""
    return [run for name, run in runs.items() if name.split("-")[0] == method]

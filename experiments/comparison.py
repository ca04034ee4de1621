"""The page of the comparison, from the results of its configs.

    python -m experiments.comparison

Reads `experiments/results/CONFIG.json` as `--results experiments/results` wrote them,
and `dominance.json`; writes `README.md` and plots beside them. What has not been run
yet is left out, and said so; so is a run that has diverged where options are chosen,
and elsewhere the whole config.
"""

import dataclasses
import json
import pathlib
import sys

import tyro

from experiments import comparison_page, comparison_plots

CONFIGS = (
    "deit_96_cifar10",
    "cifar10_rates",
    "cifar10_mvq",
    "cifar10_thresholds",
    "cifar10_headline",
    "cifar10_bits",
    "cifar10_3_bits_rates",
    "cifar10_3_bits",
    "cifar10_ablation",
    "deit_tiny_cifar10",
    "few_images_rates",
    "few_images",
    "dominance",
)

CHOOSING = (
    "cifar10_rates",
    "cifar10_mvq",
    "cifar10_thresholds",
    "cifar10_3_bits_rates",
    "few_images_rates",
)
"""Those by which options are chosen; never by test images."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where results lie."""

    results: pathlib.Path = pathlib.Path("experiments/results")
    """Folder of the results; the page goes there, too."""


def main(options: Options) -> int:
    """Write page and plots; returns the exit status."""
    results, diverged = {}, []
    for name in CONFIGS:
        path = options.results / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            lost = [
                k for k, v in found.items() if isinstance(v, dict) and "diverged" in v
            ]
            if name in CHOOSING or not lost:
                results[name] = {k: v for k, v in found.items() if k not in lost}
            diverged += [f"{name}: {run}" for run in lost]
        else:
            print(f"{path} is missing; its section is left out")
    plots = {
        "cifar10_bits": ("pareto", comparison_plots.pareto),
        "cifar10_headline": ("curves", comparison_plots.curves),
        "few_images": ("few_images", comparison_plots.few_images),
    }
    for name, (plot, draw) in plots.items():
        if name in results:
            draw(options.results / f"{plot}.png", results)
    page = options.results / "README.md"
    page.write_text(comparison_page.page(results, diverged))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

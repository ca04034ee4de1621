"""Plots: each a function of the results, which gives a figure."""

from experiments.report.plots import accelerator, benchmarks, comparison

PLOTS = {
    "cifar10/pareto": comparison.pareto,
    "cifar10/curves": comparison.curves,
    "cifar100/pareto": comparison.hundred,
    "few_images/few_images": comparison.few_images,
    "calibrated/calibrated": comparison.calibrated,
    "calibrated/allocation": comparison.allocation,
    "accelerator_sweep": accelerator.sweep,
    "accelerator_timeline": accelerator.timeline,
    "accelerator_roofline": accelerator.roofline,
    "benchmarks": benchmarks.ratios,
    "growth": benchmarks.growth,
}
"""By where they are written, under the results."""

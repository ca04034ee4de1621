"""How plots are made and written, without a screen."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def panels(count: int, height: float = 4.2, **options):
    """A figure of panels side by side; its axes as a list."""
    size = (6 if count < 3 else 4.7) * count, height
    figure, axes = plt.subplots(
        1, count, figsize=size, squeeze=False, layout="constrained", **options
    )
    return figure, list(axes[0])


def legend(*axes) -> None:
    """A legend and thin lines in each."""
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)

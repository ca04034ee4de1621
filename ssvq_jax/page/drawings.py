"""Drawings of a report, as SVG in the colours of the page around them.

SVG by matplotlib: it needs no script, and a page of 100 tensors stays below 3 MB, where
the libraries that draw in the browser bring more than that themselves.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BINS = 80
_ACCENT = "#3987e5"  # tells itself from light and from dark
_MOST_POINTS = 1 << 20  # of a histogram


def tensor(
    weights: np.ndarray,
    before: np.ndarray | None,
    codebook: np.ndarray | None,
    counts: np.ndarray,
) -> str:
    """Weights as a histogram, codewords as an image, and how often they are used.

    Args:
      weights: Decoded.
      before: Those of the original, if there is one.
      codebook: `(k, d)`, if there is one.
      counts: Blocks of every codeword, or weights of every level.
    """
    figure = _figure(2.3)
    columns = 2 if codebook is None else 3
    axes = figure.subplots(1, columns, gridspec_kw={"wspace": 0.25})
    shown = [x for x in (before, weights) if x is not None]
    shown = [_sample(x) for x in shown]
    # A few far out would leave the rest no room.
    largest = 1.5 * max(float(np.quantile(np.abs(x), 0.999)) for x in shown) or 1.0
    for values, (label, options) in zip(
        shown[::-1],
        (
            ("decoded", {"fill": True, "color": _ACCENT, "alpha": 0.6}),
            ("original", {"color": "black"}),
        ),
        strict=False,
    ):
        heights, edges = np.histogram(values, _BINS, (-largest, largest), density=True)
        axes[0].stairs(heights, edges, label=label, **options)
    axes[0].set(xlabel="weight", yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    order = np.argsort(-counts, kind="stable")
    axes[1].stairs(counts[order] / max(counts.sum(), 1), fill=True, color=_ACCENT)
    unit = "codeword" if codebook is not None else "level"
    axes[1].set(xlabel=f"{unit}, most used first", ylabel="share", ylim=(0, None))
    if codebook is not None:
        limit = float(np.max(np.abs(codebook))) or 1.0
        axes[2].imshow(
            codebook[order].T, "RdBu", aspect="auto", vmin=-limit, vmax=limit
        )
        axes[2].set(xlabel="codeword, most used first", ylabel="position in block")
    return _svg(figure)


def lines(steps: Sequence[Mapping[str, Any]], shares: Mapping[str, str]) -> str:
    """Shares over the steps of a training run.

    Args:
      steps: Lines of a log, each with `step`.
      shares: What to draw, and what it is called.
    """
    figure = _figure(2.6)
    axes = figure.subplots()
    for (name, label), style in zip(shares.items(), ("-", "--"), strict=True):
        points = [(x["step"], 100 * x[name]) for x in steps if name in x]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, style, color=_ACCENT, marker=".", label=label)
    axes.set(xlabel="step", ylabel="% of all signs", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure  # an extra

    return Figure((9, height), layout="constrained")


def _sample(values: np.ndarray) -> np.ndarray:
    """Finite values, not too many, evenly taken."""
    values = np.asarray(values, np.float32).ravel()
    values = values[:: -(-values.size // _MOST_POINTS) or 1]
    values = values[np.isfinite(values)]
    return values if values.size else np.zeros(1, np.float32)


def _svg(figure: Any) -> str:
    """The figure without prolog, of the same bytes for the same figure."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ssvq"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure
    svg = re.sub(r'(?<=<svg )(.*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(?<=<svg )(.*?)height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("#000000", "currentColor")

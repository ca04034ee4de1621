"""The accelerator's report as a page: its text, and its tables from the results."""

from typing import Any

from experiments import markdown


def page(results: dict[str, Any]) -> str:
    """The page, from what `experiments.accelerator` found."""
    sections = [_INTRODUCTION]
    sections.append(_where(results["sweep"], results["ours"]))
    sections.append(_bounds(results["reference"]))
    header = [
        "codewords per cycle",
        *results["decoder"][0]["speedup"],
        "SSVQ waits for it",
    ]
    rows = [
        [
            r["width"],
            *(f"{x:.2f}" for x in r["speedup"].values()),
            f"{r['stalled']:.0%}",
        ]
        for r in results["decoder"]
    ]
    sections.append(_DECODER.format(table=markdown.table(header, rows)))
    kinds = ("weights", "codes", "signs", "masks", "codebooks")
    rows = [
        [
            name,
            *(f"{x['traffic'].get(kind, 0):,}" for kind in kinds),
            f"{sum(x['traffic'].values()):,}",
            f"{results['bytes']['int8']['cycles'] / x['cycles']:.2f}",
        ]
        for name, x in results["bytes"].items()
    ]
    header = ["weights as", *kinds, "all bytes", "speed-up"]
    sections.append(_CODEBOOKS.format(table=markdown.table(header, rows)))
    sections.append(_energy_section(results["energy"]))
    rows = [
        [
            r["model"],
            f"{r['macs'] / 1e6:,.0f} M",
            f"{r['weights']:,}",
            f"{r['speedup']:.2f}",
            f"{r['bytes']:.2f}",
            f"{r['energy']:.2f}",
            f"{r['utilization']:.1%}",
        ]
        for r in results["models"]
    ]
    header = [
        "model",
        "multiply-adds",
        "weights",
        "speed-up",
        "bytes",
        "energy",
        "used",
    ]
    sections.append(_MODELS.format(table=markdown.table(header, rows)))
    rows = [
        [f"`{name}`", value if isinstance(value, str | bool) else f"{value:g}", source]
        for name, value, source in results["config"]
    ]
    sections.append(
        _MACHINE.format(table=markdown.table(["value", "", "source"], rows))
    )
    single, sweep = results["single_seconds"], results["sweep_seconds"]
    count = len(results["sweep"]) * len(results["bytes"])
    sections.append(
        f"One simulation took {single:.2f} s, the sweep of {count} {sweep:.0f} s.\n"
    )
    return "\n".join(sections)


def _where(sweep: list[dict[str, Any]], ours: str) -> str:
    arrays = sorted({row["array"] for row in sweep})
    rows = []
    for size in arrays:
        found = [
            (row["rate"], row["cycles"]["int8"] / row["cycles"][ours])
            for row in sweep
            if row["array"] == size
        ]
        most = max((rate for rate, speedup in found if speedup >= 3), default=None)
        text = "nowhere here" if most is None else f"up to {most:g}"
        speedups = [f"{speedup:.2f}" for _, speedup in found]
        rows.append([f"{size} x {size}", *speedups, text])
    rates = [f"{rate:g}" for rate in sorted({row["rate"] for row in sweep})]
    header = ["array", *rates, "3x, bytes per cycle"]
    return _WHERE.format(table=markdown.table(header, rows))


def _bounds(rows: list[dict[str, Any]]) -> str:
    table = markdown.table(
        [
            "bytes per cycle",
            "bound",
            "our roofline",
            "simulated",
            "latency 100, bursts",
            "latency 500, bursts",
            "prefetch",
            "int8 above its bound",
            "SSVQ above its bound",
        ],
        [
            [
                f"{r['rate']:g}",
                f"{r['reference']:.2f}",
                *(
                    f"{r[key]:.2f}"
                    for key in ("roofline", "plain", "latency", "slow", "prefetch")
                ),
                f"{r['int8_cycles'] - r['int8_roofline']:,.0f}",
                f"{r['ours_cycles'] - r['ours_roofline']:,.0f}",
            ]
            for r in rows
        ],
    )
    return _BOUNDS.format(table=table)


def _energy_section(energy: dict[str, Any]) -> str:
    parts = energy["parts"]
    rows = [
        [name, *(f"{x / 1e6:,.0f}" for x in values.values()),
         f"{sum(values.values()) / 1e6:,.0f}"]
        for name, values in parts.items()
    ]  # fmt: skip
    header = ["in uJ", *parts["int8"], "all"]
    ratios = ", ".join(
        f"{ratio:.2f} at {pj} pJ per bit" for pj, ratio in energy["ratios"].items()
    )
    return _ENERGY.format(table=markdown.table(header, rows), ratios=ratios)


_INTRODUCTION = """\
# The simulated accelerator: where 3x holds

`python -m experiments.accelerator`

The paper reports DeiT-Tiny three times as fast as with 8-bit weights, on a simulated
accelerator whose configuration is not published. Here is one that states every value
(last table) and is checked: array cycles against a simulation element by element and
against SCALE-Sim 3.0.0, outputs bit for bit against JAX, bytes against the packed file.

DeiT-Tiny at 224 pixels, one image: 1.25 G multiply-adds, 5,647,872 weights in 50
matrices, all compressed, codebooks in int8. Weight-stationary array, loading hidden,
activations on the chip, no prefetch across products, vector operations left out (they
take the same time whatever the weights are, and so lower every ratio), unless said
otherwise.
"""

_WHERE = """\
## Where 3x holds

Speed-up of SSVQ (k=16, d=8, 1.5 bits) over int8, by bytes of main memory per cycle:

{table}

![speed-up over bandwidth and array](accelerator_sweep.png)

SSVQ reads 5.3 times fewer bytes: that is the limit on the left. It holds as long as
fetching int8 takes three times as long as computing. A larger array computes faster and
asks for more bytes per cycle: 3x moves to higher bandwidths with it. With memory fast
enough for int8 (on the right) there is nothing to gain. At 1 GHz, 6.4 bytes per cycle
are one 16-bit channel of LPDDR4-3200: beside a 64 x 64 array the paper's 3x takes a
memory a little slower than that, or an array a little larger.

![cycles per product](accelerator_timeline.png)
![roofline](accelerator_roofline.png)
"""

_BOUNDS = """\
## Against a roofline per product

The bound takes, for every product, the longer of array time (folds, each at least as
long as loading a tile; the first load and the last drain) and bytes / bandwidth. Each
machine is slower than its own bound; cycles by which it is, in the last two columns:

{table}

What the simulation adds: SSVQ waits at every product for its codebook and first tile
to arrive and be decoded; int8 cannot stream its last tile before it has arrived, so
every product that waits for memory ends with one more stream and drain. The first of
the two weighs more at low bandwidth, and the speed-up stays below the bound. At 12.8
bytes per cycle it does not: there SSVQ's first tile is short, int8's tail is not, and
the ratio of two bounds is no bound of the ratio. With 500 cycles of latency per product
it is at the bound again. Prefetch across products removes both: then only the sums
count, and a compute-bound product hides the fetching of the next.
"""

_DECODER = """\
## What the decoder's width does

64 x 64 array, 6.4 bytes per cycle, speed-up over int8:

{table}

A tile of 64 x 64 weights has 512 blocks of 8. At one codeword per cycle decoding takes
512 cycles, more than the 197 that the array streams tokens for and not much less than
the 640 in which int8 weights arrive: most of the gain is gone. At 8 it keeps up with
the load port (64 cycles per tile) and stays out of the way. Blocks of 4 ask for twice
the codewords.
"""

_CODEBOOKS = """\
## Why a small codebook matters

3.2 bytes per cycle, weights of all 50 matrices:

{table}

VQ with k=64, d=4 has the same bits per weight, and as small a codebook: it ties. With
k=4096, d=8 the codes take 1.5 bits too, but every matrix has 32 kB of codebook to be
read before its first tile: more than half of the bytes are codebooks.
"""

_ENERGY = """\
## Energy

6.4 bytes per cycle:

{table}

Total energy falls by a factor of
{ratios}: not by 5.
Main memory is a small part of it here: the multiply-adds, and above all moving operands
through the array, cost the same whatever the weights are, and every weight is used for
197 tokens once it is fetched. Energies are per operand, as Eyeriss gives them; were a
sum's four bytes counted as four, moving would cost more and the ratio be about 1.1.
Where each weight is used once, as in a decoder at batch 1 (below), memory is most of
the energy, and the ratio is 2.7: the rest is mainly weights on their way into the
array.
"""

_MODELS = """\
## Other models

64 x 64 array, 6.4 bytes per cycle, SSVQ over int8:

{table}

The convolutional networks gain little. Depthwise convolutions use one column of the
array, and are why so little of it is used; and feature maps beyond the 512 KiB buffer
go to memory and back, more bytes than the weights. A decoder at batch 1 uses each
weight once and is bound by memory; its keys and values of 512 tokens, which are not
compressed, keep the bytes from falling by 5.3.
"""

_MACHINE = """\
## The machine

The preset `edge`; the sweep changes array and bandwidth, decodes a codeword per 4
columns, and holds 32 KiB of stored weights.

{table}

Further assumptions are listed in `ssvq_jax/accelerator/simulate.py`.
"""

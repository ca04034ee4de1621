"""K-means: `ssvq_jax.fit_codebook` against faiss and scikit-learn.

    python -m experiments.benchmarks.kmeans

All start from the same codebook and do 10 iterations. All give codebook, codes and
inertia: faiss's are its training and a search. Small matrices of heavy tails are
clustered to the end, from ten starts of each one's own: scikit-learn's by greedy
k-means++, faiss's at random.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import rich

import ssvq_jax as ssvq
from experiments.benchmarks import peers, weights
from experiments.benchmarks.measure import MEBIBYTE, median_seconds, peak_extra_bytes
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import at_most, seconds_text, verdict
from ssvq_jax.core.blocks import to_blocks

ITERATIONS = 10
STARTS = 10
SMALL = ((2**11, 8, 16), (2**12, 4, 64), (2**13, 8, 256), (2**16, 4, 64))
QUICK_SMALL = ((2**9, 8, 16),)
SIZES = ((2**20, 4, 64), (2**19, 8, 16), (2**19, 8, 256), (2**17, 8, 4096))
QUICK_SIZES = ((2**10, 4, 8), (2**10, 8, 16))
MOST_MEBIBYTES = 64
REASON = (
    "few codewords: a sixth of a pass is distances, the rest is the points' own: "
    "reading, centring and transposing them, and adding them up"
)


def measure(options: Options) -> Iterator[Row]:
    """A row per size, and one of a trained model."""
    rng = np.random.default_rng(0)
    for count, dim, codewords in QUICK_SIZES if options.quick else SIZES:
        points = np.abs(rng.standard_normal((count, dim), np.float32))
        yield _row("random", points, codewords, options)
    for count, dim, codewords in QUICK_SMALL if options.quick else SMALL:
        points = rng.laplace(size=(count, dim)).astype(np.float32)
        yield _starts_row(points, codewords, options)
    if weights.model_file(options.models, "deit_tiny_cifar10").exists():
        tree = weights.trained(options.models, "deit_tiny_cifar10")
        kernels = [x for x in tree.values() if x.ndim == 2]
        points = np.concatenate([to_blocks(x, 4, 0).reshape(-1, 4) for x in kernels])
        points = np.abs(points[: 2**12] if options.quick else points)
        yield _row("DeiT-Tiny", points, 64, options)
    else:
        rich.print(f"kmeans: DeiT-Tiny skipped: not in {options.models}")


def _row(name: str, points: np.ndarray, codewords: int, options: Options) -> Row:
    count, dim = points.shape
    rng = np.random.default_rng(1)
    start = points[rng.choice(count, codewords, replace=False)]
    arguments = (points, codewords, ITERATIONS, start)
    ours_points, ours_start = jnp.asarray(points), jnp.asarray(start)

    def ours():
        return ssvq.fit_codebook(
            ours_points,
            codewords,
            key=jax.random.key(0),
            iterations=ITERATIONS,
            init=ours_start,
        )

    clusterings = {
        "faiss": lambda: peers.faiss_clustering(*arguments),
        "scikit-learn": lambda: peers.sklearn_clustering(*arguments),
    }
    timings = median_seconds(
        {
            "ours": ours,
            **clusterings,
            "training alone": lambda: peers.faiss_codebook(*arguments).centroids,
        },
        options.timed_runs,
    )
    ranked = sorted(clusterings, key=lambda peer: timings[peer].median)
    peer, other = ranked
    inertia = float(ours()[2]) / clusterings[peer]()[2]
    mebibytes = peak_extra_bytes(ours)[0] / MEBIBYTE
    training = timings["training alone"].median
    notes = (
        f"{other} {seconds_text(timings[other].median)}",
        f"faiss without codes {seconds_text(training)}",
        f"inertia {inertia:.4f} of the peer's ({verdict(abs(inertia - 1) <= 0.01)}: "
        "within 1 %)",
        f"{mebibytes:.0f} MiB above the points ({at_most(mebibytes, MOST_MEBIBYTES)})",
    )
    return Row(
        case=f"{name}: {count:,} points of {dim}, {codewords} codewords",
        ours=timings["ours"].median,
        peer=timings[peer].median,
        peer_name=peer,
        aim=1.5 if codewords <= 256 else 1.0,
        note="; ".join(notes),
        reason=REASON if codewords <= 16 else "",
        details={
            "inertia_ratio": inertia,
            "mebibytes": mebibytes,
            "faiss_training_seconds": training,
            **timings["ours"].spread(),
        },
    )


def _starts_row(points: np.ndarray, codewords: int, options: Options) -> Row:
    count, dim = points.shape
    to_the_end = 100
    ours_points = jnp.asarray(points)

    def ours(starts=STARTS):
        return ssvq.fit_codebook(
            ours_points, codewords, key=jax.random.key(0), starts=starts
        )

    arguments = (points, codewords, to_the_end, None, STARTS)
    clusterings = {
        "faiss": lambda: peers.faiss_clustering(*arguments),
        "scikit-learn": lambda: peers.sklearn_clustering(*arguments),
    }
    timings = median_seconds(
        {"ours": ours, "one start": lambda: ours(1), **clusterings},
        options.timed_runs,
    )
    peer, other = sorted(clusterings, key=lambda peer: timings[peer].median)
    inertia = float(ours()[2])
    more = {
        "ours from one start": float(ours(1)[2]) / inertia - 1,
        **{name: found()[2] / inertia - 1 for name, found in clusterings.items()},
    }
    errors = ", ".join(f"{name} {share:+.2%}" for name, share in more.items())
    return Row(
        case=f"{STARTS} starts: {count:,} points of {dim}, {codewords} codewords",
        ours=timings["ours"].median,
        peer=timings[peer].median,
        peer_name=peer,
        note=f"{other} {seconds_text(timings[other].median)}; ours from one start "
        f"{seconds_text(timings['one start'].median)}; errors beside ours: {errors}",
        details={f"more: {name}": share for name, share in more.items()},
    )


if __name__ == "__main__":
    run("kmeans", measure)

"""What this library is measured against: faiss, scikit-learn, NumPy."""

import warnings
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

try:
    import faiss
except ImportError as error:
    raise SystemExit("faiss is not installed: pip install faiss-cpu") from error


def faiss_codebook(
    points: np.ndarray,
    codewords: int,
    iterations: int,
    start: np.ndarray | None = None,
    starts: int = 1,
) -> faiss.Kmeans:
    """A codebook for all points; from random choices of them without `start`."""
    count, dim = points.shape
    clustering = faiss.Kmeans(
        dim,
        codewords,
        niter=iterations,
        nredo=starts,
        max_points_per_centroid=count,
        min_points_per_centroid=1,
    )
    clustering.train(points, init_centroids=start)
    return clustering


def faiss_clustering(
    points: np.ndarray,
    codewords: int,
    iterations: int,
    start: np.ndarray | None = None,
    starts: int = 1,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Codebook, codes and inertia, as `ssvq_jax.fit_codebook` gives them."""
    clustering: Any = faiss_codebook(points, codewords, iterations, start, starts)
    distances, codes = clustering.index.search(points, 1)
    return clustering.centroids, codes[:, 0], float(distances.sum(dtype=np.float64))


def sklearn_clustering(
    points: np.ndarray,
    codewords: int,
    iterations: int,
    start: np.ndarray | None = None,
    starts: int = 1,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same with scikit-learn; from greedy k-means++ without `start`."""
    kmeans: Any = KMeans  # its annotations are those of its defaults
    clustering = kmeans(
        codewords,
        init="k-means++" if start is None else start,
        n_init=starts,
        random_state=0,
        tol=0,
        max_iter=iterations,
        algorithm="lloyd",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clustering.fit(points)
    return clustering.cluster_centers_, clustering.labels_, clustering.inertia_


def numpy_decode(
    codebook: np.ndarray, codes: np.ndarray, signs: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """A dense kernel `(in, out)` from a finalized `SSVQ` node's leaves.

    Args:
      codebook: `(k, d)`.
      codes: `(in / d, out)`.
      signs: `(in / d, out, ceil(d / 8))`, the block's first weight in the lowest bit.
      dtype: Of the result.
    """
    block = codebook.shape[1]
    magnitudes = np.take(codebook.astype(np.float32), codes, axis=0)
    minus = np.unpackbits(signs, axis=-1, count=block, bitorder="little")
    np.negative(magnitudes, out=magnitudes, where=minus.view(bool))
    groups, outputs, _ = magnitudes.shape
    values = np.empty((groups, block, outputs), dtype)
    values[...] = magnitudes.transpose(0, 2, 1)
    return values.reshape(groups * block, outputs)


def numpy_gptq(
    weight: np.ndarray, second: np.ndarray, step: np.ndarray, limits: tuple[int, int]
) -> np.ndarray:
    """Codes by error feedback, input after input (Frantar et al. 2022).

    Args:
      weight: `(in, out)`.
      second: Second moments of the inputs, `(in, in)`.
      step: Of every output.
      limits: Smallest and largest code.
    """
    inputs = len(weight)
    damped = second + 0.01 * np.mean(np.diag(second)) * np.eye(inputs, dtype=np.float32)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, codes = weight.copy(), np.empty(weight.shape, np.int8)
    for i in range(inputs):
        codes[i] = np.clip(np.round(rest[i] / step), *limits)
        error = (rest[i] - codes[i] * step) / factor[i, i]
        rest[i + 1 :] -= factor[i, i + 1 :, None] * error
    return codes

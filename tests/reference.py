"""NumPy references, written for clarity: loops, float64, no tricks."""

import itertools
import math

import numpy as np


def to_blocks(x, block, axis):
    """Blocks of `block` values along `axis`, in the place of that axis; last axis."""
    groups = math.ceil(x.shape[axis] / block)
    grid = list(x.shape)
    grid[axis] = groups
    blocks = np.zeros((*grid, block), x.dtype)
    for index in itertools.product(*map(range, x.shape)):
        group, position = divmod(index[axis], block)
        blocks[(*index[:axis], group, *index[axis + 1 :], position)] = x[index]
    return blocks


def lookup(codebook, codes, shape, axis):
    """`C[A]`: every weight's entry of its block's codeword."""
    out = np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        group, position = divmod(index[axis], codebook.shape[1])
        out[index] = codebook[
            codes[(*index[:axis], group, *index[axis + 1 :])], position
        ]
    return out


def codebook_gradient(gradient, codes, codewords, block, axis):
    """Sum of the gradients of all weights that an entry stands for."""
    out = np.zeros((codewords, block))
    for index in itertools.product(*map(range, gradient.shape)):
        group, position = divmod(index[axis], block)
        code = codes[(*index[:axis], group, *index[axis + 1 :])]
        out[code, position] += gradient[index]
    return out


def distances(points, codebook, importance):
    """`(n, k)` weighted squared distances; importance is `(n, d)`."""
    points, codebook, importance = (
        np.asarray(x, np.float64) for x in (points, codebook, importance)
    )
    difference = points[:, None] - codebook[None]
    return np.sum(importance[:, None] * difference**2, axis=2)


def lloyd(points, codebook, importance, iterations):
    """Weighted Lloyd iterations; a codeword without points keeps its place."""
    points, codebook, importance = (
        np.array(x, np.float64) for x in (points, codebook, importance)
    )
    for _ in range(iterations):
        codes = distances(points, codebook, importance).argmin(axis=1)
        for j in range(len(codebook)):
            mass = importance[codes == j].sum(axis=0)
            total = (importance * points)[codes == j].sum(axis=0)
            codebook[j] = np.where(
                mass > 0, total / np.where(mass > 0, mass, 1), codebook[j]
            )
    distance = distances(points, codebook, importance)
    return codebook, distance.argmin(axis=1), distance.min(axis=1).sum()


class FreezeSigns:
    """DESIGN's `freeze_signs` for one latent array, step by step, in float32."""

    def __init__(self, shape, interval, threshold, momentum, decide):
        self.interval, self.threshold = interval, threshold
        self.momentum, self.decide = np.float32(momentum), decide
        self.t = 0
        self.frequency = np.zeros(shape, np.float32)
        self.votes = np.zeros(shape, np.int64 if decide == "majority" else np.float32)
        self.frozen = np.zeros(shape, bool)

    def update(self, latent, proposed):
        """The new latent."""
        self.t += 1
        one = np.float32(1)
        moved = np.where(self.frozen, latent, latent + proposed)
        flipped = (moved >= 0) != (latent >= 0)
        self.frequency = self.momentum * flipped.astype(np.float32) + (
            (one - self.momentum) * self.frequency
        )
        sign = np.where(moved >= 0, 1, -1)
        if self.decide == "majority":
            self.votes += sign
        else:
            self.votes = self.momentum * sign.astype(np.float32) + (
                (one - self.momentum) * self.votes
            )
        if self.t % self.interval == 0:
            threshold = self.threshold
            limit = threshold(self.t) if callable(threshold) else threshold
            freezing = ~self.frozen & (self.frequency > np.float32(limit))
            decided = np.where(self.votes >= 0, 1, -1).astype(np.float32)
            tiny = np.finfo(np.float32).tiny
            decided = decided * np.maximum(np.abs(moved), tiny)
            moved = np.where(freezing, decided, moved)
            self.frozen |= freezing
        return moved.astype(np.float32)

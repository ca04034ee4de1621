"""A systolic array, element by element and cycle by cycle: slow and plain."""

import numpy as np


def weight_stationary(x, weights):
    """One fold: `x (m, r)` past `weights (r, c)`. Returns outputs and cycles."""
    m, (rows, cols) = len(x), weights.shape
    held = np.zeros((rows, cols), np.int64)
    cycles = 0
    for row in reversed(weights):  # shifted in from the top, the last row first
        held[1:] = held[:-1].copy()
        held[0] = row
        cycles += 1
    assert np.array_equal(held, weights)
    activations = np.zeros((rows, cols), np.int64)
    sums = np.zeros((rows, cols), np.int64)
    outputs, got = np.zeros((m, cols), np.int64), 0
    time = 0
    while got < m * cols:
        entering = [x[time - r, r] if 0 <= time - r < m else 0 for r in range(rows)]
        activations = np.column_stack([entering, activations[:, :-1]])
        above = np.vstack([np.zeros(cols, np.int64), sums[:-1]])
        sums = above + held * activations
        for c in range(cols):  # a sum leaves the last row
            i = time - (rows - 1) - c
            if 0 <= i < m:
                outputs[i, c] = sums[-1, c]
                got += 1
        time += 1
    return outputs, cycles + time


def output_stationary(x, weights):
    """One fold: `x (r, k)` times `weights (k, c)`. Returns outputs and cycles."""
    (rows, k), cols = x.shape, weights.shape[1]
    activations = np.zeros((rows, cols), np.int64)
    operands = np.zeros((rows, cols), np.int64)
    sums = np.zeros((rows, cols), np.int64)
    time, last = 0, k + rows - 1 + cols - 1
    while time < last:
        left = [x[r, time - r] if 0 <= time - r < k else 0 for r in range(rows)]
        top = [weights[time - c, c] if 0 <= time - c < k else 0 for c in range(cols)]
        activations = np.column_stack([left, activations[:, :-1]])
        operands = np.vstack([top, operands[:-1]])
        sums += activations * operands
        time += 1
    return sums, time


def product(x, weights, rows, cols, dataflow):
    """A product cut into folds, each padded with zeros. Returns outputs and cycles."""
    (m, k), n = x.shape, weights.shape[1]
    total, cycles = np.zeros((m, n), np.int64), 0
    if dataflow == "ws":
        for col in range(0, n, cols):
            for row in range(0, k, rows):
                part = _padded(weights[row : row + rows, col : col + cols], rows, cols)
                inputs = _padded(x[:, row : row + rows], m, rows)
                outputs, used = weight_stationary(inputs, part)
                width = min(cols, n - col)
                assert not outputs[:, width:].any()
                total[:, col : col + width] += outputs[:, :width]
                cycles += used
        return total, cycles
    for col in range(0, n, cols):
        for row in range(0, m, rows):
            part = _padded(weights[:, col : col + cols], k, cols)
            inputs = _padded(x[row : row + rows], rows, k)
            outputs, used = output_stationary(inputs, part)
            height, width = min(rows, m - row), min(cols, n - col)
            total[row : row + height, col : col + width] = outputs[:height, :width]
            cycles += used
    return total, cycles


def _padded(x, rows, cols):
    return np.pad(x, ((0, rows - x.shape[0]), (0, cols - x.shape[1])))

"""Boxes in JAX: where YOLOX's outputs put them, which stay, which are to be learned.

Boxes are left, top, right and bottom in pixels.

References:
  Ge, Liu, Wang, Li and Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021.
  Ge, Liu, Li, Yoshie and Sun, "OTA: Optimal Transport Assignment", 2021.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRIDES = (8, 16, 32)
"""Of the maps whose places are the locations."""
_CANDIDATES = 10
"""Most locations that one object gets."""
_FAR = 1e6
"""Cost of a location that is not at the object's centre."""


def locations(size: int) -> np.ndarray:
    """Column, row and stride of every location, float32 `(locations, 3)`.

    Args:
      size: Height and width of the image, a multiple of 32.

    Example:
      >>> from experiments.tasks.boxes import locations
      >>> locations(32).shape, locations(32)[-1].tolist()
      ((21, 3), [0.0, 0.0, 32.0])
    """
    parts = []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size // stride, : size // stride]
        parts.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=-1))
    return np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float32)


def decode(
    outputs: Float[Array, "*batch locations channels"], places: np.ndarray
) -> Float[Array, "*batch locations 4"]:
    """Boxes of outputs: centres from the locations, logarithms of sizes, in strides.

    Args:
      outputs: Four channels, or more that are not looked at.
      places: From `locations`.
    """
    cells = jnp.broadcast_to(places[:, :2], (*outputs.shape[:-1], 2))
    strides = jnp.broadcast_to(places[:, 2:], (*outputs.shape[:-1], 2))
    centre = (outputs[..., :2] + cells) * strides
    # Larger ones are no boxes, and areas would overflow.
    half = jnp.exp(jnp.minimum(outputs[..., 2:4], 20)) * strides / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def encode(
    boxes: Float[Array, "locations 4"], places: np.ndarray
) -> Float[Array, "locations 4"]:
    """Inverse of `decode`: the outputs that would give a box at every location."""
    cells, strides = places[:, :2], places[:, 2:]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / strides - cells
    sizes = (boxes[:, 2:] - boxes[:, :2]) / strides
    return jnp.concatenate([centre, jnp.log(jnp.maximum(sizes, 1e-8))], axis=-1)


def overlap(
    first: Float[Array, "*n 4"], second: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """Intersection over union, pair by pair; shapes are broadcast, 0 for no area.

    Example:
      >>> import jax.numpy as jnp
      >>> from experiments.tasks.boxes import overlap
      >>> print(overlap(jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 0, 3, 2])))
      0.33333334
    """
    low = jnp.maximum(first[..., :2], second[..., :2])
    high = jnp.minimum(first[..., 2:], second[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas = [jnp.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (first, second)]
    union = areas[0] + areas[1] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def suppress(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    classes: Int[Array, " n"],
    *,
    count: int,
    threshold: float = 0.65,
    least: float = 0.01,
) -> Int[Array, " count"]:
    """Non-maximum suppression, class by class.

    The best box stays, those of its class that overlap it go, and so on: what that
    gives of all boxes, and of these the best ones.

    Args:
      boxes: Boxes.
      scores: Theirs; of equal ones the first is first.
      classes: Theirs.
      count: How many are kept at most.
      threshold: Overlap above which a box goes.
      least: Score that a box has to exceed.

    Returns:
      Indices of the boxes that stay, best first; then -1.
    """

    def keep(left, _):
        best = jnp.argmax(left)
        found = left[best] > -jnp.inf
        alike = overlap(boxes[best][None], boxes) > threshold
        gone = alike & (classes == classes[best])
        left = jnp.where(gone, -jnp.inf, left).at[best].set(-jnp.inf)
        return left, jnp.where(found, best, -1)

    left = jnp.where(scores > least, scores, -jnp.inf)
    return jax.lax.scan(keep, left, length=count)[1]


class Assignment(NamedTuple):
    """What every location is to learn, `(locations,)` each.

    Attributes:
      taken: Whether it has an object.
      target: Which one; 0 where it has none.
      quality: Overlap of its box with that object's; 0 where it has none.
    """

    taken: jax.Array
    target: jax.Array
    quality: jax.Array


def assign(
    found: Float[Array, "locations 4"],
    objectness: Float[Array, " locations"],
    classes: Float[Array, "locations classes"],
    boxes: Float[Array, "targets 4"],
    labels: Int[Array, " targets"],
    valid: Bool[Array, " targets"],
    places: np.ndarray,
) -> Assignment:
    """SimOTA: objects to the locations that have to learn them, for one image.

    An object takes the locations of least cost among those within 1.5 strides of the
    centre of any object: as many as its ten largest overlaps add up to, one at least.
    A location that several take learns the one of least cost.

    Args:
      found: Boxes of the locations.
      objectness: Logits.
      classes: Logits.
      boxes: Of the objects.
      labels: Of the objects.
      valid: Which of the objects are there.
      places: From `locations`.
    """
    cells, strides = places[:, :2], places[:, 2:]
    centres = ((cells + np.float32(0.5)) * strides)[None]
    middle = (boxes[:, :2] + boxes[:, 2:])[:, None] / 2
    near = jnp.max(jnp.abs(centres - middle), axis=-1) < 1.5 * strides[None, :, 0]
    near = near & valid[:, None]
    candidate = jnp.any(near, axis=0, keepdims=True) & valid[:, None]

    overlaps = overlap(boxes[:, None], found[None])
    overlaps = jnp.where(candidate, overlaps, 0)
    # Of the probability of an object and its class; logarithms as in the original,
    # not below -100.
    log = (jax.nn.log_sigmoid(classes) + jax.nn.log_sigmoid(objectness)[:, None]) / 2
    no = jnp.maximum(jnp.log1p(-jnp.exp(log)), -100)
    yes = jnp.maximum(log, -100)
    own = (no - yes)[:, labels].T - jnp.sum(no, axis=-1)[None]
    cost = own - 3 * jnp.log(overlaps + 1e-8) + jnp.where(near, 0, _FAR)
    cost = jnp.where(candidate, cost, jnp.inf)

    most = min(_CANDIDATES, len(places))
    best = jax.lax.top_k(overlaps, most)[0]
    wanted = jnp.maximum(jnp.sum(best, axis=1).astype(jnp.int32), 1)
    negative, chosen = jax.lax.top_k(-cost, most)
    takes = (jnp.arange(most)[None] < wanted[:, None]) & (negative > -jnp.inf)
    rows = jnp.broadcast_to(jnp.arange(len(boxes))[:, None], chosen.shape)
    taken = jnp.zeros(cost.shape, bool).at[rows, chosen].set(takes)

    several = jnp.sum(taken, axis=0) > 1
    target = jnp.where(several, jnp.argmin(cost, axis=0), jnp.argmax(taken, axis=0))
    taken = jnp.any(taken, axis=0)
    quality = jnp.take_along_axis(overlaps, target[None], axis=0)[0]
    return Assignment(taken, target, jnp.where(taken, quality, 0))

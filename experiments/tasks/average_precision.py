"""Average precision, by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class AveragePrecision:
    """How detections meet objects, image by image.

    Args:
      images: Number of images.
      classes: Number of classes.
      objects: With `image` and `category` (numbers from 0), `bbox` (left, top, width,
        height), `area`, and `iscrowd`: what is found in a crowd is not counted.
      detections: With `image`, `category`, `bbox`, `area` and `score`.
      kind: "bbox", or "segm" for the overlap of masks: all have a `segmentation`, a
        run-length code of pycocotools.

    Example:
      >>> from experiments.tasks.average_precision import AveragePrecision
      >>> place = {"image": 0, "category": 2, "bbox": [4, 4, 9, 9], "area": 81}
      >>> one, other = {**place, "iscrowd": 0}, {**place, "score": 0.7}
      >>> found = AveragePrecision(1, 3, [one], [other])
      >>> round(found.scores()["ap"], 3), found.jackknife(20).shape
      (1.0, (1,))
    """

    def __init__(
        self,
        images: int,
        classes: int,
        objects: Sequence[dict[str, Any]],
        detections: Sequence[dict[str, Any]],
        kind: Literal["bbox", "segm"] = "bbox",
    ):
        self._images = images
        self._kind: Any = kind
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = (_coco(images, classes, x) for x in (objects, detections))
            self._evaluator: Any = COCOeval(truth, found, kind)
            self._evaluator.evaluate()

    def scores(self) -> dict[str, float]:
        """`ap` over overlaps of 0.5 to 0.95, `ap50`, `ap75`, and `ap` by size.

        Of classes without an object there is none; -1 if that goes for all.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            self._evaluator.accumulate()
            self._evaluator.summarize()
        return dict(zip(_NAMES, map(float, self._evaluator.stats), strict=False))

    def jackknife(self, groups: int) -> np.ndarray:
        """Pseudo-values of `ap`, one for each group of images, `(groups,)`.

        `groups * ap(all) - (groups - 1) * ap(all but one)`; group `g` of `n` has the
        images `g, g + n, ...`, and with fewer images every one is a group.
        """
        groups = min(groups, self._images)
        of = np.arange(self._images) % groups
        whole = self._ap(of >= 0)
        rest = [self._ap(of != group) for group in range(groups)] if groups > 1 else 0
        return groups * whole - (groups - 1) * np.array(rest).reshape(groups)

    def _ap(self, kept: np.ndarray) -> float:
        """Of some images: what was found out of each is accumulated anew."""
        own = self._evaluator
        shape = len(own.params.catIds), len(own.params.areaRng), self._images
        pairs = np.array(own.evalImgs, object).reshape(shape)[:, :1, kept]
        part: Any = COCOeval(iouType=self._kind)
        part.params = copy.copy(own.params)
        part.params.imgIds = list(np.asarray(own.params.imgIds)[kept])
        part.params.areaRng = own.params.areaRng[:1]
        part.params.maxDets = own.params.maxDets[-1:]
        part._paramsEval, part.evalImgs = part.params, list(pairs.reshape(-1))
        with contextlib.redirect_stdout(io.StringIO()):
            part.accumulate()
        precision = part.eval["precision"]
        precision = precision[precision > -1]
        return float(np.mean(precision)) if precision.size else -1.0


def _coco(images: int, classes: int, annotations: Sequence[dict[str, Any]]) -> COCO:
    coco: Any = COCO()
    coco.dataset = {
        # Sizes are those of the masks' own codes.
        "images": [{"id": i, "height": 0, "width": 0} for i in range(images)],
        "categories": [{"id": i} for i in range(classes)],
        # A match is told by the object's number, and 0 is none.
        "annotations": [
            {**x, "id": i, "image_id": x["image"], "category_id": x["category"]}
            for i, x in enumerate(annotations, start=1)
        ],
    }
    coco.createIndex()
    return coco

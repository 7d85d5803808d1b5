"""SPDL: one stage of threads, each making whole batches, as its documentation has it for functions that free the GIL.

https://facebookresearch.github.io/spdl/main/getting_started/
"""

import random
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from spdl.pipeline import PipelineBuilder

from benchmarks.peers.stream import BATCH, CROP, Plan, measure, read_plan


def batches(plan: Plan) -> Iterator[int]:
    """Each batch's images."""
    cv2.setNumThreads(1)
    files = plan.order()
    spare = plan.size - CROP

    def make(start: int) -> NDArray[np.uint8]:
        images = np.empty((BATCH, CROP, CROP, 3), np.uint8)
        pixels = np.empty((plan.size, plan.size, 3), np.uint8)
        for row, path in enumerate(files[start : start + BATCH]):
            with open(path, "rb") as file:  # noqa: PTH123  a Path costs microseconds a file
                simplejpeg.decode_jpeg(file.read(), "RGB", False, False, 0, 0, 1, pixels)
            top, left = random.randint(0, spare), random.randint(0, spare)
            crop = pixels[top : top + CROP, left : left + CROP]
            if random.random() < 0.5:
                cv2.flip(crop, 1, images[row])
            else:
                images[row] = crop
        return images

    builder = PipelineBuilder().add_source(range(0, len(files), BATCH)).pipe(make, concurrency=plan.workers).add_sink(4)
    # One thread more: the source is run by one too.
    pipeline = builder.build(num_threads=plan.workers + 1)
    with pipeline.auto_stop():
        for images in pipeline:
            yield len(images)


if __name__ == "__main__":
    plan = read_plan("threads")
    measure(batches(plan), plan, ("spdl-core", "simplejpeg", "opencv-python-headless", "numpy"))

"""NVIDIA DALI on CPU threads: cropped while decoding (``decoders.image_crop``), or decoded whole and cropped then.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/examples/image_processing/decoder_examples.html
"""

from collections.abc import Iterator

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def

from benchmarks.peers.stream import BATCH, CROP, Plan, measure, read_plan


def batches(plan: Plan) -> Iterator[int]:
    """Each batch's images."""

    @pipeline_def
    def photographs() -> DataNode:
        # The order is shuffled already.
        encoded, _ = fn.readers.file(files=plan.order())
        across, down = fn.random.uniform(range=(0.0, 1.0)), fn.random.uniform(range=(0.0, 1.0))
        reflect = fn.random.coin_flip()
        if plan.variant == "image_crop":
            images = fn.decoders.image_crop(encoded, crop=(CROP, CROP), crop_pos_x=across, crop_pos_y=down)
            return fn.flip(images, horizontal=reflect)
        return fn.crop_mirror_normalize(
            fn.decoders.image(encoded), crop=(CROP, CROP), crop_pos_x=across, crop_pos_y=down, mirror=reflect,
            dtype=types.DALIDataType.UINT8, output_layout="HWC",
        )  # fmt: skip

    pipeline = photographs(batch_size=BATCH, num_threads=plan.workers, device_id=None)
    while True:
        (images,) = pipeline.run()
        yield len(images)


if __name__ == "__main__":
    plan = read_plan("image_crop", "image")
    measure(batches(plan), plan, ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"))

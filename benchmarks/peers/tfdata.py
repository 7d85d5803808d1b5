"""tf.data in process, or as its service: one dispatcher and one worker per core, each a process of its own.

The in-process pipeline follows https://www.tensorflow.org/guide/data_performance: parallel map, prefetch, AUTOTUNE,
order of completion. The service's (https://www.tensorflow.org/api_docs/python/tf/data/experimental/service) is the
same pipeline, spread with DYNAMIC sharding, the mode that visits every image once; its splits are whole batches of
file names, because a worker asks the dispatcher for every split.
"""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import tensorflow as tf

from benchmarks.peers.stream import BATCH, CROP, Plan, measure, read_plan

service = tf.data.experimental.service
"""The service's names."""


def dataset(plan: Plan) -> tf.data.Dataset:
    """Batches (128, 224, 224, 3) uint8."""

    def image(path: tf.Tensor) -> tf.Tensor:
        corner = tf.random.uniform((2,), 0, plan.size - CROP + 1, tf.int32)
        window = tf.concat([corner, (CROP, CROP)], 0)
        return tf.image.random_flip_left_right(
            tf.image.decode_and_crop_jpeg(tf.io.read_file(path), window, channels=3)
        )  # fmt: skip

    order = plan.order()
    rows = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    images = tf.data.Dataset.from_tensor_slices(rows).unbatch()
    return images.map(image, tf.data.AUTOTUNE, deterministic=False).batch(BATCH, drop_remainder=True)


def serve_dispatcher(address: Connection) -> None:
    """The dispatcher's process; its address goes through the pipe."""
    dispatcher = service.DispatchServer()
    address.send(dispatcher.target)
    dispatcher.join()


def serve_worker(address: str) -> None:
    """A worker's process."""
    service.WorkerServer(service.WorkerConfig(dispatcher_address=address)).join()


def spread(images: tf.data.Dataset, workers: int) -> tf.data.Dataset:
    """The same dataset, made by the service's processes; they end with this one."""
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    spawn.Process(target=serve_dispatcher, args=(its,), daemon=True).start()
    target: str = mine.recv()
    for _ in range(workers):
        spawn.Process(target=serve_worker, args=(target.partition("://")[2],), daemon=True).start()
    # Decoded pixels do not shrink, and the workers are on this host.
    return images.apply(service.distribute(service.ShardingPolicy.DYNAMIC, target, compression=None))


def batches(plan: Plan) -> Iterator[int]:
    """Each batch's images."""
    images = dataset(plan)
    if plan.variant == "service":
        images = spread(images, plan.workers)
    for batch in images.prefetch(tf.data.AUTOTUNE):
        yield len(batch)


if __name__ == "__main__":
    plan = read_plan("process", "service")
    measure(batches(plan), plan, ("tensorflow-cpu", "numpy"))

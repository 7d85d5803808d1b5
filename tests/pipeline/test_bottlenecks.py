"""Whatever is made slow, the verdict names it: each stage and each way between processes, by a fifth and by two thirds.

All other stages have one and the same rate, so that nothing but the injected slowness tells them apart.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fourstage.store import open_store
from tests.pipeline.harness import CROP, Services, eventually, services
from tests.pipeline.throttle import Throttle
from tests.ports import free_port

BATCH_SECONDS = 0.1
"""Of every stage that is not slow; two augmenters work in turn."""
ROWS = 48
AUGMENTERS = 2
PIXEL_BYTES = ROWS * CROP * CROP * 3


def jpeg_bytes(store: Path) -> float:
    """Mean bytes of a batch of JPEG images."""
    return ROWS * float(open_store(store).split("train").records["size"].mean())


@contextmanager
def slowed(store: Path, folder: Path, what: str, share: float) -> Iterator[Services]:
    """A running pipeline in which one place works at ``share`` of the others' rate."""
    seconds = dict.fromkeys(("load", "transform", "copy", "train"), BATCH_SECONDS)
    if what in seconds:
        seconds[what] /= share
    with ExitStack() as stack:
        loader_port, trainer_port = free_port(2), free_port()
        reached = {"loader": loader_port, "trainer": trainer_port}
        if what == "to-augmenter":
            rate = share * jpeg_bytes(store) / BATCH_SECONDS
            reached["loader"] = stack.enter_context(Throttle(loader_port, rate, "from-target")).port
        elif what == "to-trainer":
            rate = share * PIXEL_BYTES / BATCH_SECONDS
            reached["trainer"] = stack.enter_context(Throttle(trainer_port, rate, "to-target")).port
        running = stack.enter_context(
            services(
                store, folder, 0,
                [
                    "model.name=none", f"augmenter.crop={CROP}", f"batch_size={ROWS}", "transport=inline",
                    "train.epochs=10000",
                    f"loader.batch_seconds={seconds['load']}",
                    f"augmenter.batch_seconds={AUGMENTERS * seconds['transform']}",
                    f"train.copy_seconds={seconds['copy']}", f"train.step_seconds={seconds['train']}",
                    f"receiver=tcp://127.0.0.1:{reached['trainer']}",
                    f"receiver_bind=tcp://127.0.0.1:{trainer_port}",
                ],
                loader=f"tcp://127.0.0.1:{loader_port}",
            )
        )  # fmt: skip
        for number in range(AUGMENTERS):
            running.start_augmenter(f"augmenter-{number}", loader=f"tcp://127.0.0.1:{reached['loader']}")
        running.start_trainer("drain")
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.8, 0.3])
@pytest.mark.parametrize("what", ["load", "to-augmenter", "transform", "to-trainer", "copy", "train"])
def test_the_verdict_names_what_is_slow(store: Path, tmp_path: Path, what: str, share: float) -> None:
    with slowed(store, tmp_path, what, share) as running:

        def settled() -> dict[str, Any]:
            """The status, once its ten seconds are all of the steady state."""
            status = running.status()
            return status if status.get("seconds", 0.0) > 20.0 else {}

        status = eventually(settled, "twenty seconds of training", 60.0)
        print(what, share, json.dumps({key: status[key] for key in ("verdict", "stages", "on_the_way_seconds")}))
        assert status["verdict"]["what"] == what, status

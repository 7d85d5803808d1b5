"""The dashboards' pictures in docs/images, of a real run. ``python -m tests.monitoring.pictures`` makes them anew.

Six minutes: one slow augmenter, for which training waits; two; four, which are enough; then one of them is killed.
"""

import sys
import tempfile
import time
from pathlib import Path

from fourstage.dashboards.draw import draw_all
from fourstage.demo import write_photographs
from fourstage.store.prepare import prepare
from tests.monitoring.expressions import ROOT
from tests.monitoring.server import watching
from tests.pipeline.harness import fourstage, start_run

STAGING = [
    "--recipe", "demo", "--augmenters", "1", "--epochs", "45", "--set", "augmenter.batch_seconds=0.4",
    "--set", "train.checkpoint_seconds=30", "--set", "loader.expect_augmenters=4", "--set", "train.drop_epochs=[16]",
]  # fmt: skip
SCRAPE = 2
PARTS = ((140.0, 2), (80.0, 4), (100.0, 4), (50.0, 4))
"""Seconds, and the augmenters that there are to be after them."""


def main(folder: Path) -> None:
    store = folder / "store"
    if not store.exists():
        write_photographs(folder / "photographs", seed=0, train_per_class=150, validation_per_class=20)
        prepare(folder / "photographs" / "train", store, size=36)
        prepare(folder / "photographs" / "val", store, split="val", size=36)
    run = start_run(store, folder / "run", *STAGING)
    try:
        with watching(folder / "run", folder / "prometheus", SCRAPE) as prometheus:
            run.reach(1)
            began = time.time()
            for number, (seconds, augmenters) in enumerate(PARTS):
                time.sleep(seconds)
                if augmenters != len([name for name in run.processes() if name.startswith("augmenter-")]):
                    done = fourstage("scale", str(augmenters), "--run-dir", str(folder / "run"))
                    assert done.returncode == 0, done.stderr
                elif number < len(PARTS) - 1:
                    run.kill("augmenter-1")
            draw_all(prometheus, ROOT / "docs" / "images", began, time.time(), f"{5 * SCRAPE}s")
    finally:
        run.process.terminate()
        run.process.communicate(timeout=60)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))

"""Others read a store as it is: tar, webdataset and DALI see the keys, labels and bytes that the index has."""

import subprocess
import tarfile

import numpy as np
import pytest

from fourstage.store import Store, open_store
from fourstage.store.prepare import prepare
from tests.store.pictures import class_files, encoded, pixels, write_folder

Sample = tuple[str, int, bytes]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("readers")
    odd = [
        "a b.jpg",
        "v1.2.jpg",
        "ö\n.jpg",
        "~.jpg",
        "__x__.jpg",
        f"{'long' * 40}.jpg",
        "same.jpg",
        "same.png",
    ]
    files = class_files({"n01": 60, "n02.x": 20})
    files |= {f"{name}/{file}": encoded(pixels(1000 + n)) for name in ("__odd__", "z y") for n, file in enumerate(odd)}
    prepare(write_folder(root / "source", files), root / "store", size=16, workers=1, shard_bytes=50_000)
    return open_store(root / "store")


@pytest.fixture(scope="module")
def expected(store: Store) -> list[Sample]:
    split = store.split("train")
    everything = np.arange(len(split))
    shards = [shard.read_bytes() for shard in split.shards]
    jpegs = [shards[r["shard"]][r["offset"] : int(r["offset"]) + int(r["size"])] for r in split.records]
    samples = list(zip(split.keys(everything), split.labels(everything).tolist(), jpegs, strict=True))
    assert len(samples) == 96
    assert len(shards) == 2
    return samples


def test_tar_lists_pairs_of_image_and_class(store: Store, expected: list[Sample]) -> None:
    names: list[str] = []
    for shard in store.split("train").shards:
        listed = subprocess.run(["tar", "tf", str(shard)], capture_output=True, check=True, text=True)
        assert listed.stderr == ""
        names += listed.stdout.splitlines()
    assert names == [f"{key}.{kind}" for key, _, _ in expected for kind in ("jpg", "cls")]


def test_the_headers_are_those_that_tarfile_writes(store: Store) -> None:
    for shard in store.split("train").shards:
        with tarfile.open(shard) as tar:
            for info in tar:
                again = tarfile.TarInfo(info.name)
                again.size = info.size
                header = again.tobuf(tarfile.PAX_FORMAT)
                with shard.open("rb") as stream:
                    stream.seek(info.offset)
                    assert stream.read(len(header)) == header


def test_webdataset_reads_the_same_samples(store: Store, expected: list[Sample]) -> None:
    import webdataset

    shards = [str(shard) for shard in store.split("train").shards]
    dataset = webdataset.WebDataset(shards, shardshuffle=False)
    assert [(sample["__key__"], int(sample["cls"]), sample["jpg"]) for sample in dataset] == expected


def test_dali_reads_the_same_samples_through_our_index(store: Store, expected: list[Sample]) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="the extra dali is not installed")
    shards = store.split("train").shards
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        jpeg, label = dali.fn.readers.webdataset(
            paths=[str(shard) for shard in shards],
            index_paths=[str(shard.with_suffix(".idx")) for shard in shards],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(jpeg, label)
    pipeline.build()
    samples = []
    for _ in expected:
        jpegs, labels = pipeline.run()
        samples.append((int(np.asarray(labels.at(0)).tobytes()), np.asarray(jpegs.at(0)).tobytes()))
    assert samples == [(label, jpeg) for _, label, jpeg in expected]
    lines = [line for shard in shards for line in shard.with_suffix(".idx").read_text().splitlines()[1:]]
    assert [line.split()[3] for line in lines] == [f"{key}.jpg" for key, _, _ in expected]

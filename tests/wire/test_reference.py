"""An augmenter in another language has proto/README.md and vectors.json alone, and so has ``tests.wire.reference``."""

import hashlib
import struct
from statistics import NormalDist
from typing import Any

import pytest

from tests.wire.reference import VECTORS, blake, block, draw, numbers, order, philox, place


@pytest.mark.parametrize("entry", VECTORS["philox4x64_10"], ids=["zeros", "ones", "pi"])
def test_the_generator(entry: dict[str, Any]) -> None:
    assert philox(numbers(entry["key"]), numbers(entry["counter"])) == numbers(entry["words"])


@pytest.mark.parametrize("entry", VECTORS["words"], ids=lambda entry: f"block {entry['block']}")
def test_its_key_and_counter(entry: dict[str, Any]) -> None:
    words = block(entry["seed"], entry["epoch"], entry["domain"], entry["block"])
    assert words == numbers(entry["words"])


@pytest.mark.parametrize("entry", VECTORS["order"][:-1], ids=lambda entry: f"epoch {entry['epoch']}")
def test_the_order_of_an_epoch(entry: dict[str, Any]) -> None:
    assert order(entry["seed"], entry["epoch"], entry["samples"]) == entry["indices"]


@pytest.mark.parametrize("entry", VECTORS["places"], ids=lambda entry: f"batch {entry['seq']} rank {entry['rank']}")
def test_the_place_of_a_batch(entry: dict[str, Any]) -> None:
    assert place(entry) == entry["place"]


def test_the_table_of_quantiles() -> None:
    table = VECTORS["normal_quantiles_over_2_to_20"]
    normal = NormalDist()
    assert table == [round(normal.inv_cdf((number + 0.5) / 4096) * 2**20) for number in range(4096)]


@pytest.mark.parametrize("entry", VECTORS["draws"], ids=lambda entry: f"{entry['view']['kind']} {entry['positions']}")
def test_the_draws_of_a_sample(entry: dict[str, Any]) -> None:
    for row, expected in enumerate(zip(entry["offsets"], entry["reflections"], entry["shifts_float32"], strict=True)):
        assert draw(entry, entry["first"] + row) == expected
    packed = struct.pack(f"<{2 * len(entry['offsets'])}i", *(value for pair in entry["offsets"] for value in pair))
    packed += bytes(entry["reflections"])
    packed += struct.pack(
        f"<{3 * len(entry['offsets'])}f", *(value for row in entry["shifts_float32"] for value in row)
    )
    assert packed.hex() == entry["packed"]


def test_the_chain_of_a_receipt() -> None:
    chain = {"keys": bytes(16), "pixels": bytes(16)}
    for entry in VECTORS["receipt"]:
        # The samples' fixed layout here: three short binaries and texts, whose lengths fit in a byte or less.
        samples = bytes.fromhex(entry["samples"])
        rows = len(entry["offsets"])
        indices = samples.partition(b"indices\xc4" + bytes([8 * rows]))[2][: 8 * rows]
        labels = samples.partition(b"labels\xc4" + bytes([4 * rows]))[2][: 4 * rows]
        keys = [samples.partition(b"keys")[2][2 + 8 * row : 9 + 8 * row] for row in range(rows)]
        images = bytes.fromhex(entry["xxh3_128_of_images"])
        there = [row for row in range(rows) if row not in entry["skipped"]]
        for covers, width in (("keys", 0), ("pixels", 16)):
            of_rows = ""
            for row in range(rows):
                if row not in there:
                    of_rows += bytes(16).hex()
                    continue
                head = keys[row] + indices[8 * row : 8 * row + 8] + labels[4 * row : 4 * row + 4]
                offsets, shift = entry["offsets"][row], entry["shifts_float32"][row]
                drawn = struct.pack("<2i?3f", *offsets, entry["reflections"][row], *shift)
                lies = width * there.index(row)
                of_rows += blake(head, drawn, images[lies : lies + width])
            assert of_rows == entry["sample_digests"][covers]
            digest = blake(struct.pack("<Q", entry["seq"]), bytes.fromhex(of_rows))
            assert digest == entry["batch_digest"][covers]
            chain[covers] = bytes.fromhex(blake(chain[covers], bytes.fromhex(digest)))
            assert chain[covers].hex() == entry["chain"][covers]


def test_the_golden_image_is_in_the_file_itself() -> None:
    golden = VECTORS["identity"]
    assert hashlib.sha256(bytes.fromhex(golden["golden_jpeg"])).hexdigest() == golden["golden_sha256"]

"""Section 8 of proto/README.md once more, from that page and proto/vectors.json alone: no fourstage, no NumPy."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "proto" / "vectors.json").read_text("utf-8"))
MASK = 2**64 - 1


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Philox4x64-10: ten rounds of two multiplications, the key raised between them."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = high >> 64 ^ b ^ k0, high & MASK, low >> 64 ^ d ^ k1, low & MASK
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
    return [a, b, c, d]


def block(seed: int, epoch: int, domain: int, number: int) -> list[int]:
    return philox([seed, epoch], [number + 1, 0, 0, domain])


def order(seed: int, epoch: int, samples: int) -> list[int]:
    words = [word for number in range(-(-samples // 4)) for word in block(seed, epoch, 1, number)]
    return sorted(range(samples), key=lambda sample: words[sample])


def place(entry: dict[str, Any]) -> dict[str, int]:
    samples, size, rank, world = entry["samples"], entry["batch_size"], entry["rank"], entry["world"]
    batches = samples // size if entry["remainder"] == "drop" else -(-samples // size)
    epoch, batch = divmod(entry["seq"], batches)
    rows = min(size, samples - batch * size)
    low, high = rows * rank // world, rows * (rank + 1) // world
    return {"epoch": epoch, "first": batch * size + low, "rows": high - low}


def float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def draw(entry: dict[str, Any], position: int) -> tuple[list[int], bool, list[float]]:
    """Offsets, reflection and shift of the sample at one position."""
    view, size = entry["view"], entry["size"]
    if view["kind"] != "random":
        corner = 0 if view["kind"] == "full" else (size - view["crop"]) // 2
        return [corner, corner], False, [0.0] * 3
    places = max(1, size - view["crop"] + (view["crop_positions"] == "inclusive"))
    place = block(entry["seed"], entry["epoch"], 0, position - position % view["crop_chunk"])[0]
    row = (place & 0xFFFF_FFFF) * places >> 32
    column = (place >> 32 & 0x7FFF_FFFF) * places >> 31
    if view["colour_std"] == 0 or entry["epoch"] >= view["colour_epochs"]:
        return [row, column], bool(place >> 63), [0.0] * 3
    table = VECTORS["normal_quantiles_over_2_to_20"]
    words = block(entry["seed"], entry["epoch"], 0, position)
    a1, a2, a3 = (table[word >> 52] / 2**20 * view["colour_std"] for word in words[1:])
    shift = [float32(a1 * c1 + a2 * c2 + a3 * c3) for c1, c2, c3 in entry["colours"]]
    return [row, column], bool(place >> 63), shift


def blake(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def numbers(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]

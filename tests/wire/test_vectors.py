"""proto/vectors.json is the truth for every language; here it drives this one."""

import json
from typing import Any

import numpy as np
import pytest

from fourstage import philox
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.transform import identity
from fourstage.errors import PeerError
from fourstage.wire.codec import decode, encode
from fourstage.wire.messages import TYPES
from tests.wire.make_vectors import MESSAGES, PATH, plain, text

VECTORS: dict[str, Any] = json.loads(PATH.read_text("utf-8"))


def test_the_file_is_what_the_code_makes() -> None:
    assert PATH.read_text("utf-8") == text(), "run python -m tests.wire.make_vectors"


def test_every_type_of_message_has_a_vector() -> None:
    assert {entry["type"] for entry in VECTORS["messages"]} == {kind.__name__ for kind in TYPES.values()}


@pytest.mark.parametrize("entry", VECTORS["messages"], ids=lambda entry: entry["type"])
def test_frames_decode_to_the_fields_and_encode_from_them(entry: dict[str, Any]) -> None:
    frames = [bytes.fromhex(frame) for frame in entry["frames"]]
    message = decode(frames)
    assert plain(message) == entry["fields"]
    assert message in MESSAGES
    assert encode(message) == frames


@pytest.mark.parametrize("entry", VECTORS["malformed"], ids=lambda entry: entry["fault"])
def test_malformed_frames_are_named_peer_errors(entry: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match=entry["fault"]):
        decode([bytes.fromhex(frame) for frame in entry["frames"]])


def test_philox_gives_the_published_known_answer() -> None:
    # Random123's kat_vectors: philox4x64-10, counter and key zero. Block b here has counter b + 1.
    generator = np.random.Philox(key=[0, 0], counter=[2**64 - 1] * 4)
    known = ["16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"]
    assert [f"{word:016x}" for word in generator.random_raw(4).tolist()] == known
    following = generator.random_raw(4).tolist()
    assert philox.words(0, 0, 0, 0, 1).tolist() == [following]


@pytest.mark.parametrize("name", ["simplejpeg", "turbojpeg"])
def test_both_decoders_have_the_golden_identity(name: str) -> None:
    if name == "turbojpeg":
        pytest.importorskip("turbojpeg").TurboJPEG()
    assert identity(make_decoder(name)).hex() == VECTORS["identity"]["identity"]  # type: ignore[arg-type]

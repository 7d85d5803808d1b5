"""``store.json``: what a store is and which files it has. Written last, so a store that has one is whole."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fourstage.errors import StoreError
from fourstage.store.files import RESTORE, file_length, open_regular, write_file

FORMAT = "fourstage-store"
VERSION = 1
MANIFEST_NAME = "store.json"
LONGEST_CLASS = 1024
"""Characters."""
MOST_CLASSES = 1_000_000
_LONGEST = 64 << 20
"""Bytes; ImageNet's has some 60,000."""

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""Files are named by it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Part):
    """A shard file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$")]
    bytes: Count
    images: Count
    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class SplitEntry(_Part):
    """A split; ``index_sha256`` stands for every byte that training sees of it."""

    images: Annotated[int, Field(ge=1)]
    left_out: Count
    bytes: Count
    """Of all its shards."""

    index_sha256: Digest
    shards: tuple[ShardEntry, ...]


class Manifest(_Part):
    """The whole of ``store.json`` but for the fingerprint, which follows from it."""

    format: Literal["fourstage-store"] = "fourstage-store"
    version: Literal[1] = 1
    size: Annotated[int, Field(ge=1, le=65_500)]
    quality: Annotated[int, Field(ge=1, le=100)]
    classes: Annotated[tuple[Annotated[str, Field(max_length=LONGEST_CLASS)], ...], Field(max_length=MOST_CLASSES)]
    splits: Annotated[dict[SplitName, SplitEntry], Field(max_length=64)]
    statistics_sha256: Digest

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over what training depends on; another quality shows in the indexes."""
        relevant = {
            "version": self.version,
            "size": self.size,
            "classes": self.classes,
            "splits": {name: split.index_sha256 for name, split in self.splits.items()},
        }
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode("ascii")).hexdigest()


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write ``store.json``; raises OSError."""
    values = manifest.model_dump() | {"fingerprint": manifest.fingerprint}
    write_file(store / MANIFEST_NAME, (json.dumps(values, indent=1) + "\n").encode("ascii"))


def read_manifest(store: Path) -> Manifest:
    """Read ``store.json``; raises StoreError where it is missing, foreign, of another version or altered."""
    path = store / MANIFEST_NAME
    try:
        with open_regular(path) as stream:
            if (length := file_length(stream)) > _LONGEST:
                raise ValueError(f"more than {_LONGEST} bytes")
            values = json.loads(stream.read(length))
    except FileNotFoundError as error:
        raise StoreError(
            f"{store} is no finished store: it has no {MANIFEST_NAME}",
            hint="make it with fourstage prepare SOURCE STORE; one that was interrupted goes on where it was",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else values
        raise StoreError(f"{path} has format {found!r}, not {FORMAT!r}", hint="name a store made by fourstage prepare")
    if values.get("version") != VERSION:
        raise StoreError(
            f"{store} has format version {values.get('version')!r}, and this fourstage reads {VERSION}",
            hint="use the fourstage that made it, or prepare it again",
        )
    fingerprint = values.pop("fingerprint", None)
    try:
        manifest = Manifest.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if fingerprint != manifest.fingerprint:
        raise _damaged(path, f"its fingerprint {fingerprint!r} does not follow from its content")
    return manifest


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} is damaged or edited: {what}", hint=RESTORE)

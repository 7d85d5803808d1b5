"""Sources made in code, for the tests of the store."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pixels(seed: int, width: int = 40, height: int = 30) -> NDArray[np.uint8]:
    """A smooth picture (height, width, 3), different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | NDArray[np.uint8], kind: str = "JPEG", **options: object) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def class_files(classes: dict[str, int], seed: int = 0) -> dict[str, bytes]:
    """``CLASS/NUMBER.jpg`` for each class as many as asked for."""
    names = [f"{name}/{number:04}.jpg" for name, count in classes.items() for number in range(count)]
    return {name: encoded(pixels(seed + index)) for index, name in enumerate(names)}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar with these members; mode ``w:xz`` and the like compress it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_out(store: Path) -> dict[str, str]:
    """The reasons in ``left-out.jsonl``, by name."""
    lines = (store / "left-out.jsonl").read_text("ascii").splitlines()
    return {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}

"""What training subtracts and shifts by: the mean image and the principal components of colour.

They are those of the stored JPEGs' decoded pixels, which is what is trained on: 4:2:0 takes a part of the
colour variance away, and decoding each image once more also proves that it can be.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import StoreError
from fourstage.store.files import RESTORE, file_length, open_regular


@dataclass(frozen=True, slots=True)
class Statistics:
    """Over the training split, on the scale 0..255; S is the store's size."""

    mean: NDArray[np.float32]
    """(S, S, 3): the mean of each pixel and channel."""

    covariance: NDArray[np.float64]
    """(3, 3): of the RGB values of all pixels, divided by their number."""

    eigenvalues: NDArray[np.float64]
    """(3,): of the covariance, largest first."""

    eigenvectors: NDArray[np.float64]
    """(3, 3): one a column, of length one; the component of largest magnitude of each is positive."""

    count: int
    pixel_sums: NDArray[np.int64]
    """(S, S, 3)."""

    product_sums: NDArray[np.int64]
    """(3, 3): the sums of R*R, R*G ... B*B over all pixels."""

    @classmethod
    def from_sums(cls, count: int, pixel_sums: NDArray[np.int64], product_sums: NDArray[np.int64]) -> Self:
        """From integer sums over ``count`` > 0 images, pixel (S, S, 3) and product (3, 3)."""
        pixels = count * pixel_sums.shape[0] * pixel_sums.shape[1]
        channels = [int(total) for total in pixel_sums.sum(axis=(0, 1))]
        # In whole numbers up to the last division: the difference of two huge, nearly equal products.
        covariance = np.array(
            [
                [(pixels * int(product_sums[a, b]) - channels[a] * channels[b]) / pixels**2 for b in range(3)]
                for a in range(3)
            ]
        )
        ascending, vectors = np.linalg.eigh(covariance)
        vectors = vectors[:, ::-1]
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        return cls(
            mean=(pixel_sums / count).astype(np.float32),
            covariance=covariance,
            eigenvalues=ascending[::-1].copy(),
            eigenvectors=vectors * np.where(largest < 0, -1.0, 1.0),
            count=count,
            pixel_sums=pixel_sums,
            product_sums=product_sums,
        )

    def problem(self, size: int) -> str:
        """What is not as the statistics of images of that size are; empty: nothing."""
        image, square = (size, size, 3), (3, 3)
        # Of values from 0 to 255: their mean, at most 127.5 squared of variance, three times that along one direction.
        for name, shape, kind, largest in (
            ("mean", image, np.float32, 255.0),
            ("covariance", square, np.float64, 16_257.0),
            ("eigenvalues", (3,), np.float64, 48_769.0),
            ("eigenvectors", square, np.float64, 1.001),
            ("pixel_sums", image, np.int64, math.inf),
            ("product_sums", square, np.int64, math.inf),
        ):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                return f"holds {name} that are no array"
            if array.shape != shape or array.dtype != kind:
                return f"holds {name} of {array.dtype} {array.shape}, not {np.dtype(kind)} {shape}"
            if not (np.isfinite(array) & (np.abs(array) <= largest)).all():
                return f"holds {name} that no images have"
        return ""

    def to_bytes(self) -> bytes:
        """A .npz file; equal statistics give equal bytes."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            mean=self.mean,
            covariance=self.covariance,
            eigenvalues=self.eigenvalues,
            eigenvectors=self.eigenvectors,
            count=np.int64(self.count),
            pixel_sums=self.pixel_sums,
            product_sums=self.product_sums,
        )
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a ``statistics.npz``; raises StoreError where it is missing or damaged."""
        try:
            with open_regular(path) as stream:
                with zipfile.ZipFile(stream) as archive:
                    # Nothing in it is compressed, so what unpacks to more than the file has was not made here.
                    if sum(member.file_size for member in archive.infolist()) > file_length(stream):
                        raise ValueError("it unpacks to more than it is")
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as arrays:
                    fields: dict[str, Any] = {name: arrays[name] for name in arrays.files}
                    return cls(**fields | {"count": int(fields["count"])})
        except Exception as error:
            # zipfile, zlib and numpy each have their own errors for a damaged archive.
            raise StoreError(
                f"cannot read the statistics {path}: {error}",
                hint=RESTORE,
            ) from error

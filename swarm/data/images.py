"""Labelled images from an `.npz` file: `x` (N, H, W) or (N, H, W, C) uint8, and `y` (N,) whole numbers from 0."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swarm.data.errors import DataError

BYTES_MAX: Final = 8 << 30
"""Unpacked. A file of a few kilobytes can unpack to anything."""
_HASH_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Images:
    """Images and their labels, in the order of the file."""

    x: npt.NDArray[np.uint8]
    """(N, H, W, C)."""
    y: npt.NDArray[np.int64]
    """(N,), from 0 to classes - 1; each occurs."""
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        _, height, width, channels = self.x.shape
        return height, width, channels


def read_images(path: Path, *, sha256: str | None = None) -> Images:
    """Read an `.npz` file. Raises DataError when it is not what its name promises.

    Args:
      sha256: of the file, in hex, which it must have.
    """
    if sha256 is not None and (found := hash_of(path)) != sha256:
        raise DataError(f"{path} is not the file this run trains on: its hash is {found}")
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            missing = {"x", "y"} - set(archive.files)
            if missing:
                raise DataError(
                    f"{path} has no array named {' and none named '.join(sorted(missing))}"
                )
            return checked(archive["x"], archive["y"], str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not an .npz file, or is damaged") from error
    except ValueError as error:  # numpy's word for pickled objects and for broken headers
        raise DataError(
            f"{path} has an array that is not plain numbers (objects are never loaded): {error}"
        ) from error


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def checked(x: npt.NDArray[Any], y: npt.NDArray[Any], where: str) -> Images:
    """Check the arrays. Raises DataError that says what was found and what would be right."""
    if x.dtype != np.uint8:
        raise DataError(f"{where}: x must be uint8 (0 to 255), not {x.dtype}")
    if x.ndim not in (3, 4) or not x.size:
        raise DataError(f"{where}: x must be (N, H, W) or (N, H, W, C), not {x.shape}")
    if y.shape != x.shape[:1]:
        raise DataError(
            f"{where}: y must be ({x.shape[0]},), a label for each image, not {y.shape}"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{where}: y must be whole numbers, not {y.dtype}")
    labels = np.unique(y)
    classes = len(labels)
    if labels[0] != 0 or int(labels[-1]) != classes - 1:
        raise DataError(
            f"{where}: labels must be 0 to K - 1 with each of them there; there are {classes}, "
            f"from {labels[0]} to {labels[-1]}"
        )
    return Images(x if x.ndim == 4 else x[..., None], y.astype(np.int64), classes)


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > BYTES_MAX:
        raise DataError(f"{path} unpacks to {size >> 20} MiB; at most {BYTES_MAX >> 20} are read")

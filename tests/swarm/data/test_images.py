"""An `.npz` is read, or refused with a reason that helps."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm.data import images as images_module
from swarm.data.digits import read_digits
from swarm.data.errors import DataError
from swarm.data.images import hash_of, read_images
from swarm.data.samples import standardised

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
Y = np.array([0, 1, 2, 0, 1, 2])


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    found = read_images(saved(tmp_path, x=X, y=Y))
    assert (found.x.shape, found.shape, found.classes) == ((6, 4, 5, 1), (4, 5, 1), 3)
    assert found.y.dtype == np.int64


def test_images_may_have_channels_and_the_file_a_hash(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.repeat(X[..., None], 3, axis=3), y=Y.astype(np.uint8))
    assert read_images(path, sha256=hash_of(path)).shape == (4, 5, 3)
    with pytest.raises(DataError, match="hash"):
        read_images(path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": X}, "no array named y"),
        ({"y": Y}, "no array named x"),
        ({"x": X.astype(np.float32), "y": Y}, "uint8"),
        ({"x": X.reshape(6, 20), "y": Y}, r"\(N, H, W\)"),
        ({"x": X.reshape(6, 4, 5, 1, 1), "y": Y}, r"\(N, H, W\)"),
        ({"x": X[:0], "y": Y[:0]}, r"\(N, H, W\)"),
        ({"x": X, "y": Y[:5]}, "a label for each"),
        ({"x": X, "y": Y[:, None]}, "a label for each"),
        ({"x": X, "y": Y.astype(np.float64)}, "whole numbers"),
        ({"x": X, "y": Y + 1}, "labels must be"),
        ({"x": X, "y": Y - 1}, "labels must be"),
        ({"x": X, "y": Y * 2}, "labels must be"),
        ({"x": X, "y": np.array([0, 1, 2, 0, 1, 1 << 40])}, "labels must be"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_images(saved(tmp_path, **arrays))


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "loaded"
    path = saved(tmp_path, x=X, y=np.array([Trap(mark)] * 6, dtype=object))
    with pytest.raises(DataError, match="objects are never loaded"):
        read_images(path)
    assert not mark.exists()


def test_what_is_no_archive_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_bytes(b"not a zip file")
    np.save(tmp_path / "one.npy", X)
    for name in ("text.npz", "one.npy"):
        with pytest.raises(DataError, match=r"not an \.npz file"):
            read_images(tmp_path / name)
    with pytest.raises(DataError, match="cannot read"):
        read_images(tmp_path / "nothing.npz")


def test_an_array_cut_short_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.save(header, X)
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue()[:-50])
        archive.writestr("y.npy", b"")
    with pytest.raises(DataError):
        read_images(tmp_path / "short.npz")


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((64, 256, 256), np.uint8), y=np.zeros(64, np.int64))
    monkeypatch.setattr(images_module, "BYTES_MAX", 1 << 20)
    with pytest.raises(DataError, match="unpacks to"):
        read_images(path)


def test_the_digits_are_there() -> None:
    digits = read_digits()
    assert (digits.x.shape, digits.classes, int(digits.x.max())) == ((1797, 8, 8, 1), 10, 240)


def test_samples_are_standardised_by_what_is_trained_on() -> None:
    split = standardised(read_digits(), held_out=0.2, seed=1)
    assert (len(split.train), len(split.test), split.classes) == (1438, 359, 10)
    assert split.train.x.shape == (1438, 1, 8, 8)
    assert float(split.train.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(split.train.x.std()) == pytest.approx(1, abs=1e-3)

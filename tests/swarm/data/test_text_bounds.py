"""What a pattern may cost, and where a stranger's may point."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from swarm.data.errors import DataError
from swarm.data.text import is_within, read_text

MB = 1 << 20


def test_memory_follows_the_files_and_not_what_a_run_allows(tmp_path: Path) -> None:
    """A file was read with room for `bytes_max` at once: 2^40 of them raised MemoryError for a text of any size."""
    (tmp_path / "text").write_text("some words")
    assert read_text(str(tmp_path / "text"), bytes_max=1 << 40).data == b"some words\0"


def test_text_takes_no_more_than_its_share_of_what_the_node_may_take(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.write(b"words " * 2000)
        file.truncate(1700 * MB)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="--memory-max-mb 600"):
        read_text(str(sparse), bytes_max=1 << 40, memory_max_bytes=600 * MB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300 * 1024


def test_what_fits_is_read_under_a_bound_too(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"w" * 1000)
    text = read_text(str(tmp_path / "text"), bytes_max=1 << 40, memory_max_bytes=8000)
    assert len(text.data) == 1001


@pytest.mark.parametrize("pattern", ["", "  "])
def test_an_empty_pattern_names_nothing(pattern: str) -> None:
    with pytest.raises(DataError, match="an empty pattern"):
        read_text(pattern, bytes_max=MB)


def test_files_without_a_word_are_no_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")
    for pattern in (str(tmp_path), str(tmp_path / "a")):
        with pytest.raises(DataError, match="no text was found"):
            read_text(pattern, bytes_max=MB)


def test_only_what_lies_in_the_folders_that_are_named_is_within(tmp_path: Path) -> None:
    texts, private = tmp_path / "texts", tmp_path / "private"
    for folder in (texts, private):
        folder.mkdir()
    os.symlink(private, texts / "way-out")
    allowed = [str(texts)]
    assert is_within(str(texts), allowed)
    assert is_within(f"{texts}/a/*.txt", allowed)
    assert is_within("{stdlib}/**/*.py", [])
    for pattern in (
        "/",
        "*",
        str(tmp_path),
        str(private / "key"),
        f"{texts}/../private/key",
        f"{texts}/*/../../private/*",
        f"{texts}/way-out/key",
        f"{texts}-more/x",
        "{stdlib}/../../etc/passwd",
        "~/.ssh/id_ed25519",
    ):
        assert not is_within(pattern, allowed), pattern
    assert not is_within(str(texts), [])

"""A run small enough to be trained in a test, with a text of its own."""

from __future__ import annotations

from pathlib import Path

from swarm.data.text import read_text


def write_run(folder: Path, *, text_sha256: str, stages: int = 3, steps: int = 2) -> Path:
    """Write a text and a run file that names it by this hash; return the run file."""
    text = folder / "text.txt"
    text.write_text("all work and no play makes jack a dull boy\n" * 200)
    path = folder / "small.toml"
    path.write_text(f"""\
name = "small"
[data]
pattern = "{text}"
sha256 = "{text_sha256}"
[model]
layers = 3
width = 16
heads = 2
context = 16
[pipeline]
stages = {stages}
microbatches = 2
[training]
batch = 4
steps = {steps}
""")
    return path


def sha256_of_text(folder: Path) -> str:
    """Return the hash of the text that `write_run` has written there."""
    return read_text(str(folder / "text.txt"), bytes_max=1 << 20).sha256


def write_right_run(folder: Path, *, stages: int = 3, steps: int = 2) -> Path:
    """Write a run file whose text has the hash that it names."""
    write_run(folder, text_sha256="0" * 64)
    return write_run(folder, text_sha256=sha256_of_text(folder), stages=stages, steps=steps)

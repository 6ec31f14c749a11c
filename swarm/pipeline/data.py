"""The text of a pipeline run, cut in microbatches."""

from __future__ import annotations

from typing import TypeVar

from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.data.errors import DataError
from swarm.data.sequences import Dataset
from swarm.data.text import read_run_text

DatasetT = TypeVar("DatasetT", bound=Dataset)


def dataset_of(text: bytes, run: RunSpec, shape: type[DatasetT]) -> DatasetT:
    """Return the run's dataset over this text: one batch of it is a microbatch. Raises DataError."""
    pipeline = pipeline_of(run)
    return shape(
        text,
        seed=run.seed,
        sequences=pipeline.sequences,
        context=pipeline.model.context,
        held_out=pipeline.data.held_out,
    )


def load_dataset(run: RunSpec, *, path: str = "", memory_max_bytes: int | None = None) -> Dataset:
    """Read the run's text, from `path` where the volunteer keeps it elsewhere. Raises DataError, DataMismatchError."""
    spec = pipeline_of(run).data
    text = read_run_text(spec, path=path, memory_max_bytes=memory_max_bytes)
    try:
        return dataset_of(text.data, run, Dataset)
    except DataError as error:
        raise DataError(f"the text at {path or spec.pattern}: {error}") from error

"""The text of a pipeline run, cut in microbatches."""

from __future__ import annotations

from typing import TypeVar

from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
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


def load_dataset(run: RunSpec, *, path: str = "") -> Dataset:
    """Read the run's text, from `path` where the volunteer keeps it elsewhere. Raises DataError, DataMismatchError."""
    return dataset_of(read_run_text(pipeline_of(run).data, path=path).data, run, Dataset)

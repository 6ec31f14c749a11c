"""`murmura demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from node.cli.options import json_option


@click.command()
@json_option
@click.option(
    "--mode",
    type=click.Choice(["pipeline", "gossip", "collective", "moe"]),
    default="pipeline",
    show_default=True,
    help="How the nodes train together.",
)
@click.option("--data", metavar="PATH", default="", help="Train on this text file or folder.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="In float64 the swarm and one process must agree to 1e-9.",
)
@click.option(
    "--steps", type=click.IntRange(min=10), help="Fewer, or more, than the demo's own number."
)
@click.option(
    "--plant",
    type=click.Choice(["double-count"]),
    help="Let one node count a microbatch twice: the demo must notice, and fail.",
)
@click.option(
    "--power-loss",
    is_flag=True,
    help="Instead: kill every node at once in the middle, and start them again from their checkpoints.",
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep model, logs, journals and run file there (default: the model alone, in this folder).",
)
def command(
    *,
    as_json: bool,
    mode: str,
    data: str,
    dtype: Literal["float32", "float64"],
    steps: int | None,
    plant: str | None,
    power_loss: bool,
    keep: Path | None,
) -> int:
    """Train a small model on this machine with several nodes, killing some on the way.

    Takes two to three minutes on two cores. Exit 0 when every bound was kept. In a pipeline: the swarm's model is the one that
    a single process makes of the same batches, and every microbatch was counted exactly once. In gossip: each peer's model is
    as good as one that saw all data. In collective: peers that average every 30 steps in four bits end with one model, nearly as
    good as one process's, for a hundredth of the bytes. No process is left behind.
    """
    if power_loss and (mode != "pipeline" or plant):
        raise click.UsageError("--power-loss is a story of its own, of mode pipeline")
    from node.demo.main import run
    from node.demo.result import Options

    return run(
        Options(
            mode=mode,
            data=data,
            dtype=dtype,
            steps=steps,
            plant=plant or "",
            power_loss=power_loss,
            keep=keep,
            as_json=as_json,
        )
    )

"""What the demo prints at its end, for people."""

from __future__ import annotations

from collections.abc import Iterator

from node.demo.scenarios.pipeline.comparison import Comparison
from node.demo.scenarios.pipeline.faults import Killed
from node.demo.scenarios.pipeline.figures import Figures
from node.demo.scenarios.pipeline.sights import PipelineSight
from protocols.shown import shown


def summary(
    figures: Figures,
    node: Killed,
    trainer: Killed,
    joined: PipelineSight | None,
    comparison: Comparison,
) -> str:
    """Return swarm and single process side by side, what happened on the way, and a sample."""
    return "\n".join(
        (
            "",
            *_side_by_side(figures),
            "",
            *_on_the_way(figures, node, trainer, joined),
            "",
            f"The swarm's model ({comparison.parameters:,} parameters) writes:",
            "",
            *(f"    {shown(line)}" for line in comparison.sample.splitlines()),
            "",
        )
    )


def _side_by_side(figures: Figures) -> Iterator[str]:
    rows = (
        ("", "swarm", "one process"),
        ("held-out loss before, nats per byte", *2 * (f"{figures.initial_loss:.6f}",)),
        ("held-out loss after", f"{figures.final_loss:.6f}", f"{figures.reference_loss:.6f}"),
        (
            "tokens per second",
            f"{figures.tokens_per_second:,.0f}",
            f"{figures.reference_tokens_per_second:,.0f}",
        ),
    )
    for name, swarm, alone in rows:
        yield f"{name:<38}{swarm:>14}{alone:>14}"
    yield f"{'relative difference of the losses':<38}{figures.relative_difference:>14.1e}"
    yield f"{'largest difference of a parameter tensor':<39}{figures.parameter_difference:>13.1e}"


def _on_the_way(
    figures: Figures, node: Killed, trainer: Killed, joined: PipelineSight | None
) -> Iterator[str]:
    yield (
        f"{figures.steps} steps, {figures.tokens:,} tokens, {figures.nodes_started} nodes, "
        f"{figures.seconds:.0f} s on {figures.cores} cores ({figures.processor})."
    )
    yield (
        f"{node.name}, which led, was killed in step {node.step} with {node.held}: "
        f"redone and committed {node.recovery_s:.1f} s later."
    )
    yield (
        f"{trainer.name}, which only trained, was killed in step {trainer.step} with {trainer.held}: "
        f"redone and committed {trainer.recovery_s:.1f} s later."
    )
    if joined is not None:
        yield f"{joined.name} joined late, fetched stage {joined.stage} ({joined.fetched_bytes:,} B) and served it."
    yield (
        f"Of {figures.microbatches_expected:,} microbatches (over all stages and steps) "
        f"{figures.microbatches_missing} are missing and {figures.microbatches_repeated} were counted again."
    )

"""One large swarm: `python -m tests.sim.scale --json`. Ten thousand peers, an hour of their time, all checkers watching.

Every tenth peer goes within that time, half of them without a word, and another comes for each. `--curve` runs smaller ones,
too, and draws what each costs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.limits import processor
from tests.sim.engine.runner import tell
from tests.sim.engine.scale import (
    HOUR_S,
    Scale,
    Size,
    draw,
    drawing_of,
    measure_of,
    run_alone,
    scale_of,
)
from tests.sim.engine.subject import DEFAULT, MODES

PLOTS: Final = Path(__file__).parents[2] / "docs" / "plots"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a large swarm costs to simulate; a broken promise ends it with the checker's words."""
    mode, seed, curve = _first(arguments)
    measure = measure_of(mode)
    if measure is not None:
        figures = measure(seed)
        if curve:
            drawing_of(mode)(figures, _plot_of(mode))
        print(json.dumps({**figures, **processor()}))  # noqa: T201 - the result
        return 0
    parser, scale = _parser(arguments)
    options = parser.parse_args(arguments)
    asked = {name: getattr(options, name) for name in scale.options}
    given = {name: value for name, value in asked.items() if value is not None}
    rows = []
    for peers in scale.curve if options.curve else (options.peers,):
        size = Size(peers, options.hours * HOUR_S, given)
        rows.append(run_alone(options.mode, size, options.seed))
        tell(json.dumps(rows[-1]))
    result = {**rows[-1], **processor()}
    if options.curve:
        draw(rows, _plot_of(options.mode))
        result["curve"] = {row["peers"]: row["seconds"] for row in rows}
    if options.json:
        print(json.dumps(result))  # noqa: T201 - the result
    return 0


def _first(arguments: Sequence[str] | None) -> tuple[str, int, bool]:
    """Read mode, seed and whether to draw, which all modes have."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mode", choices=MODES, default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curve", action="store_true")
    options = parser.parse_known_args(arguments)[0]
    return options.mode, options.seed, options.curve


def _parser(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Scale]:
    """Read the mode first: it says which further options there are."""
    scales = {mode: scale for mode in MODES if (scale := scale_of(mode)) is not None}
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--mode", choices=scales, default=DEFAULT)
    scale = scales[first.parse_known_args(arguments)[0].mode]
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.scale", description=__doc__, parents=[first]
    )
    parser.add_argument("--peers", type=int, default=10_000)
    for name, text in scale.options.items():
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument("--hours", type=float, default=1.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curve", action="store_true", help="also run smaller ones, and draw what each costs")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser, scale


def _plot_of(mode: str) -> Path:
    return PLOTS / ("scale.svg" if mode == DEFAULT else f"scale-{mode}.svg")


if __name__ == "__main__":
    sys.exit(main())

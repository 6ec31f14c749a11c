"""Play all scenarios, or those named: `python -m tests.sim.pipeline.scenarios [--rewrite] [NAME ...]`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.sim.pipeline.scenarios.play import rewritten

FOLDER: Final = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Show what happens otherwise than it is written, and return 1 if anything does; or write it down."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.pipeline.scenarios", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="files without .txt; all when none is named")
    parser.add_argument("--rewrite", action="store_true", help="write down what happens now")
    options = parser.parse_args(arguments)
    paths = [FOLDER / f"{name}.txt" for name in options.names] or sorted(FOLDER.glob("*.txt"))
    changed = False
    for path in paths:
        written = path.read_text(encoding="utf-8")
        played = rewritten(written)
        if played == written:
            continue
        changed = True
        lines = difflib.unified_diff(
            written.splitlines(), played.splitlines(), path.name, "what happens now", lineterm=""
        )
        sys.stderr.write("\n".join(lines) + "\n")
        if options.rewrite:
            path.write_text(played, encoding="utf-8")
    return 1 if changed and not options.rewrite else 0


if __name__ == "__main__":
    sys.exit(main())

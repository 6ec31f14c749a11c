"""The command line: a thin client of the control socket, one file per command, imported when it is asked for."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `murmura`. Never returns: exits with a code of node.exit_codes."""
    from node.cli.entry import run

    sys.exit(run(sys.argv[1:]))

"""The table of commands, and how a failure becomes a message and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from node import exit_codes
from node.errors import ControlError, NodeError
from protocols.shown import shown_lines

COMMANDS: Final = {
    "run": "Be a node: start a run (--run FILE) or join one (--join INVITE).",
    "demo": "Train a small model on this machine with six nodes, killing some on the way.",
    "status": "Say how the node on this machine, or any node in the world (--peer), is doing.",
    "top": "Show many nodes in one table, from a machine that runs none.",
    "peers": "List the peers this node is connected to.",
    "id": "Print this node's PeerID and addresses.",
    "invite": "Print one line with which others can join the run.",
    "drain": "Finish what is in flight, hand over, and stop the node.",
    "pause": "Give the machine back for a while: hand over, free memory, keep the identity.",
    "resume": "End a pause.",
    "export": "Write the trained model as one safetensors file.",
    "checkpoints": "List, verify or export the checkpoints on this machine.",
    "config": "Show or check the settings.",
    "doctor": "Look for what could keep a node on this machine from working.",
    "bench": "Measure in 30 seconds what this machine can do for a run.",
    "experts": "List the experts of a moe run, or draw how they are used.",
    "version": "Print the version.",
}
"""Name -> one line of help. Here, so that `murmura --help` imports no command."""


class LazyGroup(click.Group):
    """Imports `node.cli.commands.<name>` when that command is run, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"node.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; known: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 healthy, 1 failed, 2 usage, 3 not running, 4 unhealthy, 69 unavailable, 75 try again, "
    "77 permission, 78 config. See docs/operations.md.",
)
def murmura() -> None:
    """Train one neural network together with others over the open internet."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        result: Any = murmura.main(list(arguments), prog_name="murmura", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return exit_codes.USAGE
    except click.ClickException as error:
        error.show()
        return exit_codes.FAILED
    except (click.Abort, KeyboardInterrupt):
        return 128 + 2  # as the shell reports a command that SIGINT ended
    except NodeError as error:
        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone: not our failure. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.OK
    return result if isinstance(result, int) else exit_codes.OK


def show_error(error: NodeError, *, as_json: bool) -> None:
    """Say on stderr what failed, why, and what to do next; with --json, the same as an object on stdout."""
    click.echo(f"murmura: {shown_lines(error.reason)}", err=True)
    if error.hint:
        click.echo(f"  {shown_lines(error.hint)}", err=True)
    if as_json:
        code = error.code if isinstance(error, ControlError) else type(error).__name__
        body = {"code": code, "reason": error.reason, "hint": error.hint or None}
        click.echo(json.dumps({"schema_version": 1, "error": body}))

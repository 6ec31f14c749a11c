"""`murmura run`: every setting of node.config is one of its flags."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from node import exit_codes
from node.config import KEYS, NodeConfig, flag_name, kind_of, load

_HELP = {
    "run": "A run file: start that run, or take part in it.",
    "join": "An invite, as `murmura invite` prints it.",
    "new_swarm": "Start alone, even though other peers are known.",
    "private": "Starting a run: only who has an invite may take part.",
    "data": "Where the run's text is on this machine.",
    "data_folders": "Where a fetched run may name its text; may be repeated.",
    "host": "Host a stage of the model.",
    "train": "Draw microbatches and drive them through the stages.",
    "stage": "Host this stage and no other.",
    "listen": "Address to listen on, a multiaddr; may be repeated.",
    "announce": "Address to tell others instead of those found; may be repeated.",
    "bootstrap": "Address to join through, besides the invite's; may be repeated.",
    "threads": "Compute threads (default: all cores but one).",
    "nice": "0 takes an equal share of the machine, 19 what nobody else wants.",
    "memory_max_mb": "Take no new work above this, in MB.",
    "upload_mbit_s": "Bound on what is sent, in Mbit/s.",
    "download_mbit_s": "Bound on what is received, in Mbit/s.",
    "isolated_after_s": "Seconds without a peer before everybody known is dialled again.",
    "drain_s": "Seconds that leaving may take.",
    "notices": "Whose notices that the machine ends to ask for: auto, off, aws, gcp or azure.",
    "notices_address": "Where to ask for notices, when not at 169.254.169.254.",
    "checkpoints": "Write checkpoints, and go on from them after a restart.",
    "checkpoint_every_s": "Seconds between checkpoints, at least.",
    "checkpoint_every_steps": "Steps between checkpoints, instead of seconds; the same at all nodes.",
    "checkpoints_kept": "Checkpoints kept of each part.",
    "checkpoints_kept_days": "Days after which old checkpoints are deleted.",
    "schedule_hours": "Train in these hours only, like 22:00-07:00; may be repeated.",
    "schedule_idle_load": "Pause while other programs keep more cores than that busy.",
    "http_listen": "Serve metrics, health and a page: a port of loopback, or IP:PORT.",
    "http_hosts": "A name under which the page may be asked for; may be repeated.",
    "transport_metrics_listen": "Serve the transport's own metrics, on loopback: a port.",
    "state_dir": "Where identity and state are kept.",
    "runtime_dir": "Where the control socket is.",
    "log_level": "debug, info, warning or error.",
    "log_format": "text or json.",
}


_METAVARS = {"data_folders": "DIR", "http_hosts": "NAME", "schedule_hours": "HH:MM-HH:MM"}
"""Of flags that may be repeated, where it is no address."""


def _flags(function: Callable[..., Any]) -> Callable[..., Any]:
    defaults = NodeConfig()
    for key in reversed(KEYS):
        kind = kind_of(key)
        name = flag_name(key)
        default = getattr(defaults, key)
        shown = "" if default in ("", None, (), False, True) else f" [default: {_text(default)}]"
        common: dict[str, Any] = {"default": None, "help": _HELP[key] + shown}
        if kind is bool:
            option = click.option(f"{name}/--no-{name[2:]}", key, **common)
        elif kind is tuple:
            metavar = _METAVARS.get(key, "MULTIADDR")
            option = click.option(name, key, multiple=True, metavar=metavar, **common)
        else:
            option = click.option(name, key, type=kind, metavar=kind.__name__.upper(), **common)
        function = option(function)
    return function


def _exit_now() -> NoReturn:
    """End the process without taking the interpreter down in order: with torch loaded that takes seconds of a stop.

    Nothing is lost: the daemon has closed what it had open, and logs are flushed here.
    """
    with contextlib.suppress(OSError):  # the terminal may be closed
        logging.shutdown()
        sys.stdout.flush()
    os._exit(exit_codes.OK)


def _text(default: Any) -> str:
    return ", ".join(default) if isinstance(default, tuple) else str(default)


@click.command()
@click.option(
    "--config", "config_file", metavar="FILE", help="A settings file other than the usual one."
)
@click.option(
    "--new-epoch",
    is_flag=True,
    help="Of this start alone: go on from the disks of who is back, though a majority is missing.",
)
@_flags
def command(*, config_file: str | None, new_epoch: bool, **flags: Any) -> None:
    """Be a node, in the foreground, until SIGTERM or `murmura drain`.

    Every flag can also be a line of the settings file or a MURMURA_ variable; `murmura config show` lists them.
    """
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    effective = load(given, config_file=Path(config_file) if config_file else None)
    if effective.config.run:
        from node.forecast import check_fits
        from node.runfile import check_wishes, read_run_file, wishes_of

        run = read_run_file(Path(effective.config.run).expanduser())
        check_wishes(run, wishes_of(effective.config))
        check_fits(run, effective.config)
    from node.daemon import run_daemon

    run_daemon(effective, new_epoch=new_epoch)
    _exit_now()


command.help = inspect.cleandoc(command.help or "")

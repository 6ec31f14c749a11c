"""The status as a person reads it: one screen, most important first. Colour only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from node.modes import MODES
from protocols.shown import shown_all

_SUPERVISION: Final = ("up", "restarts", "last_error")
_SHOWN: Final = {
    "joining": ("members_known",),
    "directory": ("state", "dht_peers", "records_stored"),
    "checkpoints": ("newest", "age_seconds", "count", "size_bytes", "problem"),
}
"""Of these services, and of modes by what they say of themselves, what a person looks for; --json has everything."""


def status_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of `murmura status`. Names come from run files and peers."""
    # An error's hint is on a line of its own.
    problems = [" ".join(reason.split()) for reason in report["unhealthy_reasons"]]
    report = shown_all({**report, "unhealthy_reasons": problems})
    node, life, run, network = report["node"], report["life"], report["run"], report["network"]
    colour = "green" if report["healthy"] else "yellow"
    state = (
        click.style(life["state"], fg=colour, bold=True) if sys.stdout.isatty() else life["state"]
    )
    yield f"node       {node['peer_id']}"
    yield f"state      {state} for {duration(life['since_seconds'])}: {life['reason']}"
    yield f"run        {run['name'] or '(not fetched yet)'} {run['run_id'][:8]} {run['mode'] or ''}".rstrip()
    yield f"peers      {network['peers']}{_skew(network)}"
    for reason in report["unhealthy_reasons"]:
        yield f"problem    {reason}"
    for name, service in report["services"].items():
        yield from _service(name, service)
    yield _resources(report["resources"], report["limits"])
    for address in node["addresses"]:
        yield f"address    {address}"
    if network.get("http"):
        yield f"page       http://{network['http']['address']}/"
    yield f"version    {node['version']}, up {duration(node['uptime_seconds'])}, process {node['pid']}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    whole = int(seconds)
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def start_table(start: dict[str, Any]) -> str:
    """Return what goes into the run file of a run that begins from this checkpoint."""
    return (
        f'\n[start]\nrun = "{start["run"]}"\nstep = {start["step"]}\nsha256 = "{start["sha256"]}"'
    )


def _skew(network: dict[str, Any]) -> str:
    skew = network["clock_skew_seconds"]
    return "" if skew is None or abs(skew) < 0.5 else f", clock off by {skew:+.1f} s"


def _service(name: str, service: dict[str, Any]) -> Iterator[str]:
    trouble = [] if service["up"] else ["down"]
    trouble += [f"restarted {service['restarts']} times"] if service["restarts"] else []
    shown = MODES[name].shown if name in MODES else _SHOWN.get(name)
    keys = shown or [key for key in service if key not in _SUPERVISION]
    facts = [
        f"{key.replace('_', ' ')} {_value(service[key])}"
        for key in keys
        if service.get(key) is not None and not isinstance(service[key], dict)
    ]
    yield f"{name:<10} {', '.join(trouble + facts) or 'up'}"
    for dialled in service.get("dialled", []):
        if not dialled["ok"]:
            yield f"           {dialled['address']}: {dialled['reason']}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return "/".join(str(item) for item in value)
    return str(value)


def _resources(resources: dict[str, Any], limits: dict[str, Any]) -> str:
    memory = resources["memory_bytes"]
    used = "?" if memory is None else f"{memory >> 20} MB"
    bound = limits["memory_max_bytes"]
    of = f" of {bound >> 20} MB" if bound else ""
    return (
        f"resources  memory {used}{of}, {limits['threads']} threads, nice {limits['nice']}, "
        f"{resources['descriptors']} of {limits['descriptors_max']} files, "
        f"loop lag p99 {resources['loop_lag_p99_ms']:.1f} ms"
    )

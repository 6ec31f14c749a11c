"""The part of `murmura doctor` that asks: the node that runs here, and peers, a second time and on a new connection.

A peer that the daemon is connected to may still be one that nobody else can reach: one connection says little about the
address. Asking strangers to dial this node back is not done here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from node.clock import SKEW_MAX_S
from node.control.client import ControlClient
from node.errors import NodeError
from node.finding import Finding
from node.light.ask import status_of
from node.paths import Paths
from protocols.replies import SOFTWARE_VERSION

PEERS_ASKED_MAX: Final = 3
"""Each may take 20 s when it does not answer; one that answers is enough."""
_DIAL_S: Final = 3.0


def running_node(paths: Paths) -> dict[str, Any] | None:
    """Return the status of the node that runs here, or None when there is none."""
    try:
        with ControlClient(paths.socket) as client:
            status: dict[str, Any] = client.call("status")
            return status
    except NodeError:
        return None


def of_running(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the node that runs here says is wrong with it, all at once."""
    pid = status["node"]["pid"]
    yield Finding("daemon", True, f"process {pid} answers: {status['life']['state']}")
    for reason in status["unhealthy_reasons"]:
        head, _, hint = reason.partition("\n")
        yield Finding("daemon", False, head, hint.strip())
    skew_s = status["network"]["clock_skew_seconds"]
    if skew_s is not None:
        yield _clock(skew_s)


def connected_addresses(status: Mapping[str, Any]) -> list[str]:
    """Return addresses at which the running node has reached peers."""
    joining = status["services"].get("joining", {})
    return [row["address"] for row in joining.get("dialled", ()) if row["ok"]]


def dials(addresses: list[str]) -> Iterator[tuple[str, Finding]]:
    """Try a TCP connection to each address that has one; who answers there is told by `second_time`."""
    for address in addresses:
        parts = address.split("/")
        if parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp":
            continue
        try:
            socket.create_connection((parts[2], int(parts[4])), timeout=_DIAL_S).close()
        except (OSError, ValueError) as error:
            hint = "any other address that answers is enough; is a firewall in the way?"
            yield address, Finding(f"peer {address}", False, str(error), hint)
        else:
            yield address, Finding(f"peer {address}", True, "answers")


def second_time(
    addresses: list[str], *, invite: str | None, compare_clock: bool
) -> Iterator[Finding]:
    """Ask peers for their status on a connection of its own, until one answers; compare version and clock with it."""
    problem = ""
    for address in addresses[:PEERS_ASKED_MAX]:
        try:
            status = status_of(address, invite=invite)
        except NodeError as error:
            problem = problem or error.reason
            continue
        yield Finding("reached a second time", True, f"{address.rpartition('/')[2][-8:]} answers")
        yield from _compared(status, compare_clock=compare_clock)
        return
    if problem:
        hint = "peers that can be dialled once and not again are behind a NAT, or refuse strangers"
        yield Finding("reached a second time", False, problem, hint)


def _compared(status: Mapping[str, Any], *, compare_clock: bool) -> Iterator[Finding]:
    theirs = status["software"]
    if theirs is not None and theirs != SOFTWARE_VERSION:
        detail = f"this is {SOFTWARE_VERSION}, a peer runs {theirs}"
        yield Finding("version of peers", False, detail, "upgrade the older one")
    if compare_clock and status["clock_skew_seconds"] is not None:
        yield _clock(status["clock_skew_seconds"])


def _clock(skew_s: float) -> Finding:
    off = f"{skew_s:+.1f} s against peers"
    return Finding("clock", abs(skew_s) <= SKEW_MAX_S, off, "set it, best by NTP: `timedatectl`")

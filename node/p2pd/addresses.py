"""Multiaddrs as p2pd wants them, and whether this machine can listen on them.

Spelling is the `multiaddr` library's work, but for /unix: it drops the leading slash of the path, which p2pd needs.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from node.errors import BusyError, ConfigError
from protocols.ids import PeerID

_UNIX_CODE: Final = b"\x90\x03"
"""400 as an unsigned varint."""


def address_to_bytes(text: str) -> bytes:
    """Encode one multiaddr. Raises ValueError when it is not one."""
    try:
        raw = bytes(Multiaddr(text).to_bytes())
        if not raw:
            raise ValueError("an empty multiaddr leads nowhere")
        return raw
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"{text!a} is not a multiaddr such as /ip4/192.0.2.1/tcp/4001") from error


def addresses_from_bytes(raw_addresses: Iterable[bytes]) -> list[str]:
    """Decode what p2pd reports; forms that the library does not know are left out."""
    texts = []
    for raw in raw_addresses:
        try:
            texts.append(str(Multiaddr(raw)))
        except (MultiaddrError, ValueError):
            continue
    return texts


def origin_of(raw: bytes) -> str:
    """Return where a connection comes from, as coarsely as addresses are given out: an IPv4 address, or an IPv6 /64.

    Of a relayed connection it is the relay's: the first in the multiaddr. Empty when there is none.
    """
    for text in addresses_from_bytes([raw]):
        _, kind, host, *_ = [*text.split("/"), "", "", ""]
        if kind == "ip4":
            return host
        if kind == "ip6":
            address = ipaddress.IPv6Address(host)
            return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))
        return host
    return ""


def unix_address_bytes(path: Path) -> bytes:
    """Encode /unix/<absolute path>, the leading slash kept."""
    raw = os.fsencode(path.absolute())
    return _UNIX_CODE + _varint(len(raw)) + raw


def split_peer(address: str) -> tuple[PeerID, str]:
    """Split `/ip4/.../p2p/<PeerID>` into who and where. Raises ValueError with the reason."""
    where, marker, peer = address.rpartition("/p2p/")
    if not marker or not where:
        raise ValueError(f"{address!a} does not say whom to reach: it must end in /p2p/<PeerID>")
    return PeerID.from_text(peer), where


def with_port_of(listen: str, actual: Iterable[str]) -> str:
    """Return `listen` with the port that p2pd chose for it, when it asked for any (port 0).

    Args:
      actual: addresses p2pd reports. One of the same transport is taken: /ip4/0.0.0.0 is reported by interface.
    """
    parts = listen.split("/")
    if len(parts) < 5 or parts[4] != "0":
        return listen
    for address in actual:
        candidate = address.split("/")
        same_kind = (
            candidate[1:2] == parts[1:2]
            and candidate[3:4] + candidate[5:] == parts[3:4] + parts[5:]
        )
        if len(candidate) >= 5 and same_kind:
            return "/".join([*parts[:4], candidate[4], *parts[5:]])
    return listen


def check_can_listen(listen: str, *, setting: str = "--listen") -> None:
    """Try to take the port of one address and let it go again.

    p2pd would not notice: it sets SO_REUSEPORT, so two nodes of one user would share a port, and each get half of the
    other's connections.

    Args:
      setting: what a person changes to choose another one.
    Raises:
      BusyError: another program has the port.
      ConfigError: this machine does not have that address, or may not use that port.
    """
    parts = listen.split("/")
    families = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    if len(parts) < 5 or parts[1] not in families or parts[3] not in kinds or parts[4] == "0":
        return
    with socket.socket(families[parts[1]], kinds[parts[3]]) as probe:
        if parts[3] == "tcp":
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a port in TIME_WAIT is free
        try:
            probe.bind((parts[2], int(parts[4])))
        except OSError as error:
            raise _listen_error(listen, error, setting) from error


def _listen_error(listen: str, error: OSError, setting: str) -> BusyError | ConfigError:
    reason = f"cannot listen on {listen}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            reason, hint=f"stop the program that has this port, or choose another with {setting}"
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            reason, hint=f"ports below 1024 are for root: choose another with {setting}"
        )
    return ConfigError(reason, hint=f"choose an address of this machine with {setting}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

"""Whether a text is an address that a node could listen on or dial: a multiaddr, checked piece by piece.

The command line looks at every address that a person gives, before anything starts; so nothing is loaded for it.
"""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Callable
from typing import Final

from protocols.ids import PeerID

ADDRESS_BYTES_MAX: Final = 256
_LABEL: Final = frozenset(string.ascii_letters + string.digits + "-_.")


def address_problem(text: str) -> str | None:
    """Say what is wrong with a multiaddr such as /ip4/0.0.0.0/tcp/4001; None when nothing is."""
    if not text.startswith("/") or len(text.encode("utf-8", "replace")) > ADDRESS_BYTES_MAX:
        return "an address is a multiaddr like /ip4/203.0.113.7/tcp/4001"
    if not text.isprintable() or not text.isascii() or " " in text:
        return "an address has no spaces or control characters"
    parts = text.split("/")[1:]
    position = 0
    while position < len(parts):
        name = parts[position]
        if name in _BARE:
            position += 1
            continue
        check = _VALUES.get(name)
        if check is None:
            return f"it has {name!r} where the name of a protocol is due, such as ip4, dns4, tcp, udp or p2p"
        if position + 1 >= len(parts):
            return f"nothing follows /{name}"
        problem = check(parts[position + 1])
        if problem is not None:
            return problem
        position += 2
    return (
        None if len(parts) >= 4 else "it must say where and by what, like /ip4/203.0.113.7/tcp/4001"
    )


def _port(value: str) -> str | None:
    good = value.isdigit() and len(value) <= 5 and int(value) <= 65_535
    return None if good else f"{value!r} is no port: those go from 0 to 65535"


def _ip4(value: str) -> str | None:
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return f"{value!r} is no IPv4 address"
    return None


def _ip6(value: str) -> str | None:
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return f"{value!r} is no IPv6 address"
    return None


def _name(value: str) -> str | None:
    return None if value and set(value) <= _LABEL else f"{value!r} is no name of a host"


def _peer(value: str) -> str | None:
    try:
        PeerID.from_text(value)
    except ValueError as error:
        return f"{value!r} is no PeerID: {error}"
    return None


def _anything(value: str) -> str | None:
    return None if value else "a part of it is empty"


_BARE: Final = frozenset(
    ("quic", "quic-v1", "tls", "noise", "ws", "wss", "http", "https", "webtransport",
     "webrtc-direct", "p2p-circuit")
)  # fmt: skip
_VALUES: Final[dict[str, Callable[[str], str | None]]] = {
    "ip4": _ip4, "ip6": _ip6, "ip6zone": _name, "ipcidr": _port,
    "dns": _name, "dns4": _name, "dns6": _name, "dnsaddr": _name, "sni": _name,
    "tcp": _port, "udp": _port, "p2p": _peer, "ipfs": _peer, "certhash": _anything, "memory": _anything,
}  # fmt: skip

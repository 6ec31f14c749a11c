"""Where the node listens for HTTP, as a person writes it. Imported with the settings, so light."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """An IP address and a port; port 0 takes any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> HttpAddress:
    """Read `4002`, which is of loopback, `192.0.2.1:4002`, or `[::1]:4002`. Raises ValueError with a sentence.

    Names are not taken: what they lead to can change, and with it who can connect.
    """
    host, _, port = text.rpartition(":")
    host = host or "127.0.0.1"
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(port)
        if bracketed != (address.version == 6):
            raise ValueError(host)
    except ValueError as error:
        raise ValueError(
            "must be a port, or an IP address and a port: 4002, 127.0.0.1:4002, [::1]:4002"
        ) from error
    return HttpAddress(str(address), int(port))

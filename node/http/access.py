"""Who may have what. A pure core: facts of one request in, a refusal or nothing out.

Rules of this file:
- Health is for supervisors that know neither name nor token: `/healthz`, `/readyz`, `/startupz` are always answered.
- Everything else wants a Host that no stranger's name server can have made up (DNS rebinding): an IP address, localhost,
  or a name from the settings. A browser that comes from another page is refused.
- Beyond loopback, what shows peers and addresses wants the token. `/metrics` does not: it holds figures only, and who
  may scrape is for the network to say (a NetworkPolicy, a firewall), as with every exporter.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from typing import Final

HEALTH: Final = frozenset({"/healthz", "/readyz", "/startupz"})
METRICS: Final = "/metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as far as access goes. All of it is the client's word."""

    path: str
    host: str = ""
    """The Host header, with its port."""
    origin: str = ""
    fetch_site: str = ""
    """Sec-Fetch-Site: how a browser says from where it was sent."""
    fetch_mode: str = ""
    tokens: tuple[str, ...] = ()
    """What it has shown: a Bearer, a cookie, a part of the URL."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status, and one sentence for whoever reads it."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The node's rules.

    Args:
      names: under which the page may be asked for, besides localhost and IP addresses.
      token: what must be shown; empty where only this machine can connect.
    """

    names: frozenset[str] = frozenset()
    token: str = field(default="", repr=False)

    def refusal(self, asked: Asked) -> Refusal | None:
        """Return why this request is not answered, or None when it is."""
        if asked.path in HEALTH:
            return None
        host = _name_of(asked.host)
        if not self._knows(host):
            return Refusal(
                421, "this name is not the node's: use its IP address, or put it into `http_hosts`"
            )
        if asked.origin and not _same_place(asked.origin, asked.host):
            return Refusal(403, "asked from another page")
        # A link to the page may be followed from anywhere; what another page loads on its own may not.
        if asked.fetch_site in ("cross-site", "same-site") and asked.fetch_mode != "navigate":
            return Refusal(403, "asked from another page")
        if self.token and asked.path != METRICS and not self._shown(asked.tokens):
            return Refusal(401, "the token is missing or wrong: it is in the file `http-token`")
        return None

    def _knows(self, host: str) -> bool:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return host == "localhost" or host in self.names
        return True

    def _shown(self, tokens: tuple[str, ...]) -> bool:
        # All are compared, and each in constant time: how long it takes says nothing.
        own = self.token.encode()
        found = [hmac.compare_digest(text.encode(errors="replace"), own) for text in tokens]
        return any(found)


def _same_place(origin: str, host: str) -> bool:
    scheme, separator, place = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and place.lower() == host.lower()


def _name_of(host: str) -> str:
    """Return the name in a Host header without its port, in small letters; brackets of IPv6 go."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")

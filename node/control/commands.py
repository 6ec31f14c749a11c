"""The daemon's side of each command: a table, name -> handler. `murmura COMMAND` is one call of one of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import trio

from node.clock import unix_s
from node.control.server import Handler, Params
from node.errors import ControlError
from node.node import Node
from node.services import Trains
from node.status import SCHEMA_VERSION, build_status

PROTOCOL_VERSION: Final = 1
PAUSE_S_MAX: Final = 366 * 86_400.0


def command_table(node: Node) -> dict[str, Handler]:
    """Return every command this daemon answers."""
    commands = _Commands(node)
    return {
        "version": commands.version,
        "status": commands.status,
        "peers": commands.peers,
        "id": commands.id,
        "invite": commands.invite,
        "drain": commands.drain,
        "pause": commands.pause,
        "resume": commands.resume,
        "export": commands.export,
    }


class _Commands:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def version(self, params: Params) -> dict[str, Any]:
        return {"control_version": PROTOCOL_VERSION, "state": self._node.life.snapshot.state.value}

    async def status(self, params: Params) -> dict[str, Any]:
        return build_status(self._node, now_unix_s=unix_s())

    async def peers(self, params: Params) -> dict[str, Any]:
        """List connected peers with what the services know of them."""
        node = self._node
        faults = node.guard.faults()
        described = _descriptions(node)
        return {
            "schema_version": SCHEMA_VERSION,
            "peers": [
                {
                    "peer_id": str(peer),
                    "faults": faults.get(peer, 0),
                    **described.get(str(peer), {}),
                }
                for peer in sorted(await node.host.peers())
            ],
        }

    async def id(self, params: Params) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "peer_id": str(self._node.peer_id),
            "addresses": list(self._node.host.addresses()),
        }

    async def invite(self, params: Params) -> dict[str, Any]:
        node = self._node
        addresses = node.host.addresses()
        if not addresses:
            raise ControlError(
                "not-now", "the transport has no addresses yet", "try again in a second"
            )
        invite = node.membership.invite(addresses)
        return {
            "schema_version": SCHEMA_VERSION,
            "invite": invite.to_text(),
            "run_id": str(invite.run),
            "addresses": list(invite.addresses),
            "secret": invite.is_secret,
        }

    async def drain(self, params: Params) -> dict[str, Any]:
        deadline_s = params.get("deadline_s", self._node.config.drain_s)
        if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float):
            raise ControlError("bad-params", "deadline_s must be a number of seconds")
        if not 0 <= deadline_s <= 3600:
            raise ControlError("bad-params", "deadline_s must be 0 to 3600 seconds")
        self._node.life.drain("asked by `murmura drain`", float(deadline_s))
        return {"deadline_seconds": float(deadline_s)}

    async def pause(self, params: Params) -> dict[str, Any]:
        for_s: Any = params.get("for_s")
        if for_s is not None and (isinstance(for_s, bool) or not isinstance(for_s, int | float)):
            raise ControlError("bad-params", "for_s must be a number of seconds")
        if for_s is not None and not 0 < for_s <= PAUSE_S_MAX:
            raise ControlError("bad-params", f"for_s must be at most {PAUSE_S_MAX:.0f} seconds")
        return {"schema_version": SCHEMA_VERSION, **self._node.pausing.pause(for_s)}

    async def resume(self, params: Params) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **self._node.pausing.resume()}

    async def export(self, params: Params) -> dict[str, Any]:
        path = Path(str(params.get("path", "")))
        if not path.is_absolute():
            raise ControlError("bad-params", "export needs an absolute path")
        options = {name: value for name, value in params.items() if name != "path"}
        # Looked at first: gathering a large model to find out afterwards would cost minutes.
        if not await trio.Path(path.parent).is_dir():
            raise ControlError(
                "bad-params",
                f"the folder {path.parent} does not exist",
                "make it, or name a path in another one",
            )
        if await trio.Path(path).exists() and not await trio.Path(path).is_file():
            raise ControlError("bad-params", f"{path} is there, and is no file", "name another one")
        for member in self._node.services.members:
            if isinstance(member.service, Trains):
                facts = await member.service.export(path, options)
                return {"schema_version": SCHEMA_VERSION, **facts}
        raise ControlError(
            "not-now",
            "this node has no model to export yet",
            "it has one once `murmura status` says syncing or serving",
        )


def _descriptions(node: Node) -> dict[str, dict[str, Any]]:
    """Merge what services say of peers: each may list `members` in its status, with `peer_id` and more."""
    merged: dict[str, dict[str, Any]] = {}
    for supervised in node.services.members:
        for member in supervised.service.status().get("members", ()):
            facts = {key: value for key, value in member.items() if key != "peer_id"}
            merged.setdefault(member["peer_id"], {}).update(facts)
    return merged

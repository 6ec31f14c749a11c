"""Open the node's transport and its directory: p2pd, and the dht process on top of it.

The directory runs as a service, after READY: its process takes a second of processor time to come up, and whoever
looks something up before that is answered from memory.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from node.clock import unix_s
from node.config import NodeConfig
from node.dht.client import DhtDirectory
from node.http.address import parse_address
from node.identity import Identity, verify_signature
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from node.paths import Paths
from node.services import Service
from protocols.ports import Directory, Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the rest of the node knows of the outside."""

    host: Host
    directory: Directory
    services: Sequence[Service] = ()
    """What keeps them going, to be run by the node's supervisor."""
    peer_connected: Callable[[], None] = lambda: None
    """To be called when a peer has been dialled: the directory greets it at once."""
    transport_status: Callable[[], dict[str, Any]] = dict
    """Facts about the transport for `status`."""


@asynccontextmanager
async def open_network(
    config: NodeConfig, paths: Paths, identity: Identity, rng: random.Random
) -> AsyncIterator[Network]:
    """Start p2pd and keep it running until the block ends. Raises NodeError: port in use, p2pd missing, ..."""
    options = P2pdOptions(
        identity_path=paths.identity,
        runtime_dir=paths.runtime_dir,
        listen=config.listen,
        announce=config.announce,
        metrics_listen=_metrics_listen(config),
    )
    async with P2pdHost.open(options, identity.peer_id) as p2pd:
        directory = DhtDirectory(
            p2pd_socket=p2pd.control_path,
            runtime_dir=paths.runtime_dir,
            signer=identity,
            verify=verify_signature,
            peers=p2pd.peers,
            now_s=unix_s,
            rng=rng,
        )

        async def replace_directory() -> None:
            directory.transport_restarted()

        p2pd.on_restart(replace_directory)
        yield Network(
            host=p2pd,
            directory=directory,
            services=(directory,),
            peer_connected=directory.peer_connected,
            transport_status=lambda: {
                "pid": p2pd.p2pd_pid,
                "restarts": p2pd.restarts,
                "streams_refused": p2pd.streams_refused,
            },
        )


def _metrics_listen(config: NodeConfig) -> str:
    text = config.transport_metrics_listen
    return str(parse_address(text)) if text else ""

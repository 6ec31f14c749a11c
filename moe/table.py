"""The experts as a table, for `murmura status` and `murmura experts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe.layer import LayerStats
from moe.peer import ExpertPeer
from protocols.experts.dispatch import Dispatch
from protocols.experts.epoch import changes
from protocols.experts.uid import Grid
from protocols.ids import PeerID


def call_figures(peer: ExpertPeer) -> dict[str, Any]:
    """Return how calls and searches went, for the status."""
    network, cuts = peer.network, peer.dispatch.percentiles_s()
    return {
        "calls": network.asked,
        "calls_absent": network.absent,
        "calls_hedged": network.hedged,
        "call_p50_ms": round(1000 * cuts[0], 2) if cuts else None,
        "call_p95_ms": round(1000 * cuts[1], 2) if cuts else None,
        **peer.search.percentiles_s(),
    }


def expert_rows(
    peer: ExpertPeer,
    grids: Sequence[Grid],
    layers: Sequence[LayerStats],
    *,
    now_s: float,
    clock_s: float,
) -> list[dict[str, Any]]:
    """Return one row for each place of the grids.

    `epoch` is how often it has changed hands; `rows` counts what this node's own layers sent there; `steps`, `staleness` and `age_seconds` are known of experts that it
    hosts itself.

    Args:
      layers: of the trunk here, in the order of `grids`; empty when it does not train.
    """
    rows = []
    for index, grid in enumerate(grids):
        for uid in grid.uids():
            hosts, answering = peer.view.hosts(uid, now_s), peer.view.answering(uid, now_s)
            own = peer.server.experts.get(uid)
            stats = own.stats if own is not None else None
            rows.append(
                {
                    "expert": str(uid),
                    "hosts": [str(claim.peer) for claim in hosts],
                    "replicas": [str(claim.peer) for claim in answering[len(hosts) :]],
                    "epoch": max(1, changes(hosts[0].epoch)) if hosts else None,
                    "here": own is not None and not own.replica,
                    "replica_here": own is not None and own.replica,
                    "rows": layers[index].loads.get(uid, 0) if layers else None,
                    "steps": own.hosted.version if own is not None else None,
                    "staleness": round(stats.staleness, 2) if stats else None,
                    "age_seconds": round(clock_s - stats.since_s, 1) if stats else None,
                }
            )
    return rows


def host_rows(
    dispatch: Dispatch, rooms: Mapping[PeerID, int], now_s: float
) -> list[dict[str, Any]]:
    """Return one row for each node that is known, with what is thought of it."""
    standings = dispatch.standings(now_s)
    rows = []
    for peer in sorted(rooms.keys() | standings.keys()):
        standing = standings.get(peer)
        mean_s = standing.mean_s if standing else None
        rows.append(
            {
                "peer_id": str(peer),
                "room": rooms.get(peer),
                "answered": standing.answered if standing else 0,
                "failed": standing.failed if standing else 0,
                "wrong": standing.wrong if standing else 0,
                "avoided": standing.avoided if standing else False,
                "call_ms": round(1000 * mean_s, 2) if mean_s is not None else None,
            }
        )
    return rows

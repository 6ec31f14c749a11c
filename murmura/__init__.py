"""Murmura for Python programs: everything here is defined elsewhere, and nothing imports this.

    join, Swarm         take part in a run from a script, without a daemon        node.embedded
    Optimizer           a torch optimizer whose model is averaged with others'    node.optimizer
    Gossip              how: the `[gossip]` table of a run file                   protocols.gossip.settings
    DiLoCo              or the `[collective]` table                               protocols.collective.settings
    Server              hosts a script's own modules as experts for others        node.experts
    RemoteMixtureOfExperts   a layer of remote experts, an ordinary nn.Module     node.experts
    experts_run         a run for scripts that host and ask experts               moe.script
    script_run          a run for scripts that train a model like this one        node.optimizer
    read_run_file, RunSpec, Invite, read_invite                                   run files and invites
    status_of           how any node in the world is doing                        node.light.ask
    NodeError           what a person can put right                               node.errors

Names are loaded when they are first used, so that asking a node for its status needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.script import experts_run
    from node.embedded import Swarm, join
    from node.errors import NodeError
    from node.experts import RemoteMixtureOfExperts, Server
    from node.light.ask import status_of
    from node.optimizer import Optimizer, script_run
    from node.runfile import read_run_file
    from protocols.collective.settings import CollectiveSpec as DiLoCo
    from protocols.gossip.settings import GossipSpec as Gossip
    from protocols.invite import Invite
    from protocols.invite import invite_from_text as read_invite
    from protocols.run import RunSpec

__all__ = [
    "DiLoCo",
    "Gossip",
    "Invite",
    "NodeError",
    "Optimizer",
    "RemoteMixtureOfExperts",
    "RunSpec",
    "Server",
    "Swarm",
    "experts_run",
    "join",
    "read_invite",
    "read_run_file",
    "script_run",
    "status_of",
]

_WHERE = {
    "DiLoCo": ("protocols.collective.settings", "CollectiveSpec"),
    "Gossip": ("protocols.gossip.settings", "GossipSpec"),
    "Invite": ("protocols.invite", "Invite"),
    "NodeError": ("node.errors", "NodeError"),
    "Optimizer": ("node.optimizer", "Optimizer"),
    "RemoteMixtureOfExperts": ("node.experts", "RemoteMixtureOfExperts"),
    "RunSpec": ("protocols.run", "RunSpec"),
    "Server": ("node.experts", "Server"),
    "Swarm": ("node.embedded", "Swarm"),
    "experts_run": ("moe.script", "experts_run"),
    "join": ("node.embedded", "join"),
    "read_invite": ("protocols.invite", "invite_from_text"),
    "read_run_file": ("node.runfile", "read_run_file"),
    "script_run": ("node.optimizer", "script_run"),
    "status_of": ("node.light.ask", "status_of"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"murmura has no {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)

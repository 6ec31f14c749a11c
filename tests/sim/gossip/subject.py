"""Gossip averaging, as the engine runs it."""

from __future__ import annotations

from typing import Final

from tests.sim.engine.subject import Subject
from tests.sim.gossip.checkers import ALL
from tests.sim.gossip.faults import GossipFaults
from tests.sim.gossip.world import draw_world

SUBJECT: Final = Subject(
    mode="gossip",
    unit="pairs",
    draw=draw_world,
    faults=GossipFaults,
    checkers=ALL,
    liveness_s=1500.0,
)
"""A peer that was taken for dead again and again is tried again after ten minutes at the latest."""

"""Who has been heard lately, whatever strangers send."""

from __future__ import annotations

import pytest

import protocols.ledger.pulse as module
from protocols.ids import PeerID
from protocols.ledger.pulse import Pulse

FIRST, SECOND, THIRD = (PeerID(name) for name in (b"first", b"second", b"third"))


def test_strangers_do_not_make_the_table_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those heard longest ago are forgotten first."""
    monkeypatch.setattr(module, "PEERS_MAX", 2)
    pulse = Pulse(silence_s=1.0)
    for now_s, peer in enumerate((FIRST, SECOND, FIRST, THIRD)):
        pulse.heard(now_s, peer)
    assert len(pulse) == 2
    assert [pulse.suspects(10.0, peer) for peer in (FIRST, SECOND, THIRD)] == [True, False, True]

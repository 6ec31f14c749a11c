from __future__ import annotations

from protocols.experts.messages import SnapshotOffer
from protocols.experts.shelf import Shelf
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

UID = ExpertUID("ffn", (0, 1))
HOST, NEXT, LIAR = PeerID(b"host"), PeerID(b"next"), PeerID(b"liar")


def offer(epoch: int, version: int, host: PeerID) -> SnapshotOffer:
    root = b"%016d%016d" % (epoch, version)
    return SnapshotOffer(str(UID), epoch, version, root, host, bytes(64))


def shelf_with(kept: SnapshotOffer) -> Shelf:
    shelf = Shelf()
    assert shelf.put(UID, kept, [Claim(kept.epoch, kept.host)])
    return shelf


def test_the_newest_of_one_host_is_kept() -> None:
    shelf = shelf_with(offer(1, 5, HOST))
    claims = [Claim(1, HOST)]
    assert shelf.judge(UID, offer(1, 5, HOST), claims) == "kept"
    assert shelf.judge(UID, offer(1, 4, HOST), claims) == "old"
    assert shelf.judge(UID, offer(1, 6, HOST), claims) == "fetch"


def test_nobody_but_the_host_that_the_directory_names_replaces_what_is_kept() -> None:
    kept = offer(1, 5, HOST)
    for claims in ([], [Claim(1, HOST)]):
        shelf = shelf_with(kept)
        assert shelf.judge(UID, offer(1 << 50, 9, LIAR), claims) == "overtaken"
        assert not shelf.put(UID, offer(1 << 50, 9, LIAR), claims)
        assert shelf.offers[UID] == kept


def test_nothing_is_kept_of_a_host_that_the_directory_does_not_name_yet() -> None:
    shelf = Shelf()
    assert shelf.judge(UID, offer(1, 5, HOST), []) == "overtaken"
    assert not shelf.put(UID, offer(1, 5, HOST), [Claim(1, NEXT)])
    assert shelf.put(UID, offer(1, 5, HOST), [Claim(1, HOST)])
    assert shelf.judge(UID, offer(1, 6, HOST), []) == "fetch", "it was named before"


def test_the_named_host_replaces_what_a_liar_signed_however_new_it_seems() -> None:
    shelf = shelf_with(offer(1 << 50, 9, LIAR))
    assert shelf.judge(UID, offer(2, 0, NEXT), [Claim(2, NEXT)]) == "fetch"


def test_what_was_given_up_is_kept_unless_a_newer_one_is_here() -> None:
    shelf = shelf_with(offer(2, 1, NEXT))
    assert not shelf.put_own(UID, offer(1, 7, HOST))
    assert shelf.put_own(UID, offer(2, 3, HOST))
    assert shelf.offers[UID].host == HOST

"""What a storing node keeps, for whom, and how much of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.dht.process.allowance import PEERS_MAX, Allowance
from node.dht.process.record_store import RecordStore, StoreLimits
from node.dht.record_cache import KEYS_MAX, RecordCache
from protocols.ids import PeerID
from protocols.records import Refusal, Statement, key_digest

NOW_S = 1_700_000_000.0
KEY, OTHER_KEY = key_digest("one"), key_digest("other")
ALICE, BOB = PeerID(b"alice"), PeerID(b"bob")
LIMITS = StoreLimits(total_bytes_max=1000, owner_bytes_max=400, records_per_key_max=3)


def said(owner: PeerID, sequence: int = 1, expires_s: float = NOW_S + 60) -> Statement:
    return Statement(owner=owner, value=b"", issued_s=NOW_S, expires_s=expires_s, sequence=sequence)


def raws(store: RecordStore, digest: bytes, now_s: float = NOW_S) -> list[bytes]:
    return [record.raw for record in store.find(digest, now_s)]


def test_an_older_word_never_replaces_a_newer_and_the_same_again_is_fine() -> None:
    store = RecordStore(LIMITS)
    assert store.offer(KEY, said(ALICE, 2, NOW_S + 61), b"new", NOW_S) is None
    assert store.offer(KEY, said(ALICE, 1), b"old", NOW_S) is Refusal.SUPERSEDED
    assert store.offer(KEY, said(ALICE, 2, NOW_S + 61), b"new", NOW_S) is None
    assert raws(store, KEY) == [b"new"]


def test_a_replayed_old_record_does_not_shorten_the_life_of_the_new() -> None:
    """hivemind's own storage drops the newer record at the older's expiry."""
    store = RecordStore(LIMITS)
    store.offer(KEY, said(ALICE, 2, NOW_S + 60), b"new", NOW_S)
    store.offer(KEY, said(ALICE, 1, NOW_S + 30), b"old", NOW_S)
    assert raws(store, KEY, NOW_S + 59) == [b"new"]
    assert raws(store, KEY, NOW_S + 60) == []
    assert (len(store), store.total_bytes) == (0, 0)


def test_one_owner_cannot_take_more_than_its_room() -> None:
    store = RecordStore(LIMITS)
    assert store.offer(KEY, said(ALICE), b"x" * 400, NOW_S) is None
    assert store.offer(OTHER_KEY, said(ALICE), b"x", NOW_S) is Refusal.FULL
    assert store.offer(OTHER_KEY, said(BOB), b"x", NOW_S) is None


def test_a_full_store_still_lets_owners_renew_what_they_have() -> None:
    store = RecordStore(LIMITS)
    for number in range(3):
        assert store.offer(KEY, said(PeerID(b"p%d" % number)), b"x" * 333, NOW_S) is None
    assert store.offer(OTHER_KEY, said(ALICE), b"x" * 333, NOW_S) is Refusal.FULL
    assert store.offer(KEY, said(PeerID(b"p1"), 2, NOW_S + 61), b"y" * 333, NOW_S) is None


def test_a_key_holds_so_many_owners_and_expiry_makes_room() -> None:
    store = RecordStore(LIMITS)
    for number in range(3):
        store.offer(KEY, said(PeerID(b"p%d" % number)), b"x", NOW_S)
    assert store.offer(KEY, said(ALICE), b"x", NOW_S) is Refusal.FULL
    later = said(ALICE, 1, NOW_S + 120)
    assert store.offer(KEY, later, b"x", NOW_S + 60) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([KEY, OTHER_KEY]),
            st.sampled_from([ALICE, BOB, PeerID(b"carol")]),
            st.integers(1, 5),
            st.integers(1, 90),
            st.integers(0, 300),
        ),
        max_size=200,
    )
)
def test_its_accounts_are_right_and_its_bounds_hold_whatever_is_offered(
    offers: list[tuple[bytes, PeerID, int, int, int]],
) -> None:
    store = RecordStore(LIMITS)
    for now_s, (digest, owner, sequence, lifetime_s, size) in enumerate(offers):
        at_s = NOW_S + now_s
        statement = said(owner, sequence, at_s + lifetime_s)
        store.offer(digest, statement, b"x" * size, at_s)
        held = [record for key in (KEY, OTHER_KEY) for record in store.find(key, at_s)]
        assert len(held) == len(store)
        assert sum(len(record.raw) for record in held) == store.total_bytes <= 1000
        assert len(store._expiries) <= 2 * len(store) + 65
    store.forget_expired(NOW_S + 1e6)
    assert (len(store), store.total_bytes, store._owner_bytes) == (0, 0, {})


def test_a_reader_keeps_a_bounded_number_of_keys() -> None:
    cache = RecordCache()
    for number in range(KEYS_MAX + 1):
        cache.add(f"key {number}", [said(ALICE)], NOW_S)
    assert not cache.live("key 0", NOW_S)
    assert cache.live(f"key {KEYS_MAX}", NOW_S)


def test_a_reader_does_not_forget_whom_one_lookup_missed() -> None:
    cache = RecordCache()
    cache.add("key", [said(ALICE), said(BOB)], NOW_S)
    cache.add("key", [said(BOB, 2, NOW_S + 90)], NOW_S + 30)
    assert [record.peer for record in cache.live("key", NOW_S + 30)] == [ALICE, BOB]
    assert [record.peer for record in cache.live("key", NOW_S + 60)] == [BOB]


def test_one_peer_is_given_its_share_of_our_time_and_no_more() -> None:
    allowance = Allowance(rate=2.0, burst=10.0)
    assert [allowance.spend(ALICE, 4.0, NOW_S) for _ in range(3)] == [True, True, False]
    assert allowance.spend(BOB, 10.0, NOW_S), "others are not held up"
    assert allowance.spend(ALICE, 4.0, NOW_S + 1), "2 were left and 2 have come back"
    assert not allowance.spend(ALICE, 1.0, NOW_S + 1)
    assert not allowance.spend(ALICE, 10.1, NOW_S + 1e6), "it never grows beyond the burst"


def test_strangers_do_not_make_the_allowance_grow() -> None:
    allowance = Allowance(rate=1.0, burst=1.0)
    for number in range(PEERS_MAX + 10):
        allowance.spend(b"%d" % number, 1.0, NOW_S)
    assert len(allowance._left) == PEERS_MAX

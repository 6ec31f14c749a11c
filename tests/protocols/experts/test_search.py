from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from protocols.experts.messages import Stated
from protocols.experts.search import BeamSearch, Found, LookUp
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.experts.view import Claim, HostStatement, PrefixView
from protocols.ids import PeerID

A, B, C = PeerID(b"aa"), PeerID(b"bb"), PeerID(b"cc")


class Directory:
    """What hosts have stated, by prefix."""

    def __init__(self) -> None:
        self.records: dict[Prefix, dict[PeerID, dict[int, int]]] = {}
        self.asked: list[Prefix] = []

    def host(self, peer: PeerID, uid: ExpertUID, epoch: int = 1) -> None:
        for prefix in uid.prefixes:
            lines = self.records.setdefault(prefix, {}).setdefault(peer, {})
            last = len(prefix.place) == len(uid.place) - 1
            lines[uid.place[len(prefix.place)]] = epoch if last else 0

    def look_up(
        self, view: PrefixView, prefix: Prefix, now_s: float, issued_s: float = 1.0
    ) -> None:
        self.asked.append(prefix)
        statements = [
            HostStatement(
                peer, tuple(Stated(u, epoch) for u, epoch in lines.items()), now_s + 60, issued_s
            )
            for peer, lines in self.records.get(prefix, {}).items()
        ]
        view.learn(prefix, statements, asked_s=now_s)


def search(
    directory: Directory, view: PrefixView, grid: Grid, scores: list[list[float]], beam: int
) -> Found:
    wanted = BeamSearch(grid, scores, beam=beam, until_s=10.0)
    while isinstance(step := wanted.proceed(view, 0.0), LookUp):
        assert step.prefixes, "a search that waits for what it has been told"
        for prefix in step.prefixes:
            directory.look_up(view, prefix, 0.0)
    return step


@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_a_wide_beam_finds_exactly_the_best_experts_alive(seed: int, sizes: list[int]) -> None:
    rng = random.Random(seed)
    grid = Grid("f", tuple(sizes))
    directory = Directory()
    alive = [uid for uid in grid.uids() if rng.random() < 0.4]
    for uid in alive:
        directory.host(rng.choice([A, B, C]), uid)
    scores = [[rng.gauss(0, 1) for _ in range(size)] for size in sizes]
    found = search(directory, PrefixView(fresh_s=1.0), grid, scores, beam=len(grid))
    best = sorted(alive, key=lambda uid: -sum(scores[i][u] for i, u in enumerate(uid.place)))
    assert list(found.uids) == best


def test_a_narrow_beam_looks_up_little_of_a_large_grid() -> None:
    rng = random.Random(1)
    grid = Grid("f", (64, 64))
    directory = Directory()
    for uid in grid.uids():
        directory.host(A, uid)
    scores = [[rng.gauss(0, 1) for _ in range(64)] for _ in range(2)]
    found = search(directory, PrefixView(fresh_s=1.0), grid, scores, beam=4)
    assert len(found.uids) == 4
    assert len(directory.asked) == 4
    best = tuple(row.index(max(row)) for row in scores)
    assert found.uids[0].place == best


def test_what_is_not_answered_in_time_is_done_without() -> None:
    grid, view, directory = Grid("f", (2, 2)), PrefixView(fresh_s=1.0), Directory()
    for uid in grid.uids():
        directory.host(A, uid)
    wanted = BeamSearch(grid, [[2.0, 1.0], [0.0, 0.0]], beam=2, until_s=5.0)
    first = wanted.proceed(view, 0.0)
    assert first == LookUp((Prefix("f", (0,)), Prefix("f", (1,))))
    directory.look_up(view, Prefix("f", (1,)), 1.0)
    assert wanted.proceed(view, 1.0) == LookUp(())
    done = wanted.proceed(view, 5.0)
    assert isinstance(done, Found)
    assert {uid.place[0] for uid in done.uids} == {1}


def test_an_empty_grid_finds_nothing_and_is_not_asked_again_until_the_negative_entries_expire() -> (
    None
):
    grid, view, directory = (
        Grid("f", (3, 3, 3)),
        PrefixView(fresh_s=1.0, negative_s=20.0),
        Directory(),
    )
    scores = [[0.0] * 3] * 3
    assert search(directory, view, grid, scores, beam=4).uids == ()
    assert len(directory.asked) == 3
    again = BeamSearch(grid, scores, beam=4, until_s=100.0)
    assert again.proceed(view, 19.0) == Found((), 0)
    assert isinstance(again.proceed(view, 20.0), LookUp)


def test_an_empty_prefix_inside_a_deep_grid_is_remembered_as_empty() -> None:
    grid, view, directory = Grid("f", (2, 2, 2)), PrefixView(fresh_s=1.0), Directory()
    directory.host(A, ExpertUID("f", (0, 0, 0)))
    # A record that names (0, 1) though nothing is below it.
    directory.records[Prefix("f", (0,))][A][1] = 0
    scores = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert search(directory, view, grid, scores, beam=4).uids == (ExpertUID("f", (0, 0, 0)),)
    assert view.children(Prefix("f", (0, 1)), 0.5) == []


def test_coordinates_outside_the_grid_are_left_out() -> None:
    grid, view, directory = Grid("f", (2, 2)), PrefixView(fresh_s=1.0), Directory()
    directory.host(A, ExpertUID("f", (0, 1)))
    directory.records[Prefix("f", (0,))][A][500] = 1
    assert search(directory, view, grid, [[0.0] * 2] * 2, beam=4).uids == (ExpertUID("f", (0, 1)),)
    assert view.alive(grid, 0.0) == [ExpertUID("f", (0, 1))]


def test_a_prefix_with_nothing_but_coordinates_outside_the_grid_takes_no_place_in_the_beam() -> (
    None
):
    grid, view, directory = Grid("f", (3, 2)), PrefixView(fresh_s=1.0), Directory()
    directory.host(A, ExpertUID("f", (0, 500)))
    directory.host(B, ExpertUID("f", (1, 0)))
    found = search(directory, view, grid, [[2.0, 1.0, 0.0], [0.0, 0.0]], beam=1)
    assert found.uids == (ExpertUID("f", (1, 0)),)


def test_only_hosts_of_the_highest_epoch_are_asked() -> None:
    view, directory, uid = PrefixView(fresh_s=1.0), Directory(), ExpertUID("f", (0, 1))
    directory.host(A, uid, epoch=1)
    directory.host(C, uid, epoch=2)
    directory.host(B, uid, epoch=2)
    directory.look_up(view, Prefix("f", (0,)), 0.0)
    assert view.hosts(uid, 0.0) == [Claim(2, B), Claim(2, C)]
    assert view.claims(uid, 0.0)[-1] == Claim(1, A)
    view.own(A, {uid: 3})
    assert view.hosts(uid, 0.0) == [Claim(3, A)]


def test_a_doubted_host_counts_again_once_it_has_written_a_newer_record() -> None:
    view, directory, uid = PrefixView(fresh_s=1.0), Directory(), ExpertUID("f", (0, 1))
    directory.host(A, uid)
    directory.look_up(view, Prefix("f", (0,)), 0.0, issued_s=5.0)
    view.doubt(A)
    assert view.hosts(uid, 0.0) == []
    directory.look_up(view, Prefix("f", (0,)), 1.0, issued_s=5.0)
    assert view.hosts(uid, 1.0) == []
    directory.look_up(view, Prefix("f", (0,)), 2.0, issued_s=6.0)
    assert view.hosts(uid, 2.0) == [Claim(1, A)]


def test_records_expire_and_wanted_prefixes_become_due() -> None:
    view, directory, uid = PrefixView(fresh_s=2.0), Directory(), ExpertUID("f", (0, 1))
    prefix = Prefix("f", (0,))
    directory.host(A, uid)
    view.want([prefix])
    assert view.due(0.0) == [prefix]
    directory.look_up(view, prefix, 0.0)
    assert view.due(1.9) == []
    assert view.due(2.0) == [prefix]
    assert view.children(prefix, 59.0) == [1]
    assert view.hosts(uid, 60.0) == []

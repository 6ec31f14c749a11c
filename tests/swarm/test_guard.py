"""Whose streams take whose places: strangers none of those that the run needs."""

from __future__ import annotations

import pytest
import trio

from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID, RunID
from protocols.ports import Stream
from protocols.replies import ErrorReply, Hello
from swarm.calls import Caller, CallError, Guard, GuardLimits, Service
from swarm.calls.guard import Pool
from tests.fakes.host import MemoryHost, MemoryNetwork
from tests.fakes.signer import SeededSigner
from tests.swarm.calling import HELLO, echo, run

RUN, KEY = RunID(bytes(32)), b"k" * 32
ROOM = GuardLimits(counted_on_max=4, accepted_max=3, strangers_max=6, strangers_per_origin_max=2)


def peer(number: int) -> PeerID:
    return SeededSigner(number).peer_id


def test_each_pool_has_its_own_room_and_an_origin_its_share_of_the_last() -> None:
    guard = Guard(ROOM)
    members = {peer(0), peer(1)}
    guard.counts_on = members.__contains__
    first = [guard.admit_stream(peer(10 + n), "192.0.2.1") for n in range(3)]
    assert [place is not None for place in first] == [True, True, False]
    assert all(guard.admit_stream(peer(20 + n), f"192.0.2.{n + 2}") for n in range(4))
    assert guard.admit_stream(peer(30), "192.0.2.9") is None  # strangers have no room left
    assert all(guard.admit_stream(peer(n % 2), "192.0.2.1") for n in range(4))
    assert guard.admit_stream(peer(0), "192.0.2.1") is None


def test_an_accepted_stream_makes_room_for_the_next_stranger() -> None:
    guard = Guard(ROOM)
    for number in range(3):
        place = guard.admit_stream(peer(number), "192.0.2.1")
        assert place is not None
        assert guard.accept_stream(place)
    place = guard.admit_stream(peer(3), "192.0.2.1")
    assert place is not None
    assert not guard.accept_stream(place)
    guard.release_stream(place)
    assert guard.streams_open == 3


def test_who_is_counted_on_by_now_gives_its_place_to_others() -> None:
    guard = Guard(ROOM)
    places = [guard.admit_stream(peer(number), str(number)) for number in range(3)]
    assert all(place is not None and guard.accept_stream(place) for place in places)
    guard.counts_on = {peer(0)}.__contains__
    newcomer = guard.admit_stream(peer(9), "9")
    assert newcomer is not None
    assert guard.accept_stream(newcomer)
    assert places[0] is not None
    assert places[0].pool is Pool.COUNTED_ON


def private(peer: PeerID, hello: Hello, *, server: PeerID) -> ErrorReply | None:
    return check_hello(
        hello, run=RUN, run_key=KEY, protocol=protocol_of("work"), opener=peer, server=server
    )


class Flood:
    """Twelve fresh identities at one address that open what they can and say as little as they can, again and again."""

    def __init__(self, network: MemoryNetwork, target: MemoryHost) -> None:
        self.target = target
        self.hosts = [network.join(peer(100 + number)) for number in range(12)]
        for host in self.hosts:
            network.origins[host.peer_id] = "192.0.2.66"

    async def run(self) -> None:
        while True:
            streams = [
                await host.open_stream(self.target.peer_id, protocol_of(name))
                for host in self.hosts
                for _ in range(32)
                for name in ("status", "work")
            ]
            for stream in streams[::2]:
                await self._greet(stream)
            await trio.sleep(3.0)

    async def _greet(self, stream: Stream) -> None:
        try:
            await stream.send_all(HELLO)
        except Exception:  # noqa: BLE001 - turned away already
            await stream.aclose()


@pytest.mark.trio
def test_a_flood_of_strangers_keeps_neither_members_nor_the_invited_out() -> None:
    """768 silent streams of twelve identities had taken all there were, on a private node, without its key."""

    async def main() -> None:
        async with MemoryNetwork.open() as network, trio.open_nursery() as nursery:
            node, member, invited = (network.join(peer(number)) for number in range(3))
            guard = Guard()
            guard.counts_on = {member.peer_id}.__contains__
            await Service(
                node,
                "status",
                answer=echo,
                accept=lambda peer, hello: None,
                guard=guard,
                for_anybody=True,
            ).start()
            await Service(
                node,
                "work",
                answer=echo,
                accept=lambda peer, hello: private(peer, hello, server=node.peer_id),
                guard=guard,
            ).start()
            nursery.start_soon(Flood(network, node).run)
            await trio.sleep(30.0)
            assert guard.streams_refused > 0
            for host in (member, invited):
                caller = Caller(host, hello=Hello(run=RUN), run_key=KEY)
                for number in range(20):
                    began_s = trio.current_time()
                    answer = await caller.call(node.peer_id, "work", number, deadline_s=5.0)
                    assert answer.message == number
                    assert trio.current_time() - began_s < 1.0
            uninvited = Caller(network.join(peer(3)), hello=Hello(run=RUN))
            with pytest.raises(CallError):
                await uninvited.call(node.peer_id, "work", 1, deadline_s=5.0)
            asks = Caller(network.join(peer(4)), hello=Hello())
            assert (await asks.call(node.peer_id, "status", "up?", deadline_s=5.0)).message == "up?"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.trio
def test_a_stranger_that_says_nothing_is_shown_the_door_in_five_seconds() -> None:
    async def main() -> None:
        async with MemoryNetwork.open() as network:
            node, stranger = (network.join(peer(number)) for number in range(2))
            guard = Guard()
            await Service(
                node, "work", answer=echo, accept=lambda peer, hello: None, guard=guard
            ).start()
            await stranger.open_stream(node.peer_id, protocol_of("work"))
            await trio.sleep(4.9)
            assert guard.streams_open == 1
            await trio.sleep(0.2 + 2.0)  # it is told why
            assert guard.streams_open == 0

    run(main)


@pytest.mark.trio
def test_a_stream_on_which_nothing_has_to_be_proved_does_not_stay() -> None:
    async def main() -> None:
        async with MemoryNetwork.open() as network:
            node, stranger = (network.join(peer(number)) for number in range(2))
            guard = Guard()
            await Service(
                node,
                "status",
                answer=echo,
                accept=lambda peer, hello: None,
                guard=guard,
                for_anybody=True,
            ).start()
            caller = Caller(stranger, hello=Hello())
            for _ in range(8):
                assert (await caller.call(node.peer_id, "status", 1, deadline_s=5.0)).message == 1
                await trio.sleep(2.0)
            await trio.sleep(11.0)
            assert guard.streams_open == 0

    run(main)

"""Getting in and staying in: nodes on the in-memory network, in virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from node.errors import IdentityTakenError
from node.heartbeat import watch_health
from node.identity import Identity
from node.joining import MemberRecord
from node.node import Node
from node.public import public_status
from node.status import unhealthy_reasons
from protocols.ledger.view import Member, Record
from protocols.life import LifeState
from protocols.ports import StreamClosedError
from protocols.public import STATUS_SERVICE, PublicStatus, public_status_untrusted
from protocols.replies import Hello
from protocols.schema import decode, encode
from protocols.twin import Start
from swarm.calls import Caller, CallError
from swarm.mode import Progress
from swarm.pipeline.info import JOURNAL
from swarm.pipeline.journal import Journal
from tests.fakes.directory import MemoryDirectory
from tests.fakes.signer import SeededSigner
from tests.node.nodes import RUN_TOML, World, invite_of, make_startup, open_world

pytestmark = pytest.mark.trio

STRANGER = f"/memory/1/p2p/{SeededSigner(99).peer_id}"
"""An address where nobody is."""


def play(folder: Path, scene: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_world(folder) as world:
            await scene(world)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def state(node: Node) -> LifeState:
    return node.life.snapshot.state


def hold_state(*nodes: Node) -> None:
    """Say for the absent training services that they have what they need."""
    for node in nodes:
        node.life.has_state("test", "nothing to fetch")


class PlayedService:
    """A service of training that says which step it is at."""

    name = "pipeline"

    def __init__(self, step: int) -> None:
        self._step = step

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {}

    task_seconds = 0.0

    def progress(self) -> Progress:
        return Progress(in_run=True, step=self._step)

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


def play_service(world: World, node: Node, *, step: int) -> None:
    world.nursery.start_soon(node.services.keep_running, PlayedService(step))


def test_the_first_node_is_in_its_swarm_at_once(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        hold_state(node)
        await trio.sleep(3600)
        assert state(node) is LifeState.SERVING
        assert unhealthy_reasons(node) == []

    play(tmp_path, scene)


def test_a_volunteer_with_an_invite_fetches_the_run_and_joins(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        joiner = await world.node(join=invite_of(first))
        assert joiner.membership.spec is None
        await joiner.run_known.wait()
        assert joiner.run == first.run
        await trio.sleep(1)
        assert state(joiner) is LifeState.SYNCING
        hold_state(joiner)
        assert state(joiner) is LifeState.SERVING
        assert (joiner.membership.folder / "run.msgpack").exists()

    play(tmp_path, scene)


def test_an_unreachable_bootstrap_is_a_state_with_a_reason_not_an_end(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file(), bootstrap=[STRANGER])
        await trio.sleep(20)
        assert state(node) is LifeState.JOINING
        assert not node.dialled[STRANGER].ok
        assert node.dialled[STRANGER].reason
        await trio.sleep(600)
        assert state(node) is LifeState.ISOLATED
        assert any("isolated" in reason for reason in unhealthy_reasons(node))

    play(tmp_path, scene)


def test_one_address_that_answers_is_enough(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        joiner = await world.node(join=invite_of(first), bootstrap=[STRANGER])
        await joiner.run_known.wait()
        await trio.sleep(60)
        assert state(joiner) is LifeState.SYNCING

    play(tmp_path, scene)


def test_what_only_looks_like_an_address_is_a_reason_and_not_an_end(tmp_path: Path) -> None:
    """A stranger may announce anything as its address; everybody who looks up members dials it."""

    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        invite = invite_of(first)
        stranger = await world.node("stranger", join=invite)
        await stranger.run_known.wait()
        await trio.sleep(5)
        nonsense = f"/x/y/z/p2p/{stranger.peer_id}"
        record = msgpack.packb({"addresses": [nonsense]})
        await stranger.directory.announce(f"{stranger.membership.run_id}/members", record, 600.0)
        joiner = await world.node("joiner", join=invite)
        await trio.sleep(300)
        assert state(joiner) is LifeState.SYNCING
        assert "not an address" in joiner.dialled[nonsense].reason
        (joining,) = [m for m in joiner.services.members if m.service.name == "joining"]
        assert (joining.up, joining.restarts) == (True, 0)

    play(tmp_path, scene)


def test_a_node_that_comes_up_later_is_found(tmp_path: Path) -> None:
    """The joiner starts first; the bootstrap node a quarter of an hour later, under the address that was expected."""

    async def scene(world: World) -> None:
        first = await world.node("first", run=world.run_file())
        invite = invite_of(first)
        world.network.crash(first.peer_id)
        joiner = await world.node(join=invite)
        await trio.sleep(900)
        assert state(joiner) is LifeState.ISOLATED
        await world.node("first", run=world.run_file())
        await trio.sleep(120)
        assert state(joiner) is LifeState.SYNCING

    play(tmp_path, scene)


def test_after_an_outage_the_node_is_back_without_a_restart(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        joiner = await world.node(join=invite_of(first))
        await joiner.run_known.wait()
        hold_state(first, joiner)
        await trio.sleep(30)
        world.network.link(first.peer_id, joiner.peer_id).cut = True
        world.network.reset(first.peer_id, joiner.peer_id)
        await trio.sleep(120)
        assert state(joiner) is LifeState.ISOLATED
        world.network.heal(first.peer_id, joiner.peer_id)
        await trio.sleep(120)
        assert state(joiner) is LifeState.SERVING
        assert state(first) is LifeState.SERVING

    play(tmp_path, scene)


def test_members_meet_each_other_through_the_directory(tmp_path: Path) -> None:
    """Two joiners know only the first node; the directory introduces them, so that the first may go."""

    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        a = await world.node(join=invite_of(first))
        b = await world.node(join=invite_of(first))
        await trio.sleep(200)
        assert b.peer_id in await a.host.peers()
        world.network.crash(first.peer_id)
        await trio.sleep(200)
        assert state(a) is state(b) is LifeState.SYNCING

    play(tmp_path, scene)


def test_a_node_that_was_in_comes_back_through_those_it_remembers(tmp_path: Path) -> None:
    """The invite named only the first node, which is gone for good; the run file is not asked for again either."""

    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        invite = invite_of(first)
        await world.node(join=invite)
        returning = await world.node("returning", join=invite)
        await trio.sleep(200)
        world.network.crash(returning.peer_id)
        world.network.crash(first.peer_id)
        returning = await world.node("returning", join=invite)
        assert returning.run_known.is_set()
        await trio.sleep(60)
        assert state(returning) is LifeState.SYNCING

    play(tmp_path, scene)


def test_a_first_node_that_dialled_nobody_comes_back_through_those_who_came_to_it(
    tmp_path: Path,
) -> None:
    """Or else it would found a second swarm beside its own."""

    async def scene(world: World) -> None:
        first = await world.node("first", run=world.run_file())
        await world.node(join=invite_of(first))
        await trio.sleep(200)
        world.network.crash(first.peer_id)
        first = await world.node("first", run=world.run_file())
        assert not first.membership.first
        await trio.sleep(60)
        assert state(first) is LifeState.SYNCING

    play(tmp_path, scene)


def named_nodes(tmp_path: Path, count: int) -> tuple[list[str], list[str]]:
    """Return names and addresses of nodes that have not been started; the first may begin the run."""
    (tmp_path / "run.toml").write_text(RUN_TOML)
    startups = {
        f"n{k}": make_startup(tmp_path / f"n{k}", run=str(tmp_path / "run.toml"))
        for k in range(count)
    }
    names = sorted(startups, key=lambda name: startups[name].identity.peer_id)
    return names, [f"/memory/1/p2p/{startups[name].identity.peer_id}" for name in names]


def test_of_nodes_started_at_once_with_each_others_names_one_begins_the_run(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        run_file = world.run_file()
        names, addresses = named_nodes(tmp_path, 4)
        nodes = [await world.node(name, run=run_file, bootstrap=addresses) for name in names]
        for node in nodes:
            await node.founding_known.wait()
        await trio.sleep(60)
        assert [node.membership.first for node in nodes] == [True, False, False, False]
        assert {state(node) for node in nodes} == {LifeState.SYNCING}

    play(tmp_path, scene)


def test_the_founder_that_comes_back_without_its_memory_joins_those_who_are_in(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        run_file = world.run_file()
        names, addresses = named_nodes(tmp_path, 2)
        other = await world.node(names[1], run=run_file, bootstrap=addresses)
        play_service(world, other, step=3)
        founder = await world.node(names[0], run=run_file, bootstrap=addresses)
        await founder.founding_known.wait()
        assert not founder.membership.first

    play(tmp_path, scene)


def test_the_founder_that_was_in_with_others_waits_for_all_who_were_named(
    tmp_path: Path,
) -> None:
    """They may be in the run still, and only cut off."""

    async def scene(world: World) -> None:
        run_file = world.run_file()
        names, addresses = named_nodes(tmp_path, 2)
        others = [Member(SeededSigner(k).peer_id, 1, 0, 0) for k in (1, 2)]
        startup = make_startup(tmp_path / names[0], run=run_file)
        Journal(startup.membership.folder / JOURNAL).append(
            Record(index=7, step=7, lead=others[0].peer, members=tuple(others))
        )
        founder = await world.node(names[0], run=run_file, bootstrap=addresses)
        await trio.sleep(600)
        assert not founder.founding_known.is_set()
        await world.node(names[1], run=run_file, bootstrap=addresses)
        await founder.founding_known.wait()
        assert founder.membership.first  # it has lost the run as well

    play(tmp_path, scene)


def test_a_first_node_that_left_others_behind_does_not_begin_the_run_again_by_itself(
    tmp_path: Path,
) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN_TOML)
    startup = make_startup(tmp_path / "first", run=str(run_file))
    assert startup.membership.first
    journal = Journal(startup.membership.folder / JOURNAL)
    alone = Member(startup.identity.peer_id, 1, 0, 0)
    journal.append(Record(index=0, step=0, lead=alone.peer, members=(alone,)))
    assert make_startup(tmp_path / "first", run=str(run_file)).membership.first
    other = Member(SeededSigner(1).peer_id, 1, 0, 0)
    journal.append(Record(index=1, step=0, lead=alone.peer, members=(alone, other)))
    assert not make_startup(tmp_path / "first", run=str(run_file)).membership.first
    assert make_startup(tmp_path / "first", run=str(run_file), new_swarm=True).membership.first


def test_a_private_run_is_closed_to_those_without_its_key(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file(), private=True)
        invited = await world.node(join=invite_of(first))
        guessing = await world.node(run=world.run_file(), bootstrap=list(first.host.addresses()))
        await trio.sleep(60)
        assert state(invited) is LifeState.SYNCING
        assert state(guessing) in (LifeState.JOINING, LifeState.ISOLATED)
        (dialled,) = guessing.dialled.values()
        assert "wrong-key" in dialled.reason

    play(tmp_path, scene)


def test_a_node_of_another_run_is_not_joined(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        other_run = world.run_file("seed = 5\n" + RUN_TOML)
        other = await world.node(run=other_run, bootstrap=list(first.host.addresses()))
        await trio.sleep(10)
        assert state(other) is LifeState.JOINING
        (dialled,) = other.dialled.values()
        assert "wrong-run" in dialled.reason

    play(tmp_path, scene)


def test_a_stranger_sees_the_public_status_and_nothing_private(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        visitor = Caller(world.network.join(SeededSigner(50).peer_id), hello=Hello(role="visitor"))
        answer = await visitor.call(node.peer_id, STATUS_SERVICE, {}, deadline_s=5)
        status = public_status_untrusted(answer.message)
        assert status.run == node.membership.run_id
        assert status.run_name == "try"
        assert status.state == "syncing"
        text = repr(answer.message)
        assert str(tmp_path) not in text
        assert "/memory/" not in text
        with pytest.raises((CallError, StreamClosedError)):
            await visitor.call(node.peer_id, "run", {}, deadline_s=5)

    play(tmp_path, scene)


def test_a_private_run_tells_strangers_only_that_the_node_is_up(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file(), private=True)
        membership = node.membership
        wrong = Hello(run=membership.run_id)
        for number, (hello, key) in enumerate(((Hello(), None), (wrong, None), (wrong, b"x" * 32))):
            host = world.network.join(SeededSigner(50 + number).peer_id)
            visitor = Caller(host, hello=hello, run_key=key)
            answer = await visitor.call(node.peer_id, STATUS_SERVICE, {}, deadline_s=5)
            assert set(answer.message) == {f.name for f in dataclasses.fields(PublicStatus)}
            assert all(value is None for value in answer.message.values())
        host = world.network.join(SeededSigner(60).peer_id)
        invited = Caller(host, hello=wrong, run_key=membership.run_key)
        answer = await invited.call(node.peer_id, STATUS_SERVICE, {}, deadline_s=5)
        assert public_status_untrusted(answer.message).run == membership.run_id

    play(tmp_path, scene)


def test_the_public_status_costs_nothing_that_grows_with_the_run(tmp_path: Path) -> None:
    """It is made of what is kept at hand: no service is asked for its whole status, with all its members."""

    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        for member in node.services.members:
            member.service.status = None  # type: ignore[assignment,method-assign]
        assert public_status(node).peers == 0

    play(tmp_path, scene)


def test_a_leaving_node_withdraws_its_address(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.node(run=world.run_file())
        joiner = await world.node(join=invite_of(first))
        await trio.sleep(60)
        key = f"{first.membership.run_id}/members"
        assert len(await first.directory.look_up(key)) == 2
        await joiner.services.drain(20)
        (left,) = await first.directory.look_up(key)
        assert left.peer == first.peer_id

    play(tmp_path, scene)


async def announce_as(world: World, node: Node, start: Start) -> MemoryDirectory:
    """Do what a copy of this node's state folder does on another machine."""
    assert isinstance(node.signer, Identity)
    record = MemberRecord(addresses=tuple(node.host.addresses()), start=start)
    key = f"{node.membership.run_id}/members"
    copy = world.dht.directory(node.signer)
    await copy.announce(key, msgpack.packb(encode(record)), 300.0)
    return copy


def test_a_node_whose_identity_an_older_node_uses_says_so_and_leaves(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        await trio.sleep(60)
        assert unhealthy_reasons(node) == []
        await announce_as(world, node, Start(node.started_unix_s - 100, 1))
        await trio.sleep(200)
        assert node.life.leave_asked.is_set()
        assert isinstance(node.fatal, IdentityTakenError)
        assert node.fatal.exit_code == 78
        assert "identity.key" in str(node.fatal)

    play(tmp_path, scene)


def test_the_older_of_two_goes_on_and_is_unhealthy_while_the_other_is_there(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        key = f"{node.membership.run_id}/members"
        await trio.sleep(60)
        copy = await announce_as(world, node, Start(node.started_unix_s + 100, 1))
        node.twin.look()
        await trio.sleep(1)
        assert "identity" in unhealthy_reasons(node)[0]
        assert not node.life.leave_asked.is_set()
        (record,) = await world.dht.directory(node.signer).look_up(key)
        assert decode(MemberRecord, msgpack.unpackb(record.value)).start == node.start  # to be seen
        copy.crash()
        await trio.sleep(400)
        assert unhealthy_reasons(node) == []

    play(tmp_path, scene)


def test_what_a_former_life_of_this_node_has_signed_disturbs_nobody(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        startup = make_startup(tmp_path / "again", run=world.run_file())
        copy = world.dht.directory(startup.identity)
        record = MemberRecord(addresses=(), start=Start(1.0, 1))
        key = f"{startup.membership.run_id}/members"
        await copy.announce(key, msgpack.packb(encode(record)), 300.0)
        await trio.sleep(1)
        node = await world.node("again", run=world.run_file())
        await trio.sleep(300)
        assert node.fatal is None
        assert unhealthy_reasons(node) == []

    play(tmp_path, scene)


def test_a_run_that_stands_still_is_unhealthy_and_one_that_goes_on_again_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(world: World) -> None:
        node = await world.node(run=world.run_file())
        hold_state(node)
        service = PlayedService(3)
        world.nursery.start_soon(node.services.keep_running, service)
        world.nursery.start_soon(watch_health, node)
        await trio.sleep(55)
        assert unhealthy_reasons(node) == []
        await trio.sleep(10)
        assert unhealthy_reasons(node)[0].startswith("no step for 6")
        assert node.life.takes_work  # nothing else comes of it
        service._step = 4
        await trio.sleep(2)
        assert unhealthy_reasons(node) == []
        node.life.drain("test")
        await trio.sleep(200)
        assert unhealthy_reasons(node) == []

    with caplog.at_level("INFO"):
        play(tmp_path, scene)
    said = [r.getMessage() for r in caplog.records if r.name == "node.heartbeat"]
    assert [text.split(":")[0] for text in said] == ["unhealthy", "healthy again"]

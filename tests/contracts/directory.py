"""What every Directory promises. A suite calls `directory_contract` with a way to get three peers' directories."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import trio

from protocols.errors import LocalProtocolError
from protocols.ids import PeerID
from protocols.ports import Directory, DirectoryRecord

LIFETIME_S = 30.0
PATIENCE_S = 10.0
"""For what is only eventually so."""


@dataclass(frozen=True, slots=True)
class Member:
    """One peer and its directory, all members in one swarm."""

    peer: PeerID
    directory: Directory


Check: TypeAlias = Callable[[Sequence[Member]], Awaitable[None]]


async def what_one_announces_the_others_look_up(members: Sequence[Member]) -> None:
    first, *others = members
    assert await first.directory.announce("contract/plain", b"here", LIFETIME_S)
    for member in others:
        (record,) = await eventually(member, "contract/plain", [b"here"])
        assert record == first.peer


async def every_peer_has_its_own_record_under_a_key(members: Sequence[Member]) -> None:
    for index, member in enumerate(members):
        assert await member.directory.announce("contract/shared", b"%d" % index, LIFETIME_S)
    by_peer = {member.peer: b"%d" % index for index, member in enumerate(members)}
    wanted = [by_peer[peer] for peer in sorted(by_peer)]
    for member in members:
        assert await eventually(member, "contract/shared", wanted) == sorted(by_peer)


async def a_later_announcement_replaces_the_earlier(members: Sequence[Member]) -> None:
    first, second, *_ = members
    await first.directory.announce("contract/again", b"old", LIFETIME_S)
    await eventually(second, "contract/again", [b"old"])
    await first.directory.announce("contract/again", b"new", LIFETIME_S / 3)
    await eventually(second, "contract/again", [b"new"])


async def a_withdrawn_record_is_gone_for_everybody(members: Sequence[Member]) -> None:
    first, *_ = members
    await first.directory.announce("contract/leave", b"here", LIFETIME_S)
    for member in members:
        await eventually(member, "contract/leave", [b"here"])
    await first.directory.withdraw("contract/leave")
    for member in members:
        await eventually(member, "contract/leave", [])


async def who_left_can_come_back(members: Sequence[Member]) -> None:
    first, second, *_ = members
    await first.directory.announce("contract/back", b"one", LIFETIME_S)
    await first.directory.withdraw("contract/back")
    await first.directory.announce("contract/back", b"two", LIFETIME_S)
    await eventually(second, "contract/back", [b"two"])


async def one_reads_ones_own_writes_at_once(members: Sequence[Member]) -> None:
    first, *_ = members
    await first.directory.announce("contract/own", b"mine", LIFETIME_S)
    assert [record.value for record in await first.directory.look_up("contract/own")] == [b"mine"]
    await first.directory.withdraw("contract/own")
    assert not await first.directory.look_up("contract/own")


async def a_key_nobody_announced_is_empty(members: Sequence[Member]) -> None:
    assert not await members[0].directory.look_up("contract/nobody")


async def who_is_in_a_hurry_is_told_first_what_the_first_peer_has(
    members: Sequence[Member],
) -> None:
    writer, reader, *_ = members
    await writer.directory.announce("contract/hurry", b"here", LIFETIME_S)
    await eventually(reader, "contract/hurry", [b"here"])
    for member in members:
        told: list[Sequence[DirectoryRecord]] = []
        found = await member.directory.look_up("contract/hurry", first=told.append)
        assert [record.value for record in found] == [b"here"]
        assert told == [found], "told once, and before the whole answer"
    nothing: list[Sequence[DirectoryRecord]] = []
    assert not await reader.directory.look_up("contract/nobody", first=nothing.append)
    assert not nothing


async def withdrawing_what_was_never_announced_does_nothing(members: Sequence[Member]) -> None:
    await members[0].directory.withdraw("contract/never")
    assert not await members[1].directory.look_up("contract/never")


async def a_value_or_lifetime_out_of_bounds_is_our_own_mistake(members: Sequence[Member]) -> None:
    directory = members[0].directory
    for value, lifetime_s in ((b"x" * 4097, LIFETIME_S), (b"x", 601.0), (b"x", 0.0)):
        with pytest.raises(LocalProtocolError):
            await directory.announce("contract/bounds", value, lifetime_s)


CHECKS: Sequence[Check] = (
    what_one_announces_the_others_look_up,
    every_peer_has_its_own_record_under_a_key,
    a_later_announcement_replaces_the_earlier,
    a_withdrawn_record_is_gone_for_everybody,
    who_left_can_come_back,
    one_reads_ones_own_writes_at_once,
    a_key_nobody_announced_is_empty,
    who_is_in_a_hurry_is_told_first_what_the_first_peer_has,
    withdrawing_what_was_never_announced_does_nothing,
    a_value_or_lifetime_out_of_bounds_is_our_own_mistake,
)


async def eventually(member: Member, key: str, wanted: Sequence[bytes]) -> Sequence[PeerID]:
    """Look up until the values, in the order of their PeerIDs, are as wanted; return who wrote them."""
    found: Sequence[bytes] = ()
    with trio.move_on_after(PATIENCE_S):
        while True:
            records = await member.directory.look_up(key)
            found = [record.value for record in records]
            if found == list(wanted):
                return [record.peer for record in records]
            await trio.sleep(0.05)
    raise AssertionError(f"under {key}: {found}, not {wanted}")

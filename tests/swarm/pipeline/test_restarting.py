"""The vote file over the lives of a node: whom it waits as, when that is over, and a vote that cannot be read."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from protocols.ids import RunID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart import Disk
from protocols.ledger.restart_messages import Claim
from protocols.ledger.view import Member, Record
from swarm.pipeline.restarting import FromDisk, Restarting
from swarm.pipeline.vote_file import VOTE, Kept, read_vote, write_vote
from tests.protocols.ledger.swarm import peer_ids

RUN = RunID(b"a" * 32)
ME, OTHER = peer_ids(2)
NEWEST = Record(index=5, step=4, lead=ME, members=(Member(ME, 1, 0, 0), Member(OTHER, 1, 0, 0)))
CLAIM = Claim(0, 4, 0, bytes(32), bytes(32))


class Nobody:
    """A network on which nothing arrives."""

    def cast_nowait(self, peer: object, service: str, message: object) -> None: ...


def with_node(
    folder: Path, body: Callable[[Restarting], Awaitable[None]], *, problem: str = ""
) -> None:
    """Run `body` beside a node that waits as 7."""
    caller: Any = Nobody()

    async def main() -> None:
        disk = Disk(newest=NEWEST, claims=(CLAIM,), may_vote=not problem)
        node = Restarting(
            RUN, ME, 7, LedgerSettings(stages=1, microbatches=1, steps=9, silence_s=1.0),
            FromDisk(disk, {}, {}, problem), caller, folder, random.Random(1), new_epoch=False,
            gives_way=False, begin=lambda record, claim: None, note=lambda record: None,
        )  # fmt: skip
        with trio.fail_after(30.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.run)
                await body(node)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until_kept(folder: Path, kept: Kept) -> None:
    """The disk is another thread's: there is no event to wait for."""
    for _ in range(1000):
        if (folder / VOTE).exists() and _read(folder) == kept:
            return
        await trio.sleep(0.01)
    raise AssertionError("that was not written")


def _read(folder: Path) -> Kept | None:
    return None if (folder / VOTE).read_bytes() == b"torn" else read_vote(folder / VOTE, RUN)


def test_whom_a_node_waits_as_is_on_its_disk_until_it_begins(tmp_path: Path) -> None:
    async def body(node: Restarting) -> None:
        await until_kept(tmp_path, Kept(incarnation=7))
        await node.begins()
        assert _read(tmp_path) == Kept()

    with_node(tmp_path, body)


def test_who_joins_as_a_newcomer_is_somebody_else_the_next_time(tmp_path: Path) -> None:
    async def body(node: Restarting) -> None:
        await until_kept(tmp_path, Kept(incarnation=7))
        node.in_run()
        node.in_run()
        await until_kept(tmp_path, Kept())

    with_node(tmp_path, body)


def test_a_vote_that_cannot_be_read_stays_until_this_node_is_in_the_run(tmp_path: Path) -> None:
    (tmp_path / VOTE).write_bytes(b"torn")

    async def body(node: Restarting) -> None:
        assert node.problem == "torn"
        await node.begins()
        assert _read(tmp_path) is None, "the journal has not got the record yet"
        node.in_run()
        await until_kept(tmp_path, Kept())
        assert node.problem == ""

    with_node(tmp_path, body, problem="torn")


def test_a_life_that_ends_while_it_waits_leaves_its_name_and_its_vote(tmp_path: Path) -> None:
    write_vote(tmp_path / VOTE, RUN, Kept(incarnation=7))

    async def body(node: Restarting) -> None:
        await trio.sleep(0.05)

    with_node(tmp_path, body)
    assert _read(tmp_path) == Kept(incarnation=7)

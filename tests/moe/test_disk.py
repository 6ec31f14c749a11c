"""Experts outlive the whole run: what nodes have on disk, and who goes on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import trio
from torch import Tensor

from moe import disk
from moe.disk import HOSTS
from protocols.experts import returning
from protocols.experts.epoch import changes
from protocols.experts.uid import ExpertUID
from swarm.state.checkpoint import FOLDER
from tests.moe.keepers import UIDS, Keeping, keepers, spread, train, until

pytestmark = pytest.mark.trio


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOOK_S", 0.05)


def on_disk(folder: Path, one: int) -> Mapping[str, Sequence[int]]:
    """Return part -> versions on a node's disk."""
    found: dict[str, list[int]] = {}
    for path in (folder / str(one) / "checkpoints").glob("*/*.json"):
        manifest = json.loads(path.read_bytes())
        found.setdefault(manifest["part"], []).append(manifest["version"])
    return found


def state_of(found: Sequence[Keeping], uid: ExpertUID) -> dict[str, Tensor]:
    host = next(one for one in found if uid in one.hosted)
    return host.node.peer.server.experts[uid].hosted.snapshot()


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


async def train_all(found: Sequence[Keeping], folder: Path) -> dict[ExpertUID, dict[str, Tensor]]:
    """Let every expert step 3 times, wait until its host and a keeper have that on disk, and return the states."""
    for one in found:
        for uid in one.hosted:
            await train(one, uid, 3)

    def written(uid: ExpertUID) -> int:
        return sum(3 in on_disk(folder, i).get(f"expert/{uid}", ()) for i in range(len(found)))

    await until(lambda: all(written(uid) == 2 for uid in UIDS))
    await until(lambda: all((folder / str(i) / FOLDER / HOSTS).exists() for i in range(len(found))))
    return {uid: state_of(found, uid) for uid in UIDS}


def test_a_run_that_lost_power_everywhere_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            before = await train_all(found, tmp_path)
            hosts = [one.hosted for one in found]
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            assert [one.hosted for one in found] == hosts
            assert all(equal(state_of(found, uid), before[uid]) for uid in UIDS)
            cores = [one.keeper.core for one in found]
            assert sum(core.taken_back for core in cores) == len(UIDS)
            assert not any(core.created or core.lost or core.adopted for core in cores)
            assert {changes(e) for core in cores for e in core.hosting.values()} == {2}

    trio.run(main)


def test_a_node_that_never_comes_back_is_waited_for_then_its_keepers_disks_have_its_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "RETURN_S", 1.0)

    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            before = await train_all(found, tmp_path)
            gone = max(range(3), key=lambda i: len(found[i].hosted))
            orphans = found[gone].hosted
        back = [i for i in range(3) if i != gone]
        async with keepers(folder=tmp_path, back=back) as (_, found):
            await until(
                lambda: sum(one.keeper.core.taken_back for one in found) == 4 - len(orphans)
            )
            assert not any(one.hosted & orphans for one in found)
            await until(lambda: spread(found))
            assert all(equal(state_of(found, uid), before[uid]) for uid in UIDS)
            assert sum(one.keeper.core.adopted for one in found) == len(orphans)
            assert not any(one.keeper.core.created for one in found)

    trio.run(main)


@pytest.mark.soak
def test_who_comes_back_late_leaves_an_expert_to_who_has_adopted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "RETURN_S", 0.1)

    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            await train_all(found, tmp_path)
            late = max(range(3), key=lambda i: len(found[i].hosted))
            theirs = found[late].hosted
        back = [i for i in range(3) if i != late]
        async with keepers(folder=tmp_path, back=back) as (_, found):
            await until(lambda: spread(found))
            for one in found:
                for uid in one.hosted & theirs:
                    await train(one, uid, 2)
            await until(
                lambda: all(
                    any(5 in on_disk(tmp_path, i).get(f"expert/{uid}", ()) for i in back)
                    for uid in theirs
                )
            )
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            assert not found[late].hosted & theirs
            versions = {
                uid: one.node.peer.server.experts[uid].hosted.version
                for one in found
                for uid in one.hosted
            }
            assert versions == {uid: 5 if uid in theirs else 3 for uid in UIDS}

    trio.run(main)


@pytest.mark.soak
def test_what_was_seen_of_hosts_may_be_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            before = await train_all(found, tmp_path)
        (tmp_path / "0" / FOLDER / HOSTS).unlink()
        (tmp_path / "1" / FOLDER / HOSTS).write_bytes(b"torn")
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            assert all(equal(state_of(found, uid), before[uid]) for uid in UIDS)
            assert not any(one.keeper.core.created for one in found)

    trio.run(main)


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_file_that_its_host_has_not_signed_is_refused_and_the_one_before_it_used(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            await train_all(found, tmp_path)
            keeper = next(i for i in range(3) if found[i].keeper.kept)
            uid = min(found[keeper].keeper.kept)
        folder = tmp_path / str(keeper) / "checkpoints" / f"expert+{uid}"
        newest = max(folder.glob("*.json"))
        note = json.loads(newest.read_text())["note"]
        assert note
        for lie in ("AAAA", note[:-8] + "AAAAAAA="):
            changed(newest, note=lie)
            async with keepers(folder=tmp_path, back=[keeper]) as (_, found):
                offer = found[0].keeper.kept.get(uid)
                assert offer is None or offer.version < 3
        # Named as our own, it would be: whoever can write here can write anything. Under another version it is not.
        newer = newest.with_name("9" + newest.name[1:])
        newer.write_text(newest.read_text())
        async with keepers(folder=tmp_path, back=[keeper]) as (_, found):
            offer = found[0].keeper.kept.get(uid)
            assert offer is None or offer.version < 3

    trio.run(main)


@pytest.mark.soak
def test_an_expert_that_was_handed_over_leaves_the_disk_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_FORGET_S", 0.5)

    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            await train_all(found, tmp_path)
            leaving = max(range(3), key=lambda i: len(found[i].hosted))
            gone = found[leaving].hosted - found[leaving].keeper.kept.keys()
            found[leaving].keeper.drain()
            await found[leaving].left.wait()
            assert all(f"expert/{uid}" in on_disk(tmp_path, leaving) for uid in gone)
            await until(lambda: not any(f"expert/{u}" in on_disk(tmp_path, leaving) for u in gone))

    trio.run(main)


@pytest.mark.soak
def test_what_was_handed_over_is_left_to_who_has_it_though_he_comes_back_later(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with keepers(folder=tmp_path) as (_, found):
            await until(lambda: spread(found))
            await train_all(found, tmp_path)
            leaving = max(range(3), key=lambda i: len(found[i].hosted))
            given = found[leaving].hosted
            found[leaving].keeper.drain()
            await found[leaving].left.wait()
        async with keepers(folder=tmp_path, back=[leaving]) as (_, found):
            await trio.sleep(1.0)
            assert not found[0].hosted & given

    trio.run(main)

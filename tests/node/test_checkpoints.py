"""Checkpoints of a node whose disk is full, missing or in the way: training goes on, and it is said."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
import torch
import trio

from node.checkpoints import Checkpoints
from node.config import load
from protocols.ids import RunID
from swarm.hosting.compute import ComputeThread
from swarm.state import checkpoint_tensors
from swarm.state.part import Part

RUN = RunID(bytes(32))


class Inline:
    """Does the compute thread's work at once."""

    async def run_own(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)


COMPUTE = cast("ComputeThread", Inline())


def part(version: int) -> Part:
    tensors = {"step": torch.tensor(version), "w": torch.full((3,), float(version))}
    return Part("stage/0", version, lambda: (version, tensors), lambda _: None)


Offered: TypeAlias = Callable[..., Awaitable[None]]


def _is_there(checkpoints: Checkpoints, version: int) -> bool:
    return bool(checkpoints.status()["version"] == version and not checkpoints.problem)


def with_checkpoints(folder: Path, body: Callable[[Checkpoints, Offered], Awaitable[None]]) -> None:
    """Run `body` beside the service; its second argument offers a version and waits until it was tried to be written."""

    async def main() -> None:
        config = load({"checkpoint_every_steps": 1}, environ={"HOME": "/"}).config
        checkpoints = Checkpoints(config, folder, RUN)

        async def offered(version: int, fails: bool = False) -> None:
            with trio.fail_after(30.0):
                # Offered again and again: while a thread still deletes what is old, an offer is left out.
                while not (checkpoints.problem if fails else _is_there(checkpoints, version)):
                    await checkpoints.offer(part(version), COMPUTE)
                    await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            await nursery.start(checkpoints.run)
            await body(checkpoints, offered)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_full_disk_is_said_and_the_next_write_that_fits_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        await offered(1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_tensors, "_write_safetensors", full)
            await offered(2, fails=True)
        assert checkpoints.problem == "no checkpoint is written: No space left on device"
        assert checkpoints.status()["version"] == 1
        await offered(3)
        assert not checkpoints.problem
        assert checkpoints.status()["version"] == 3

    with_checkpoints(tmp_path, body)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """As of a read-only disk: who runs the tests as root may write everywhere, so a file is in the way instead."""
    (tmp_path / "checkpoints").write_text("in the way")

    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        await offered(1, fails=True)
        assert checkpoints.problem.startswith("no checkpoint is written: ")
        assert checkpoints.status()["count"] == 0

    with_checkpoints(tmp_path, body)


def test_a_folder_that_vanishes_while_it_is_written_is_said_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_tensors._write_safetensors

    def and_vanish(*arguments: Any) -> Any:
        found = write(*arguments)
        shutil.rmtree(tmp_path / "checkpoints")
        return found

    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_tensors, "_write_safetensors", and_vanish)
            await offered(1, fails=True)
        assert checkpoints.problem == "no checkpoint is written: No such file or directory"
        await offered(2)
        assert not checkpoints.problem
        assert [c.manifest.version for c in await checkpoints.scan()] == [2]

    with_checkpoints(tmp_path, body)


def test_one_that_is_torn_afterwards_is_refused_and_the_one_before_is_there(tmp_path: Path) -> None:
    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        await offered(1)
        await offered(2)
        newest, before = await checkpoints.scan()
        newest.file.write_bytes(newest.file.read_bytes()[:-1])
        assert await checkpoints.load(newest, None) is None
        assert "bytes, its manifest says" in checkpoints.status()["refused"][0]["reason"]
        found = await checkpoints.load(before, None)
        assert found is not None
        assert found["w"].tolist() == [1.0, 1.0, 1.0]

    with_checkpoints(tmp_path, body)


def _manifests(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*/*.json")]


def test_what_is_put_aside_is_not_used_and_kept_until_the_next_time(tmp_path: Path) -> None:
    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        for version in (1, 2):
            await offered(version)
            aside = Path(checkpoints.put_aside())
            assert checkpoints.status()["count"] == 0
            assert await checkpoints.scan() == []
            assert [f"{version:012d}" in name for name in _manifests(aside)] == [True]
        await offered(3)
        assert [found.manifest.version for found in await checkpoints.scan()] == [3]

    with_checkpoints(tmp_path, body)


def test_who_begins_the_run_again_finds_nothing_of_before_and_loses_nothing(tmp_path: Path) -> None:
    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        await offered(1)
        config = dataclasses.replace(checkpoints._config, new_swarm=True)
        again = Checkpoints(config, tmp_path, RUN)
        async with trio.open_nursery() as nursery:
            await nursery.start(again.run)
            assert await again.scan() == []
            assert len(_manifests(tmp_path / "checkpoints-given-up")) == 1
            await again.save(part(2), COMPUTE)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:  # its task begins again, the run does not
            await nursery.start(again.run)
            assert [found.manifest.version for found in await again.scan()] == [2]
            nursery.cancel_scope.cancel()

    with_checkpoints(tmp_path, body)


def test_a_folder_that_cannot_be_put_aside_is_said(tmp_path: Path) -> None:
    async def body(checkpoints: Checkpoints, offered: Offered) -> None:
        await offered(1)
        (tmp_path / "checkpoints-given-up").write_text("in the way")
        checkpoints.put_aside()
        assert "cannot be put aside" in checkpoints.problem

    with_checkpoints(tmp_path, body)


def test_the_last_version_of_a_run_is_written_whatever_the_pace(tmp_path: Path) -> None:
    """A run that is over has no later step that would make up for it, also when it took less than one interval."""

    async def main() -> None:
        checkpoints = Checkpoints(load({}, environ={"HOME": "/"}).config, tmp_path, RUN)
        async with trio.open_nursery() as nursery:
            await nursery.start(checkpoints.run)
            await checkpoints.offer(part(1), COMPUTE)
            assert checkpoints.status()["count"] == 0
            await checkpoints.offer(part(2), COMPUTE, last=True)
            assert [c.manifest.version for c in await checkpoints.scan()] == [2]
            nursery.cancel_scope.cancel()

    trio.run(main)

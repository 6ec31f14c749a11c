"""A cloud takes the machine away: against local servers that answer as they do, and against some that do not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from node import notices
from node.config import load
from node.life import NodeLife
from node.notices import Notices, cloud_of
from protocols.life import LifeState
from protocols.notices import Cloud, NoticeError, NoticePoll
from tests.fakes.metadata import MetadataServer, served


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(notices, "ASK_S", 0.5)


def life() -> NodeLife:
    found = NodeLife(isolated_after_s=30.0, first=True, drain_s=20.0)
    found.started()
    return found


async def asked(service: Notices, times: int) -> None:
    with trio.fail_after(10.0):
        while service.status()["asked"] < times:  # noqa: ASYNC110  a count, not an event
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("cloud", "says"),
    [
        ("aws", "terminate at 2026-11-28T08:00:00Z"),
        ("gcp", "preempted"),
        ("azure", "Preempt not before Sat, 28 Nov 2026 08:00:00 GMT"),
    ],
)
def test_a_notice_drains_the_node_and_nothing_else_does(cloud: Cloud, says: str) -> None:
    async def main() -> None:
        server = MetadataServer()
        with served(server.answer) as address:
            node = life()
            service = Notices(cloud, node, address=address)
            async with trio.open_nursery() as nursery:
                await nursery.start(service.run)
                await asked(service, 4)
                assert service.status()["problem"] is None
                assert node.takes_work
                server.gone = True
                with trio.fail_after(10.0):
                    await node.drain_asked.wait()
                nursery.cancel_scope.cancel()
        assert node.snapshot.state is LifeState.DRAINING
        assert node.snapshot.reason == f"notice of {cloud}: {says}"

    trio.run(main)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, "TRUE", "status 500"),
        (302, "http://127.0.0.1:9/elsewhere", "status 302"),
        (200, "x" * 70_000, "more than a notice has"),
        (200, "\x00", "answered with n"),
        (200, "[" * 9_000, "answered with n"),
    ],
)
def test_what_is_no_answer_is_said_and_drains_nothing(
    cloud: Cloud, status: int, body: str, says: str
) -> None:
    async def main() -> None:
        seen: list[str] = []

        def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
            seen.append(path)
            return status, body

        with served(answer) as address:
            node = life()
            service = Notices(cloud, node, address=address)
            async with trio.open_nursery() as nursery:
                await nursery.start(service.run)
                await asked(service, 3)
                nursery.cancel_scope.cancel()
        assert says in service.status()["problem"]
        assert node.takes_work
        assert "/elsewhere" not in seen

    trio.run(main)


def test_a_server_that_hangs_costs_one_thread_and_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        monkeypatch.setattr(notices, "ASK_S", 0.1)
        released = threading.Event()
        seen: list[str] = []

        def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
            seen.append(path)
            released.wait(10.0)
            return 200, "FALSE"

        with served(answer) as address:
            service = Notices("gcp", life(), address=address)
            async with trio.open_nursery() as nursery:
                await nursery.start(service.run)
                await asked(service, 3)
                assert "does not answer" in service.status()["problem"]
                assert len(seen) <= 3
                nursery.cancel_scope.cancel()
            released.set()

    trio.run(main)


def test_a_machine_in_no_cloud_is_not_asked_about(tmp_path: Path) -> None:
    config = load(environ={"HOME": "/"}).config
    assert cloud_of(config, tmp_path) is None
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert cloud_of(config, tmp_path) == "aws"
    assert cloud_of(load({"notices": "off"}, environ={"HOME": "/"}).config, tmp_path) is None
    assert cloud_of(load({"notices": "gcp"}, environ={"HOME": "/"}).config, tmp_path) == "gcp"


@pytest.mark.parametrize("body", [b'{"action": []}', b'{"action": {}}'])
def test_an_action_that_is_no_word_is_no_answer(body: bytes) -> None:
    poll = NoticePoll("aws")
    poll.answered_untrusted(200, b"token")
    with pytest.raises(NoticeError):
        poll.answered_untrusted(200, body)


def test_an_event_whose_type_is_no_word_is_passed_over() -> None:
    poll = NoticePoll("azure")
    poll.answered_untrusted(200, b"vm")
    events = b'{"Events": [{"EventType": {}}, {"EventType": "Preempt", "Resources": ["vm"]}]}'
    assert poll.answered_untrusted(200, events) == "Preempt not before a time it does not name"

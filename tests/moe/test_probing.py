"""Who does not answer calls is probed before it counts as down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from moe import keeping
from protocols.experts import roster
from protocols.experts.messages import (
    EXPERTS_SERVICE,
    Alive,
    Kept,
    Message,
    Probe,
    decode_message_untrusted,
    encode_message,
)
from swarm.calls import Answer, Incoming, Refusal
from swarm.endpoints import Endpoint
from tests.moe.keepers import Keeping, keepers, until

pytestmark = pytest.mark.trio


@asynccontextmanager
async def probed(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[Message | Refusal | None]
) -> AsyncIterator[tuple[Keeping, Keeping, list[Message]]]:
    """Have one of two nodes suspect the other, which answers its probes with these (None: not at all), then with `Alive`.

    Yields who suspects, who is suspected, and the probes that came.
    """
    monkeypatch.setattr(keeping, "_PROBE_S", 0.3)
    async with keepers(2) as (_, found):
        for one in found:
            one.keeper.core.room = 0  # nobody hosts, calls or adopts anything meanwhile
        asker, asked = found
        came: list[Message] = []

        async def answer(incoming: Incoming) -> Answer:
            came.append(decode_message_untrusted(incoming.message))
            said = answers[len(came) - 1] if len(came) <= len(answers) else Alive()
            if said is None:
                await trio.sleep_forever()
            if isinstance(said, Refusal):
                raise said
            return Answer(encode_message(said))

        await asked.node.endpoints.open({EXPERTS_SERVICE: Endpoint(answer)})
        asker.keeper.suspect(asked.node.me)
        yield asker, asked, came


@pytest.mark.parametrize(
    "answers",
    [[Alive()], [None, Alive()], [Kept(True), Alive()], [Refusal("busy", "much to do", 1.0)]],
)
def test_who_answers_a_probe_or_the_second_one_is_there(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[Message | Refusal | None]
) -> None:
    async def main() -> None:
        async with probed(monkeypatch, answers) as (asker, asked, came):
            await until(lambda: len(came) == len(answers))
            await trio.sleep(0.7)  # two more probes would have failed by then
            assert came == [Probe()] * len(answers)
            assert asked.node.me not in asker.keeper.core.roster.down

    trio.run(main)


@pytest.mark.parametrize(
    "answer", [None, Kept(True), Refusal("wrong-run", "another run")], ids=["silent", "odd", "gone"]
)
def test_who_answers_neither_of_two_probes_is_down_until_it_answers_a_later_one(
    monkeypatch: pytest.MonkeyPatch, answer: Message | Refusal | None
) -> None:
    async def main() -> None:
        async with probed(monkeypatch, [answer, answer]) as (asker, asked, came):
            core = asker.keeper.core
            await until(lambda: asked.node.me in core.roster.down)
            assert came == [Probe()] * 2
            core.roster.probed_s[asked.node.me] -= roster.PROBE_DOWN_S  # so long ago
            await until(lambda: asked.node.me not in core.roster.down)
            assert came == [Probe()] * 3

    trio.run(main)

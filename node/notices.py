"""Asks the cloud whether this machine will be taken away, and drains when it says so: the shell of `protocols.notices`.

Only in a cloud that the firmware names, or that the settings name. A server that hangs, fails or redirects is told in
`status`, and costs one thread; the node goes on.
"""

from __future__ import annotations

import http.client
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import trio

from node.config import NodeConfig
from node.life import NodeLife
from protocols.notices import (
    ADDRESS,
    ANSWER_BYTES_MAX,
    Cloud,
    NoticeError,
    NoticePoll,
    Question,
    cloud_of_machine,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

ASK_EVERY_S: Final = 5.0
"""Of half a minute's notice this leaves twenty seconds for the drain, and five for the rest."""
ASK_S: Final = 3.0
_DMI: Final = Path("/sys/class/dmi/id")


def cloud_of(config: NodeConfig, dmi: Path = _DMI) -> Cloud | None:
    """Return the cloud to ask, by the settings or, when these leave it open, by the firmware."""
    if config.notices == "off":
        return None
    if config.notices != "auto":
        return config.notices
    return cloud_of_machine(*(_read(dmi / name) for name in (
        "sys_vendor", "product_name", "chassis_asset_tag"
    )))  # fmt: skip


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:  # no such firmware, or not for us
        return ""


class Notices:
    """Polls one cloud. Its object outlives restarts of its task, as all services do.

    Args:
      address: where the metadata server is.
    """

    name = "notices"

    def __init__(self, cloud: Cloud, life: NodeLife, *, address: str = ADDRESS) -> None:
        self._cloud = cloud
        self._life = life
        self._poll = NoticePoll(cloud)
        self._address = address
        self._asking = trio.CapacityLimiter(1)
        """A thread that hangs is not followed by a second one."""
        self._problem = ""
        self._asked = 0
        self._notice: str | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until the cloud has announced something, or until cancelled."""
        task_status.started()
        while self._notice is None:
            await self._ask()
            if self._notice is None and (self._problem or not self._poll.prepares):
                await trio.sleep(ASK_EVERY_S)
        log.warning("notice of %s: %s", self._cloud, self._notice)
        self._life.drain(f"notice of {self._cloud}: {self._notice}")
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None:
        """Nothing is held here."""

    def status(self) -> dict[str, Any]:
        return {
            "cloud": self._cloud,
            "asked": self._asked,
            "notice": self._notice,
            "problem": self._problem or None,
        }

    async def _ask(self) -> None:
        """Ask one question. What goes wrong is noted, and told once."""
        problem = f"the metadata server does not answer within {ASK_S:g} s"
        with trio.move_on_after(ASK_S):
            try:
                status, body = await trio.to_thread.run_sync(
                    _request,
                    self._address,
                    self._poll.question(),
                    limiter=self._asking,
                    abandon_on_cancel=True,  # type: ignore[call-arg]
                )
                self._notice = self._poll.answered_untrusted(status, body)
                problem = ""
            except NoticeError as error:
                problem = str(error)
            except (OSError, http.client.HTTPException) as error:
                problem = f"the metadata server cannot be asked: {error or type(error).__name__}"
        self._asked += 1
        if problem and problem != self._problem:
            log.warning("notices of %s: %s", self._cloud, problem)
        self._problem = problem


def _request(address: str, question: Question) -> tuple[int, bytes]:
    """Ask in a thread. Redirects are not followed, proxies are not used. Raises OSError, HTTPException."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_S)
    try:
        connection.request(question.method, question.path, headers=dict(question.headers))
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX + 1)
    finally:
        connection.close()

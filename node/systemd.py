"""Speak to systemd when it started us: readiness, one line of status, priorities in the journal."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Supervisor:
    """The service manager's notification socket (sd_notify protocol); does nothing when there is none."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")

    def ready(self) -> None:
        """The control socket and the listener are up."""
        self._notify("READY=1")

    def status(self, line: str) -> None:
        """One line for `systemctl status`."""
        self._notify(f"STATUS={line}")

    def stopping(self, deadline_s: float) -> None:
        """We drain; do not kill us before the deadline and a little."""
        self._notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((deadline_s + 5) * 1_000_000)}")

    def alive(self) -> None:
        """Feed WatchdogSec; called by the heartbeat, while the event loop and the threads that compute turn."""
        self._notify("WATCHDOG=1")

    def _notify(self, text: str) -> None:
        if not self._address:
            return
        # An abstract socket is written with @ in the environment and a zero byte in the kernel.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # A supervisor that does not read must not hold up the event loop; the next line says as much.
                sock.setblocking(False)
                sock.sendto(text.encode(), address)
        except OSError as error:
            log.debug("systemd was not told: %s", error)


def stderr_is_journal(environ: Mapping[str, str] | None = None, fd: int = 2) -> bool:
    """True when our stderr goes straight into the journal, which reads `<3>` priorities."""
    environ = os.environ if environ is None else environ
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        info = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(info.st_dev), str(info.st_ino))

"""Ask any node in the world how it is doing, from a machine that runs none.

The light client, the only part of Murmura that imports libp2p, runs in a process of its own; nothing is imported here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from node import exit_codes
from node.errors import ConfigError, NodeError, UnavailableError
from protocols.shown import shown

PEER_S: Final = 20.0
"""For starting an interpreter, importing py-libp2p (1.3 s) and one question across the world."""


def status_of(address: str, *, invite: str | None = None) -> dict[str, Any]:
    """Return a node's public status.

    Args:
      address: a multiaddr that ends in /p2p/<PeerID>.
      invite: of the node's run: shows of a private run what anybody sees of a public one.
    Raises:
      NodeError: nobody answers there, or the address is none.
    """
    # -P: nothing in the folder one happens to be in may take the place of a module.
    command_line = [sys.executable, "-P", "-m", "node.light.client", address]
    if invite is not None:
        command_line.append("--invited")
    # The invite may hold a key, which everybody on this machine could read on a command line: it goes to stdin.
    try:
        done = subprocess.run(
            command_line,
            input=(invite or "").encode(),
            capture_output=True,
            timeout=PEER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"no answer from {address} within {PEER_S:g} s") from error
    if done.returncode != exit_codes.OK:
        raise _failure(address, done.returncode, done.stderr.decode("utf-8", "replace"))
    return _parse(done.stdout)


class Asker:
    """Asks many nodes again and again, through one light client that stays. Use it as a context manager.

    Args:
      addresses: multiaddrs that end in /p2p/<PeerID>.
      invite: of the nodes' run; see `status_of`.
    """

    def __init__(self, addresses: Sequence[str], *, invite: str | None = None) -> None:
        self._addresses = tuple(addresses)
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "node.light.client", "--rounds", "--", *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._say(invite or "")

    def round(self) -> list[dict[str, Any]]:
        """Return a row for each address, in their order: `address`, `status` or None, `problem` or None. Raises NodeError."""
        self._say("")
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            assert self._child.stderr is not None
            said = self._child.stderr.read()
            raise _failure("those nodes", self._child.wait(), said)
        rows = json.loads(line)
        return [
            {"address": address, **row} for address, row in zip(self._addresses, rows, strict=True)
        ]

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{line.strip()}\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and `round` says why

    def __enter__(self) -> Asker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._child:  # closes its pipes and waits
            self._child.kill()


def _failure(address: str, code: int, stderr: str) -> NodeError:
    """Turn what the light client said, a sentence and perhaps a hint, into an error with its exit code."""
    lines = [shown(line.strip()) for line in stderr.splitlines() if line.strip()]
    reason = lines[0] if lines else f"the light client ended with exit code {code}"
    if code == exit_codes.CONFIG:
        return ConfigError(reason, *lines[1:2])
    if code == exit_codes.UNAVAILABLE:
        hint = lines[1] if len(lines) > 1 else "is the address right, and the node up?"
        return UnavailableError(f"no status from {address}: {reason}", hint)
    return NodeError(f"the light client failed: {lines[-1] if lines else reason}")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        report = json.loads(raw)
    except ValueError as error:
        raise NodeError("the light client printed something that is not JSON") from error
    if not isinstance(report, dict):
        raise NodeError("the light client printed something that is not one JSON object")
    return report

"""Ask a node how it is, as a stranger: `python -P -m node.light.client MULTIADDR`.

Prints the public status as one JSON object, or one sentence on stderr saying why there is none. TCP, Noise and Yamux
by py-libp2p; nothing is installed, started or left behind on this machine, and the identity used lives for this one
question. The only module that imports libp2p.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import trio

from node.light import lean_libp2p  # noqa: F401 - must come before libp2p

# isort: split
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from node.clock import unix_s
from node.errors import ConfigError, NodeError, UnavailableError
from protocols.errors import RemoteProtocolError
from protocols.frames import (
    PREFIX_BYTES,
    FrameKind,
    Limits,
    decode_header_untrusted,
    decode_prefix_untrusted,
    encode_frame,
)
from protocols.handshake import (
    decode_error_reply_untrusted,
    decode_welcome_untrusted,
    protocol_of,
    with_proof,
)
from protocols.ids import PeerID
from protocols.invite import Invite, InviteError, check_address, invite_from_text
from protocols.public import STATUS_SERVICE, PublicStatus, public_status_untrusted
from protocols.replies import Hello
from protocols.schema import encode

T = TypeVar("T")

DEADLINE_S: Final = 10.0
"""For everything together; a node on the other side of the world needs about 7 round trips, 2 s."""
AT_ONCE: Final = 32
"""Questions under way: a table of hundreds of nodes must not look like an attack on this machine's network."""
SCHEMA_VERSION: Final = 1
"""Of what is printed. Keys are only ever added."""
_LIMITS: Final = Limits(header_bytes_max=4096, body_bytes_max=0, tensors_max=0)
"""A public status has about 400 bytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and who must answer there."""

    host: str
    port: int
    peer: PeerID


def read_target(address: str) -> Target:
    """Read /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEERID. Raises ConfigError, saying what would be right."""
    try:
        peer = check_address(address)
    except InviteError as error:
        raise ConfigError(str(error)) from error
    match address.split("/"):
        case ["", "ip4" | "ip6" | "dns" | "dns4" | "dns6", host, "tcp", port, "p2p", _] if (
            port.isdecimal() and 0 < int(port) < 65536
        ):
            return Target(host, int(port), peer)
    raise ConfigError(
        "the light client dials TCP addresses like /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo... only",
        "a node prints all its addresses with `murmura id`",
    )


async def ask_status(
    target: Target, deadline_s: float, invite: Invite | None = None
) -> tuple[PublicStatus, float | None]:
    """Return what the node says of itself, and its clock minus ours in seconds, if it says the time.

    Args:
      invite: to the node's run. Its key is proved, never sent.
    Raises:
      UnavailableError: nobody answers, somebody else does, it is not a Murmura node, it refuses, or takes too long.
    """
    try:
        with trio.fail_after(deadline_s):
            tcp = await _step(
                f"nobody answers at {target.host} port {target.port}",
                partial(trio.open_tcp_stream, target.host, target.port),
            )
            async with tcp:
                return await _ask_over(tcp, target, invite)
    except trio.TooSlowError as error:
        raise UnavailableError(f"no answer within {deadline_s:g} s") from error


async def _ask_over(
    tcp: trio.SocketStream, target: Target, invite: Invite | None
) -> tuple[PublicStatus, float | None]:
    peer = ID(bytes(target.peer))
    raw = RawConnection(TrioTCPStream(tcp), True)
    ours = create_new_key_pair()
    noise = NoiseTransport(ours, create_new_noise_key_pair().private_key)
    hello = _hello(
        invite, opener=PeerID(ID.from_pubkey(ours.public_key).to_bytes()), server=target.peer
    )

    async def secure() -> Any:
        await _negotiate(raw, NOISE)
        secured = await noise.secure_outbound(raw, peer)
        await _negotiate(secured, TProtocol(YAMUX))
        return secured

    secured = await _step(
        "what answers there is not a libp2p node that speaks Noise and Yamux", secure
    )
    connection = Yamux(secured, peer)
    outcome: tuple[PublicStatus, float | None] | NodeError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.start)
        await connection.event_started.wait()
        try:
            outcome = await _converse(connection, hello)
        except NodeError as error:
            outcome = error  # raised below: out of the nursery it would come wrapped in a group
        nursery.cancel_scope.cancel()
    if isinstance(outcome, NodeError):
        raise outcome
    return outcome


def _hello(invite: Invite | None, *, opener: PeerID, server: PeerID) -> Hello:
    """Say who we are: a visitor, or one that holds an invite to the run."""
    if invite is None:
        return Hello(role="visitor")
    return with_proof(
        Hello(run=invite.run, role="visitor"),
        invite.run_key or None,
        protocol=protocol_of(STATUS_SERVICE),
        opener=opener,
        server=server,
    )


async def _converse(connection: Yamux, hello: Hello) -> tuple[PublicStatus, float | None]:
    """Open the status stream, say hello and ask in one go, and read both answers."""

    async def open_stream() -> YamuxStream:
        stream = await connection.open_stream()
        await _negotiate(stream, TProtocol(protocol_of(STATUS_SERVICE)))
        return stream

    stream = await _step("it answers, but is not a Murmura node that gives its status", open_stream)
    first = encode_frame(FrameKind.HELLO, encode(hello))
    sent_s = unix_s()

    async def exchange() -> Any:
        await stream.write(first + encode_frame(FrameKind.REQUEST, {}))
        reader = _FrameReader(stream)
        decode_welcome_untrusted(await reader.read(FrameKind.HELLO))
        return await reader.read(FrameKind.REPLY)

    message = await _step("it hung up before it answered", exchange)
    answered_s = unix_s()
    try:
        status = public_status_untrusted(message)
    except RemoteProtocolError as error:
        raise UnavailableError(f"its answer cannot be read: {error.reason}") from error
    if status.time_s is None:
        return status, None
    return status, status.time_s - (sent_s + answered_s) / 2


class _FrameReader:
    """Reads frames without tensors."""

    def __init__(self, stream: YamuxStream) -> None:
        self._stream = stream
        self._pending = bytearray()

    async def read(self, wanted: FrameKind) -> Any:
        """Return the next frame's message. Raises UnavailableError when the node refuses, RemoteProtocolError."""
        prefix = decode_prefix_untrusted(await self._take(PREFIX_BYTES), _LIMITS)
        header = decode_header_untrusted(await self._take(prefix.header_bytes), prefix, _LIMITS)
        if prefix.kind is FrameKind.ERROR:
            reply = decode_error_reply_untrusted(header.message)
            raise UnavailableError(f"it refuses ({reply.code}): {ascii(reply.reason)[1:-1]}")
        if prefix.kind is not wanted:
            raise RemoteProtocolError(f"a {prefix.kind.name} frame where a {wanted.name} was due")
        return header.message

    async def _take(self, count: int) -> bytes:
        while len(self._pending) < count:
            self._pending += await self._stream.read(PREFIX_BYTES + _LIMITS.header_bytes_max)
        taken = bytes(self._pending[:count])
        del self._pending[:count]
        return taken


async def _negotiate(connection: Any, protocol: TProtocol) -> None:
    await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(connection))


async def _step(failure: str, action: Callable[[], Awaitable[T]]) -> T:
    """Do one step on the way to the answer, and say in plain words that it was this one which failed."""
    try:
        return await action()
    except NodeError:
        raise
    except PeerIDMismatchesPubkey as error:
        raise UnavailableError("another peer answers there than the address names") from error
    except RemoteProtocolError as error:
        raise UnavailableError(f"it does not keep to the protocol: {error.reason}") from error
    except (BaseLibp2pError, OSError) as error:
        raise UnavailableError(failure) from error


def _read_invite(text: str) -> Invite:
    try:
        return invite_from_text(text)
    except InviteError as error:
        raise ConfigError(f"--join: {error}") from error


def report(status: PublicStatus, skew_s: float | None) -> dict[str, Any]:
    """Return what is printed."""
    facts = encode(status)
    del facts["time_s"]
    facts["run"] = str(status.run) if status.run else None
    skew = None if skew_s is None else round(skew_s, 3) + 0.0
    return {"schema_version": SCHEMA_VERSION, **facts, "clock_skew_seconds": skew}


def answer_rounds(addresses: list[str], deadline_s: float) -> int:
    """Ask all addresses at once for each line on stdin, and print what came back as one line of JSON. Raises ConfigError."""
    text = sys.stdin.readline().strip()
    invite = _read_invite(text) if text else None
    targets = [read_target(address) for address in addresses]
    while sys.stdin.readline():
        rows = trio.run(_ask_all, targets, deadline_s, invite)
        print(json.dumps(rows), flush=True)  # noqa: T201
    return 0


async def _ask_all(
    targets: list[Target], deadline_s: float, invite: Invite | None
) -> list[dict[str, Any]]:
    """Return a row for each target, in their order: its status, or the problem."""
    rows: list[dict[str, Any]] = [{} for _ in targets]
    limit = trio.CapacityLimiter(AT_ONCE)

    async def ask(index: int, target: Target) -> None:
        async with limit:
            try:
                status, skew_s = await ask_status(target, deadline_s, invite)
                rows[index] = {"status": report(status, skew_s), "problem": None}
            except NodeError as error:
                rows[index] = {"status": None, "problem": error.reason}

    async with trio.open_nursery() as nursery:
        for index, target in enumerate(targets):
            nursery.start_soon(ask, index, target)
    return rows


def main(arguments: list[str]) -> int:
    """Ask and print. The exit code is that of the error (node.exit_codes)."""
    logging.disable(
        logging.CRITICAL
    )  # what libp2p thinks of the peer is not for the person who asks
    parser = argparse.ArgumentParser(prog="node.light.client")
    parser.add_argument("address", metavar="MULTIADDR", nargs="+")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S)
    parser.add_argument("--invited", action="store_true", help="an invite is on stdin")
    parser.add_argument(
        "--rounds",
        action="store_true",
        help="ask all of them once for each line on stdin, of which the first is the invite or empty",
    )
    options = parser.parse_args(arguments)
    if not options.rounds and len(options.address) > 1:
        parser.error("several addresses go with --rounds")
    try:
        if options.rounds:
            return answer_rounds(options.address, options.deadline_s)
        invite = _read_invite(sys.stdin.read()) if options.invited else None
        target = read_target(options.address[0])
        status, skew_s = trio.run(ask_status, target, options.deadline_s, invite)
    except NodeError as error:
        print(str(error), file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(json.dumps(report(status, skew_s)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

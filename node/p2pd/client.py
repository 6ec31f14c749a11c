"""The control client of p2pd: one short-lived unix connection per request, one that stays per stream.

Everything has a deadline; what p2pd answers is bounded and checked, though it is our own child: parts of it (addresses,
error texts, protocol names) were chosen by peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from node.p2pd import sockets
from node.p2pd.addresses import (
    address_to_bytes,
    addresses_from_bytes,
    origin_of,
    unix_address_bytes,
)
from node.p2pd.control_pb2 import (
    ConnectRequest,
    DisconnectRequest,
    PubsubMessage,
    PubsubRequest,
    Request,
    Response,
    StreamHandlerRequest,
    StreamInfo,
    StreamOpenRequest,
)
from node.p2pd.sockets import P2pdStream, UnixStream
from protocols.ids import PeerID
from protocols.ports import Notice, StreamClosedError

MESSAGE_BYTES_MAX: Final = 4 << 20
"""A control message; the largest are lists of a thousand peers (200 kB) and published notices (1 MB in GossipSub)."""

_REASON_CHARACTERS_MAX: Final = 300

M = TypeVar("M", bound=Message)


class P2pdRefusedError(Exception):
    """p2pd is there and answered that it could not. The text is escaped: peers have a say in it."""


class P2pdGoneError(Exception):
    """p2pd did not answer: it is down, restarting or stuck."""


class ControlClient:
    """Speaks to the p2pd behind one control socket. Stateless: it survives any number of restarts."""

    def __init__(self, control_path: Path, *, timeout_s: float = 10.0) -> None:
        """
        Args:
          timeout_s: for everything that p2pd answers by itself, and for dialing a peer.
        """
        self._control_path = control_path
        self._timeout_s = timeout_s

    async def identify(self) -> tuple[PeerID, list[str]]:
        """Return the PeerID p2pd has and the addresses it listens on."""
        response = await self._ask(Request(type=Request.IDENTIFY))
        return PeerID(response.identify.id), addresses_from_bytes(response.identify.addrs)

    async def connect(self, peer: PeerID, addresses: Sequence[str]) -> None:
        """Connect to a peer. Raises ValueError for an address that is none, P2pdRefusedError when nobody answers."""
        raw = [address_to_bytes(address) for address in addresses]
        connect = ConnectRequest(peer=peer, addrs=raw, timeout=self._timeout_for_p2pd())
        await self._ask(Request(type=Request.CONNECT, connect=connect))

    async def disconnect(self, peer: PeerID) -> None:
        await self._ask(Request(type=Request.DISCONNECT, disconnect=DisconnectRequest(peer=peer)))

    async def list_peers(self) -> dict[PeerID, list[str]]:
        """Return the connected peers, each with the addresses it is connected by."""
        response = await self._ask(Request(type=Request.LIST_PEERS))
        return {PeerID(info.id): addresses_from_bytes(info.addrs) for info in response.peers}

    async def register_handler(self, protocol: str, socket_path: Path) -> None:
        """Have p2pd connect to `socket_path` for every stream that a peer opens on `protocol`."""
        handler = StreamHandlerRequest(
            addr=unix_address_bytes(socket_path), proto=[protocol], balanced=False
        )
        await self._ask(Request(type=Request.STREAM_HANDLER, stream_handler=handler))

    async def publish(self, topic: str, data: bytes) -> None:
        pubsub = PubsubRequest(type=PubsubRequest.PUBLISH, topic=topic, data=data)
        await self._ask(Request(type=Request.PUBSUB, pubsub=pubsub))

    async def subscribe(self, topic: str) -> UnixStream:
        """Return a stream of notices, to be read with `read_notice` and closed by the caller."""
        pubsub = PubsubRequest(type=PubsubRequest.SUBSCRIBE, topic=topic)
        stream, _ = await self._begin(Request(type=Request.PUBSUB, pubsub=pubsub))
        return stream

    async def hold(self) -> UnixStream:
        """Return a connection that keeps p2pd alive while it is open.

        p2pd counts the clients that have upgraded to its persistent form, as the dht process does, and ends when the
        last one leaves: without a connection of our own, the death of the dht process would be p2pd's as well.
        """
        stream, _ = await self._begin(Request(type=Request.PERSISTENT_CONN_UPGRADE))
        return stream

    async def open_stream(self, peer: PeerID, protocol: str) -> P2pdStream:
        """Open a stream, connecting first where p2pd knows an address."""
        request = StreamOpenRequest(peer=peer, proto=[protocol], timeout=self._timeout_for_p2pd())
        stream, _ = await self._begin(Request(type=Request.STREAM_OPEN, stream_open=request))
        return P2pdStream(stream.detach(), peer)

    def _timeout_for_p2pd(self) -> int:
        """Seconds, less than ours, so that p2pd gets to say why."""
        return max(1, int(self._timeout_s) - 1)

    async def _ask(self, request: Request) -> Response:
        stream, response = await self._begin(request)
        await stream.aclose()
        return response

    async def _begin(self, request: Request) -> tuple[UnixStream, Response]:
        """Send one request on a connection of its own and return that with the answer."""
        stream: UnixStream | None = None
        try:
            with trio.fail_after(self._timeout_s):
                stream = await sockets.connect(self._control_path)
                await stream.send_all(encode_delimited(request))
                response = await read_delimited(stream, Response)
        except (OSError, StreamClosedError, trio.TooSlowError) as error:
            if stream is not None:
                await stream.aclose()
            raise P2pdGoneError(f"p2pd does not answer: {error or 'no answer in time'}") from error
        except BaseException:
            if stream is not None:
                await stream.aclose()
            raise
        if response.type == Response.ERROR:
            await stream.aclose()
            raise P2pdRefusedError(_one_line(response.error.msg))
        return stream, response


def _one_line(text: str) -> str:
    return ascii(" ".join(text[:_REASON_CHARACTERS_MAX].split()))[1:-1]


async def read_stream_info(stream: UnixStream) -> tuple[PeerID, str, str]:
    """Read who opened a stream, on which protocol and from where, from a connection that p2pd made to us."""
    info = await read_delimited(stream, StreamInfo)
    return PeerID(info.peer), info.proto, origin_of(info.addr)


async def read_notice(stream: UnixStream) -> Notice:
    """Read the next message of a subscription. p2pd has checked its signature."""
    message = await read_delimited(stream, PubsubMessage)
    return Notice(PeerID(getattr(message, "from")), message.data)


def encode_delimited(message: Message) -> bytes:
    """Return the message behind its length as an unsigned varint."""
    body = message.SerializeToString()
    length, prefix = len(body), bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body


async def read_delimited(stream: UnixStream, kind: type[M]) -> M:
    """Read one message and not a byte more: what follows belongs to the stream. Raises StreamClosedError."""
    length = shift = 0
    while True:
        byte = await stream.receive_some(1)
        if not byte:
            raise StreamClosedError("p2pd hung up")
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if length > MESSAGE_BYTES_MAX or shift > 35:
            raise StreamClosedError("p2pd sent a message that is too long")
        if byte[0] < 0x80:
            break
    body = memoryview(bytearray(length))
    await stream.receive_into(body)
    message = kind()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError as error:
        raise StreamClosedError("p2pd sent a message that is not one") from error
    return message

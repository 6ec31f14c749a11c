"""Which run this node belongs to, with which key, and through whom it gets in.

Kept per run in the state folder: the run's canonical bytes (so that a node that was in it needs nobody to explain it
again), the key of a private run, and the addresses that answered lately.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgpack

from node.config import NodeConfig
from node.errors import ConfigError, NodeError
from node.files import write_atomically
from node.modes import info_of
from node.paths import Paths, make_private_dir
from node.runfile import read_run_file
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID, RunID
from protocols.invite import (
    ADDRESSES_MAX,
    RUN_KEY_BYTES,
    Invite,
    InviteError,
    check_address,
    invite_from_text,
)
from protocols.run import RunSpec, run_from_canonical_bytes_untrusted

log = logging.getLogger(__name__)

REMEMBERED_MAX: Final = 64
"""Addresses kept; any one that answers is enough to be back in."""


@dataclass(slots=True)
class Membership:
    """The node's one run."""

    run_id: RunID
    folder: Path
    spec: RunSpec | None
    """None until a peer has sent it."""
    run_key: bytes | None
    """None for a public run."""
    addresses: tuple[str, ...]
    """Where to join: the invite's and the person's own."""
    first: bool
    """This node begins the swarm, so there is nobody to look for."""
    named: frozenset[PeerID] = frozenset()
    """With a run file: the bootstraps, of whom one begins the run when nobody is in it (protocols.founding)."""
    was_with_others: bool = False
    """When this node was last in the run, others were too: they may go on without it."""
    remembered: list[str] = field(default_factory=list)
    """Addresses that answered lately, the latest first."""

    def learn(self, canonical: bytes) -> RunSpec:
        """Check and keep the run a peer sent. Raises RemoteProtocolError when it is another one."""
        self.spec = run_from_canonical_bytes_untrusted(canonical, self.run_id)
        self._keep("run.msgpack", canonical)
        return self.spec

    def remember(self, address: str) -> None:
        """Keep an address that answered, for the next start."""
        if self.remembered[:1] == [address]:
            return
        rest = [known for known in self.remembered if known != address]
        self.remembered = [address, *rest][:REMEMBERED_MAX]
        self._keep("peers.msgpack", bytes(msgpack.packb(self.remembered)))

    def note_members(self, addresses: Iterable[str]) -> None:
        """Keep addresses of members that we have not dialled: those who came to us are a way back, too."""
        new = [address for address in addresses if address not in self.remembered]
        if new and len(self.remembered) < REMEMBERED_MAX:
            self.remembered = [*self.remembered, *new][:REMEMBERED_MAX]
            self._keep("peers.msgpack", bytes(msgpack.packb(self.remembered)))

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file for the next start. A disk that is full now must not keep us out of the swarm."""
        try:
            write_atomically(self.folder / name, data)
        except NodeError as error:
            log.warning("not kept for the next start: %s", error)

    def targets(self, own: PeerID) -> list[str]:
        """Return everybody to dial, each once, ourselves left out."""
        unique = dict.fromkeys((*self.addresses, *self.remembered))
        return [address for address in unique if check_address(address) != own]

    def invite(self, own_addresses: Sequence[str]) -> Invite:
        """Return an invite through us and some of those we know, reachable-looking addresses first."""
        candidates = dict.fromkeys(
            (*sorted(own_addresses, key=_is_local), *self.addresses, *self.remembered)
        )
        abroad = [address for address in candidates if not _is_local(address)]
        chosen = tuple(abroad or candidates)[:ADDRESSES_MAX]
        return Invite(run=self.run_id, addresses=chosen, run_key=self.run_key or b"")


def resolve(
    config: NodeConfig, paths: Paths, me: PeerID | None = None, *, run: RunSpec | None = None
) -> Membership:
    """Work out the run from the settings and what is kept from before. Raises ConfigError.

    Args:
      me: None when nothing is going to be started.
      run: takes the place of the setting `run`, for those who have no file.
    """
    invite = _read_invite(config)
    spec = run or (read_run_file(Path(config.run).expanduser()) if config.run else None)
    if spec is None and invite is None:
        raise ConfigError(
            "no run to take part in",
            "`murmura run --join INVITE` joins one, `murmura run --run FILE` starts one",
        )
    if spec is not None and invite is not None and spec.run_id != invite.run:
        raise ConfigError(
            f"the run file {config.run} is run {spec.run_id.short}, the invite is for run {invite.run.short}",
            "leave one of --run and --join away",
        )
    run_id = spec.run_id if spec is not None else invite.run if invite is not None else None
    assert run_id is not None
    folder = paths.run_dir(run_id)
    make_private_dir(folder)
    if spec is None:
        spec = _kept_spec(folder, run_id)
    else:
        write_atomically(folder / "run.msgpack", spec.canonical_bytes())
    addresses = (*(invite.addresses if invite else ()), *config.bootstrap)
    remembered = [] if config.new_swarm else _kept_addresses(folder)
    others = not config.new_swarm and last_members(spec, folder) - {me}
    if invite is not None and not (addresses or remembered or others or config.new_swarm):
        raise ConfigError(
            "this invite names no address, so it leads to nobody",
            "ask for a fresh one, made while that node has a network, or name a peer with --bootstrap",
        )
    named = config.bootstrap if config.run and not config.new_swarm else ()
    return Membership(
        run_id=run_id,
        folder=folder,
        spec=spec,
        run_key=_key(folder, invite, private=config.private),
        addresses=() if config.new_swarm else addresses,
        first=config.new_swarm or not (addresses or remembered or others),
        named=frozenset(map(check_address, named)),
        was_with_others=bool(others),
        remembered=remembered,
    )


def _read_invite(config: NodeConfig) -> Invite | None:
    if not config.join:
        return None
    try:
        return invite_from_text(config.join)
    except InviteError as error:
        raise ConfigError(
            f"--join: {error}", "ask for a fresh one: `murmura invite` prints it"
        ) from error


def _key(folder: Path, invite: Invite | None, *, private: bool) -> bytes | None:
    """Take the key from the invite, else the one kept, else make one for a run that is to be private."""
    path = folder / "key"
    if invite is not None:
        if invite.run_key:
            write_atomically(path, invite.run_key)
        return invite.run_key or None
    if path.exists():
        key = path.read_bytes()
        if len(key) != RUN_KEY_BYTES:
            raise ConfigError(f"{path} is not a run key", "remove it and join with a fresh invite")
        return key
    if not private:
        return None
    key = secrets.token_bytes(RUN_KEY_BYTES)
    write_atomically(path, key)
    return key


def _kept_spec(folder: Path, run_id: RunID) -> RunSpec | None:
    """Return the run from an earlier start; a damaged copy is fetched again."""
    try:
        return run_from_canonical_bytes_untrusted((folder / "run.msgpack").read_bytes(), run_id)
    except (OSError, RemoteProtocolError):
        return None


def _kept_addresses(folder: Path) -> list[str]:
    """Return remembered addresses; a damaged file costs only the memory."""
    try:
        data = unpack_untrusted((folder / "peers.msgpack").read_bytes())
    except (OSError, RemoteProtocolError):
        return []
    known = data[:REMEMBERED_MAX] if isinstance(data, list) else []
    return [address for address in known if isinstance(address, str) and _is_address(address)]


def last_members(spec: RunSpec | None, folder: Path) -> frozenset[PeerID]:
    """Return with whom this node was in the run when it last left it, as its mode has written it down."""
    return info_of(spec.mode).last_members(folder) if spec is not None else frozenset()


def _is_address(address: str) -> bool:
    try:
        check_address(address)
    except InviteError:
        return False
    return True


def _is_local(address: str) -> bool:
    """Loopback: of use on this machine only."""
    return address.startswith(("/ip4/127.", "/ip6/::1/"))

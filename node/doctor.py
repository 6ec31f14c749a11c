"""Look for what could keep a node on this machine from working: everything at once, not the first thing only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from node.config import Effective, NodeConfig, flag_name
from node.container import cores_available, memory_limit_bytes
from node.errors import ConfigError, NodeError, file_error
from node.files import write_atomically
from node.finding import Finding
from node.forecast import check_fits, forecasts, memory_free_bytes
from node.http.address import parse_address
from node.identity import Identity
from node.limits import raise_descriptor_limit
from node.membership import Membership, resolve
from node.p2pd.addresses import check_can_listen
from node.p2pd.process import find_p2pd
from node.paths import Paths
from node.reachability import (
    connected_addresses,
    dials,
    of_running,
    running_node,
    second_time,
)
from node.runfile import check_data, check_wishes, wishes_of
from protocols.replies import SOFTWARE_VERSION
from protocols.run import RunSpec

DESCRIPTORS_MIN: Final = 2048
"""768 streams of peers, as many towards p2pd, and room."""
MEMORY_MIN_BYTES: Final = 1 << 30
"""An idle node takes about a third of it; training the smallest useful stage the rest."""
DISK_FREE_MIN_BYTES: Final = 1 << 30
_PACKAGES: Final = ("torch", "trio", "hivemind", "libp2p", "cryptography", "msgpack")
_WRITTEN_BYTES: Final = 1 << 20


def examine(effective: Effective) -> Iterator[Finding]:
    """Yield one finding per check. Starts nothing; makes the node's folders, as `murmura run` would."""
    config, paths = effective.config, effective.paths
    yield _try("folders", lambda: f"state in {paths.state_dir}", paths.prepare)
    yield _try("disk", lambda: "takes what is written", lambda: _write_something(paths.state_dir))
    yield _try("processes", lambda: "can be started", _start_something)
    yield _try("identity", lambda: _identity(effective))
    yield _try("transport", lambda: str(find_p2pd()))
    yield _try("torch", _torch)
    yield _versions()
    status = running_node(paths)
    if status is not None:
        yield from of_running(status)  # its ports are taken by itself
    else:
        yield from _ports(config)
    yield _network(config.listen)
    yield _descriptors()
    yield _memory()
    try:
        membership = resolve(config, paths) if config.run or config.join else None
    except NodeError as error:
        membership = None
        yield Finding("run", False, error.reason, error.hint)
    spec = membership.spec if membership is not None else None
    yield _disk(config, paths, spec)
    if membership is not None:
        yield _try("run", lambda: _run(membership, config))
        yield from _of_run(spec, config)
    yield from _peers(config, membership, status)


def _try(name: str, say: Callable[[], str], check: Callable[[], object] = lambda: None) -> Finding:
    try:
        check()
        return Finding(name, True, say())
    except NodeError as error:
        return Finding(name, False, error.reason, error.hint)


def _identity(effective: Effective) -> str:
    path = effective.paths.identity
    if not path.exists():
        return "none yet; the first start makes one"
    return str(Identity.load(path).peer_id)


def _torch() -> str:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("torch is not installed", "run `make setup`")
    return "installed"


def _ports(config: NodeConfig) -> Iterator[Finding]:
    """Try every port that the node would take."""
    wanted = [(f"listen {address}", address, "--listen") for address in config.listen]
    for name in ("http_listen", "transport_metrics_listen"):
        text = getattr(config, name)
        if text:
            address = parse_address(text)
            family = "ip6" if ":" in address.host else "ip4"
            multiaddr = f"/{family}/{address.host}/tcp/{address.port}"
            wanted.append((name, multiaddr, flag_name(name)))
    for name, multiaddr, setting in wanted:
        check = partial(check_can_listen, multiaddr, setting=setting)
        yield _try(name, lambda: "free", check)


def _run(membership: Membership, config: NodeConfig) -> str:
    if membership.spec is not None:
        check_wishes(membership.spec, wishes_of(config))
    return f"{membership.run_id.short}, {'private' if membership.run_key else 'public'}"


def _of_run(spec: RunSpec | None, config: NodeConfig) -> Iterator[Finding]:
    """Forecast what the run takes of this machine's memory, and look for its text."""
    if spec is None:
        yield Finding("data", True, "not known before the run is fetched")
        return
    room = memory_free_bytes(config)
    yield _try("memory for the run", lambda: check_fits(spec, config, room_bytes=room))
    yield _try("data", lambda: check_data(spec, config.data))


def _peers(
    config: NodeConfig, membership: Membership | None, status: dict[str, Any] | None
) -> Iterator[Finding]:
    """Dial those of the invite and those remembered, then ask one that answers, or one that the node is connected to."""
    answering = connected_addresses(status) if status is not None else []
    if membership is not None:
        for address, finding in dials(
            list(dict.fromkeys([*membership.addresses, *membership.remembered]))
        ):
            yield finding
            if finding.ok and address not in answering:
                answering.append(address)
    known_skew = status is not None and status["network"]["clock_skew_seconds"] is not None
    yield from second_time(answering, invite=config.join or None, compare_clock=not known_skew)


def _versions() -> Finding:
    """Name the versions that matter, and miss what is not installed."""
    found, missing = [f"murmura {SOFTWARE_VERSION}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "versions", False, f"not installed: {', '.join(missing)}", "run `make setup`"
        )
    return Finding("versions", True, ", ".join(found))


def _disk(config: NodeConfig, paths: Paths, spec: RunSpec | None) -> Finding:
    """Compare the room on the disk with what checkpoints will take: of each part one more than are kept, while writing."""
    free = shutil.disk_usage(paths.state_dir).free
    largest = max((part.memory_bytes for part in forecasts(spec)), default=0) if spec else 0
    wanted = max(DISK_FREE_MIN_BYTES, (config.checkpoints_kept + 1) * largest)
    hint = f"make room, keep fewer with `checkpoints_kept`, or use another disk with --state-dir; {wanted >> 20} MB are wanted"
    return Finding("disk room", free >= wanted, f"{free >> 20} MB are free", hint)


def _network(listen: Sequence[str]) -> Finding:
    """Ask the kernel for a way out; no packet is sent."""
    if all(address.startswith(("/ip4/127.", "/ip6/::1/")) for address in listen):
        return Finding("network", True, "this machine only")
    problem = ""
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                return Finding("network", True, f"reached from {probe.getsockname()[0]}")
        except OSError as error:
            problem = problem or str(error.strerror)
    hint = "without one nobody can join through this node's invite, and it can join nobody"
    return Finding("network", False, problem, hint)


def _write_something(folder: Path) -> None:
    """Write as much as an identity and a run need, and take it away again."""
    path = folder / ".doctor"
    try:
        write_atomically(path, bytes(_WRITTEN_BYTES))
    finally:
        path.unlink(missing_ok=True)


def _start_something() -> None:
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True, capture_output=True)
    except OSError as error:
        raise file_error(error, "no process can be started") from error


def _descriptors() -> Finding:
    limit = raise_descriptor_limit()
    hint = "raise it: `ulimit -Hn`, LimitNOFILE= in a unit"
    if limit < DESCRIPTORS_MIN:
        return Finding("open files", False, f"at most {limit}", hint)
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        opened += [os.dup(opened[0]) for _ in range(DESCRIPTORS_MIN - 1)]
    except OSError as error:
        return Finding("open files", False, f"after {len(opened)}: {error.strerror}", hint)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return Finding("open files", True, f"at most {limit}")


def _memory() -> Finding:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = min(int(line.split()[1]) << 10, memory_limit_bytes() or math.inf)
            detail = f"{int(available) >> 20} MB available, {cores_available()} processors"
            return Finding("memory", available >= MEMORY_MIN_BYTES, detail, "close other programs")
    return Finding("memory", True, "unknown")

"""A volunteer's own settings: flag > environment > file > default, each value with its origin.

One flat list of keys. The key `upload_mbit_s` is the flag `--upload-mbit-s`, the variable `MURMURA_UPLOAD_MBIT_S` and
the line `upload_mbit_s = 5.0` of the file. What all peers of a run must agree on is not here but in the run file.
Environment and settings file are read here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from node.container import cores_available
from node.errors import ConfigError
from node.files import read_toml
from node.http.address import parse_address
from node.paths import Paths, default_config_file, default_runtime_dir, default_state_dir
from protocols.addresses import address_problem
from protocols.invite import dial_problem
from protocols.pausing import hours_from_text
from protocols.schema import Range, SchemaError, Size, decode

ENV_PREFIX: Final = "MURMURA_"
ENV_CONFIG_FILE: Final = "MURMURA_CONFIG"
_FILE_BYTES_MAX: Final = 1 << 20
_SERVICE_LINK: Final = re.compile(
    r"(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""Behind MURMURA: what a cluster sets in every container for a service of that name, or one that begins with it."""
SECRET: Final = {"secret": True}
"""Field metadata: shown as set or not set, never as a value."""

Multiaddr = Annotated[str, Size(1, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What one volunteer wants of one node. Nothing here changes what is trained."""

    run: Annotated[str, Size(0, 4096)] = ""
    """Path of a run file: this node starts that run, or takes part in it when an invite or `bootstrap` names peers."""
    join: Annotated[str, Size(0, 4096)] = field(default="", metadata=SECRET)
    """An invite. It may hold the key of a private run, so it is never printed back."""
    new_swarm: bool = False
    """Start alone even though `bootstrap` or remembered peers exist."""
    private: bool = False
    """Starting a run: only who holds an invite with its key may take part."""
    data: Annotated[str, Size(0, 4096)] = ""
    """Where the run's text is on this machine; empty takes the place the run file names."""
    data_folders: Annotated[tuple[Annotated[str, Size(1, 4096)], ...], Size(0, 16)] = ()
    """Folders in which a run that was fetched from peers may name its text. Elsewhere it could probe files of one's own."""
    host: bool = True
    """Offer to host a stage."""
    train: bool = True
    """Offer to draw microbatches and drive them through the stages."""
    stage: Annotated[int, Range(0, 1023)] | None = None
    """Host this stage and no other; unset lets the node choose where it is needed."""
    listen: Annotated[tuple[Multiaddr, ...], Size(1, 16)] = ("/ip4/0.0.0.0/tcp/0",)
    """Port 0 takes any free port: fine behind NAT; fix one to open it in a firewall."""
    announce: Annotated[tuple[Multiaddr, ...], Size(0, 16)] = ()
    """Addresses to tell others instead of those found: for port forwarding."""
    bootstrap: Annotated[tuple[Multiaddr, ...], Size(0, 32)] = ()
    """More addresses to join through, besides the invite's."""
    threads: Annotated[int, Range(1, 1024)] | None = None
    """Compute threads; unset takes all cores of the machine, or of the container, but one, and at least one."""
    nice: Annotated[int, Range(0, 19)] = 5
    """Volunteers' own programs come first; 0 asks for an equal share."""
    memory_max_mb: Annotated[int, Range(256, 1 << 24)] | None = None
    """Over this (the node and its children together) the node takes no new work and says so; unset takes a container's limit."""
    upload_mbit_s: Annotated[float, Range(0.1, 1e6)] | None = None
    """Unset is unlimited. In Mbit/s because that is what internet contracts state."""
    download_mbit_s: Annotated[float, Range(0.1, 1e6)] | None = None
    """Unset is unlimited."""
    isolated_after_s: Annotated[float, Range(1.0, 3600.0)] = 30.0
    """Seconds without a peer before the node calls itself isolated and dials everybody it knows."""
    drain_s: Annotated[float, Range(1.0, 3600.0)] = 20.0
    """Spot machines and Kubernetes give 25 to 30 s in all; 5 s stay for saving and leaving."""
    notices: Literal["auto", "off", "aws", "gcp", "azure"] = "auto"
    """Whose notices of a machine's end to ask for: auto asks the cloud that the firmware names, if any."""
    notices_address: Annotated[str, Size(0, 256)] = ""
    """Where to ask. Empty: the metadata server of clouds, http://169.254.169.254."""
    checkpoints: bool = True
    """Write what this node holds to disk, and go on from it after a restart."""
    checkpoint_every_s: Annotated[float, Range(0.1, 86_400.0)] = 60.0
    """At least so many seconds between checkpoints, less than twice as many: see swarm.state.cadence."""
    checkpoint_every_steps: Annotated[int, Range(1, 2**30)] | None = None
    """Steps between checkpoints instead; of use only when all nodes of a run set the same."""
    checkpoints_kept: Annotated[int, Range(1, 1000)] = 3
    """Of each part. With fewer than 2 there is none to fall back on."""
    checkpoints_kept_days: Annotated[float, Range(0.01, 36_500.0)] = 30.0
    """Older ones are deleted, but for the newest of all."""
    schedule_hours: Annotated[tuple[Annotated[str, Size(3, 32)], ...], Size(0, 16)] = ()
    """Hours of this machine's clock in which the node may train, e.g. 22:00-07:00; outside of them it is paused."""
    schedule_idle_load: Annotated[float, Range(0.0, 1024.0)] | None = None
    """Pause while other programs keep more than so many cores busy."""
    http_listen: Annotated[str, Size(0, 64)] = ""
    """A port of loopback, or an IP address and a port: metrics, health and a page. Empty: none; it costs 13 MB."""
    http_hosts: Annotated[tuple[Annotated[str, Size(1, 255)], ...], Size(0, 16)] = ()
    """Names under which the page may be asked for, besides localhost and IP addresses: others are somebody's rebinding."""
    transport_metrics_listen: Annotated[str, Size(0, 64)] = ""
    """p2pd's own metrics, on loopback only: p2pd serves its profiler at the same address."""
    state_dir: Annotated[str, Size(0, 4096)] = ""
    """Identity, remembered peers, run state. Empty: $XDG_STATE_HOME/murmura."""
    runtime_dir: Annotated[str, Size(0, 4096)] = ""
    """The control socket. Empty: $XDG_RUNTIME_DIR/murmura, or inside a chosen state folder."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        for index, address in enumerate(self.bootstrap):
            problem = dial_problem(address)
            if problem is not None:
                raise SchemaError(f"bootstrap[{index}]", problem)
        for name in ("listen", "announce"):
            for index, address in enumerate(getattr(self, name)):
                problem = address_problem(address)
                if problem is not None:
                    raise SchemaError(
                        f"{name}[{index}]",
                        f"must be a multiaddr like /ip4/0.0.0.0/tcp/4001: {problem}",
                    )

        if self.notices_address and not self.notices_address.startswith("http://"):
            raise SchemaError("notices_address", "must be like http://169.254.169.254")
        for index, text in enumerate(self.schedule_hours):
            try:
                hours_from_text(text)
            except ValueError as error:
                raise SchemaError(f"schedule_hours[{index}]", str(error)) from error
        for name in ("http_listen", "transport_metrics_listen"):
            _check_http_address(name, getattr(self, name))

    @property
    def compute_threads(self) -> int:
        """`threads`, or all cores that this machine or container gives us but one."""
        return self.threads or max(1, cores_available() - 1)


def _check_http_address(name: str, text: str) -> None:
    if not text:
        return
    try:
        address = parse_address(text)
    except ValueError as error:
        raise SchemaError(name, str(error)) from error
    if name == "transport_metrics_listen" and not address.is_loopback:
        raise SchemaError(name, "must be an address of loopback: p2pd serves its profiler there")
    if name == "transport_metrics_listen" and not address.port:
        raise SchemaError(name, "must name a port: p2pd does not say which one it took")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from."""

    key: str
    value: Any
    origin: str
    """`default`, `file PATH`, `env NAME` or `flag --name`."""
    secret: bool


@dataclass(frozen=True, slots=True)
class Effective:
    """All settings as they apply, ready to be shown."""

    config: NodeConfig
    paths: Paths
    settings: tuple[Setting, ...]


def flag_name(key: str) -> str:
    """`upload_mbit_s` -> `--upload-mbit-s`."""
    return "--" + key.replace("_", "-")


def env_name(key: str) -> str:
    """`upload_mbit_s` -> `MURMURA_UPLOAD_MBIT_S`."""
    return ENV_PREFIX + key.upper()


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> Effective:
    """Gather all settings and check them together.

    Args:
      flags: key -> plain value, only those that were given.
      config_file: read this one and insist that it exists; else $MURMURA_CONFIG (same), else the XDG one if it is there.
    Raises:
      ConfigError: names the key, where the value came from, what is wrong and what would be right.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in (
        *_file_layer(environ, config_file),
        *_env_layers(environ),
        *((f"flag {flag_name(key)}", {key: value}) for key, value in (flags or {}).items()),
    ):
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    try:
        config = decode(NodeConfig, values)
    except SchemaError as error:
        key = error.path.partition("[")[0].partition(".")[0]
        origin = origins.get(key, "the settings")
        raise ConfigError(
            f"{origin}: {error}", "`murmura config show` lists every key and its value"
        ) from error
    return Effective(config, _paths(config, environ), _settings(config, origins))


def _file_layer(
    environ: Mapping[str, str], chosen: Path | None
) -> Iterable[tuple[str, dict[str, Any]]]:
    named = chosen or (Path(environ[ENV_CONFIG_FILE]) if environ.get(ENV_CONFIG_FILE) else None)
    path = named or default_config_file(environ)
    if named is None and not path.exists():
        return
    data = read_toml(path, "the settings file", bytes_max=_FILE_BYTES_MAX)
    for key in data:
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}", _suggest(key, KEYS))
    yield f"file {path}", data


def _env_layers(environ: Mapping[str, str]) -> Iterable[tuple[str, dict[str, Any]]]:
    """One layer per variable; a misspelt one must not be ignored in silence."""
    names = {env_name(key): key for key in KEYS}
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name == ENV_CONFIG_FILE:
            continue
        if name not in names and _SERVICE_LINK.fullmatch(name.removeprefix(ENV_PREFIX[:-1])):
            continue
        if name not in names:
            # Compared without the prefix, which would make everything look alike.
            wanted = _suggest(
                name.removeprefix(ENV_PREFIX), [*map(str.upper, KEYS), "CONFIG"], ENV_PREFIX
            )
            raise ConfigError(f"unknown environment variable {name}", wanted)
        key = names[name]
        yield f"env {name}", {key: parse_text(key, text, origin=f"env {name}")}


def parse_text(key: str, text: str, *, origin: str) -> Any:
    """Turn the text of a variable into the plain value its key wants. Lists are separated by commas."""
    kind = kind_of(key)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if kind is tuple:
            return [item.strip() for item in text.split(",") if item.strip()]
        return kind(text)
    except (KeyError, ValueError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{origin}: {key} must be {wanted}, not {text[:40]!r}") from error


def kind_of(key: str) -> type:
    """The plain type of a setting: bool, int, float, str or tuple."""
    annotation = typing.get_type_hints(NodeConfig)[key]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(
            item for item in typing.get_args(annotation) if item is not types.NoneType
        )
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return str
    return typing.cast("type", origin or annotation)


def _paths(config: NodeConfig, environ: Mapping[str, str]) -> Paths:
    chosen = bool(config.state_dir)
    state = Path(config.state_dir).expanduser().absolute() if chosen else default_state_dir(environ)
    if config.runtime_dir:
        return Paths(state, Path(config.runtime_dir).expanduser().absolute())
    return Paths(state, default_runtime_dir(environ, state, state_dir_chosen=chosen))


def _settings(config: NodeConfig, origins: Mapping[str, str]) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            key=item.name,
            value=getattr(config, item.name),
            origin=origins.get(item.name, "default"),
            secret=bool(item.metadata.get("secret")),
        )
        for item in dataclasses.fields(NodeConfig)
    )


def _suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"known: {', '.join(prefix + name for name in known)}"


KEYS: Final = tuple(item.name for item in dataclasses.fields(NodeConfig))
"""Every setting, in the order they are shown."""

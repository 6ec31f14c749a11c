"""Where a node keeps things, by the XDG rules, systemd's folders first when it runs as a unit.

state_dir/identity.key       Ed25519 identity, 0600
state_dir/lock               held by the running daemon
state_dir/peers.msgpack      peers that answered lately, for joining again
state_dir/runs/<run id>/     run.msgpack (canonical bytes), key (private runs), what the training services keep
runtime_dir/control.sock     the control socket, 0600
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.errors import ConfigError, PermissionRefusedError, file_error
from protocols.ids import RunID

APPLICATION: Final = "murmura"
SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path has 108 bytes on Linux, one of them the closing zero."""
_SYSTEM_CONFIG: Final = Path("/etc") / APPLICATION / "config.toml"


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one node. Making them is `prepare`; naming them costs nothing."""

    state_dir: Path
    runtime_dir: Path

    @property
    def identity(self) -> Path:
        return self.state_dir / "identity.key"

    @property
    def lock(self) -> Path:
        return self.state_dir / "lock"

    @property
    def socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    def run_dir(self, run: RunID) -> Path:
        return self.state_dir / "runs" / str(run)

    def prepare(self) -> None:
        """Create both folders, 0700. Raises ConfigError or PermissionRefusedError with what to do."""
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"the control socket's path {self.socket} is longer than {SOCKET_PATH_BYTES_MAX} bytes",
                "choose a shorter folder with --runtime-dir",
            )
        make_private_dir(self.state_dir, "--state-dir")
        make_private_dir(self.runtime_dir, "--runtime-dir")


def make_private_dir(path: Path, flag: str = "--state-dir") -> None:
    """Make `path` (and its parents) and check that it is ours, writable, and closed to others."""
    hint = f"make it yours (chown, chmod 700) or choose another folder with {flag}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except FileExistsError as error:
        raise ConfigError(f"{path} is a file where a folder is needed", hint) from error
    except OSError as error:
        raise file_error(error, f"cannot create {path}", hint) from error
    if info.st_uid != os.geteuid():
        raise PermissionRefusedError(f"{path} belongs to another user (uid {info.st_uid})", hint)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionRefusedError(f"cannot write in {path}", hint)
    if stat.S_IMODE(info.st_mode) & 0o022:
        # A folder that others write in, such as /tmp, is in use for something else: closing it would break that.
        raise PermissionRefusedError(f"{path} can be written by other users", hint)
    if stat.S_IMODE(info.st_mode) & 0o077:
        # The folder is ours; closing it is what the person would be told to do.
        path.chmod(0o700)


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` of a systemd unit, else `$XDG_STATE_HOME/murmura`."""
    if unit := environ.get("STATE_DIRECTORY"):
        return Path(unit.split(":")[0])
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / APPLICATION


def default_runtime_dir(
    environ: Mapping[str, str], state_dir: Path, *, state_dir_chosen: bool
) -> Path:
    """`$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR/murmura`, else a folder in the state folder.

    A chosen state folder takes its socket along, so that two nodes of one user never meet on one socket.
    """
    if unit := environ.get("RUNTIME_DIRECTORY"):
        return Path(unit.split(":")[0])
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if state_dir_chosen or not xdg.startswith("/"):
        return state_dir / "run"
    return Path(xdg) / APPLICATION


def default_config_file(environ: Mapping[str, str]) -> Path:
    """The volunteer's own file, or the machine's when there is no own one, as for who has no home."""
    if not (_names_folder(environ, "XDG_CONFIG_HOME") or _names_folder(environ, "HOME")):
        return _SYSTEM_CONFIG
    own = _xdg(environ, "XDG_CONFIG_HOME", ".config") / APPLICATION / "config.toml"
    return _SYSTEM_CONFIG if not own.exists() and _SYSTEM_CONFIG.exists() else own


def _names_folder(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").startswith("/")


def _xdg(environ: Mapping[str, str], name: str, fallback: str) -> Path:
    """Relative values are invalid by the XDG specification and are ignored."""
    if _names_folder(environ, name):
        return Path(environ[name])
    if not _names_folder(environ, "HOME"):
        raise ConfigError(
            f"neither {name} nor HOME names a folder",
            "set one of them, or choose a folder with --state-dir",
        )
    return Path(environ["HOME"]) / fallback

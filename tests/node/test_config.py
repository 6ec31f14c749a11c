"""A volunteer's settings: precedence, origins, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.config import KEYS, env_name, kind_of, load
from node.errors import ConfigError
from node.exit_codes import CONFIG

HOME = {"HOME": "/home/somebody"}
PEER = "12D3KooWBXu3uGPMkjjxViK6autSnFH5QaKJgTwW8CaSxYSD6yYL"


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "nice = 1\nthreads = 2\ndrain_s = 3.0\n")
    environ = {**HOME, "MURMURA_THREADS": "4", "MURMURA_DRAIN_S": "5"}
    loaded = load({"drain_s": 6.0}, environ=environ, config_file=path)
    values = {item.key: (item.value, item.origin) for item in loaded.settings}
    assert values["nice"] == (1, f"file {path}")
    assert values["threads"] == (4, "env MURMURA_THREADS")
    assert values["drain_s"] == (6.0, "flag --drain-s")
    assert values["host"] == (True, "default")


def test_every_setting_can_come_from_the_environment() -> None:
    samples: dict[type, str] = {bool: "true", int: "1", float: "1.5", str: "x", tuple: ""}
    special = {"log_level": "debug", "log_format": "json", "memory_max_mb": "512"}
    special |= {"listen": "/ip4/127.0.0.1/tcp/0"}
    special |= {"http_listen": "4002", "transport_metrics_listen": "127.0.0.1:4003"}
    special |= {"schedule_hours": "22:00-07:00", "notices": "gcp", "notices_address": "http://x"}
    for key in KEYS:
        text = special.get(key, samples[kind_of(key)])
        loaded = load(environ={**HOME, env_name(key): text})
        assert {item.key: item.origin for item in loaded.settings}[key] == f"env {env_name(key)}"


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    environ = {**HOME, "MURMURA_LISTEN": "/ip4/0.0.0.0/tcp/4001, /ip6/::/tcp/4001"}
    assert load(environ=environ).config.listen == ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nise = 3", "unknown key 'nise'\n  did you mean nice"),
        ("threads = 'two'", "threads: must be a whole number, not text"),
        ("threads = 0", "threads: must be 1 to 1024, not 0"),
        ("drain_s = -1", "drain_s: must be 1.0 to 3600.0"),
        ("log_format = 'xml'", "'text' or 'json'"),
        ("schedule_hours = ['9-25']", "schedule_hours[0]: must be hours like 22:00-07:00"),
        ("listen = ['0.0.0.0:4001']", "listen[0]: must be a multiaddr"),
        ("listen = ['/ip4/0.0.0.0/tcp/80000']", "is no port"),
        ("announce = ['/ip4/0.0.0.300/tcp/80']", "no IPv4 address"),
        ("bootstrap = ['/ip4/1.2.3.4/tcp/1']", "bootstrap[0]: an address must end in /p2p"),
        ("host = 1", "host: must be true or false"),
        ("host = ", "is not valid TOML"),
    ],
)
def test_a_wrong_line_names_file_key_and_cure(tmp_path: Path, text: str, says: str) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(environ=HOME, config_file=path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert caught.value.exit_code == CONFIG


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"MURMURA_THREDS": "2"}, "MURMURA_THREDS\n  did you mean MURMURA_THREADS"),
        ({"MURMURA_XYZZY": "2"}, "unknown environment variable MURMURA_XYZZY\n  known:"),
        ({"MURMURA_THREADS": "two"}, "env MURMURA_THREADS: threads must be a whole number"),
        ({"MURMURA_HOST": "maybe"}, "env MURMURA_HOST: host must be true or false"),
        ({"MURMURA_NICE": "20"}, "env MURMURA_NICE: nice: must be 0 to 19"),
        (
            {"MURMURA_CONFIG": "/nowhere/config.toml"},
            "cannot read the settings file /nowhere/config.toml",
        ),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={**HOME, **environ})
    assert says in str(caught.value)


def test_a_wrong_flag_is_named() -> None:
    flags: dict[str, Any] = {"threads": 0}
    with pytest.raises(ConfigError, match="flag --threads: threads: must be 1 to 1024"):
        load(flags, environ=HOME)


def test_an_invite_is_kept_secret_in_what_is_shown() -> None:
    (join,) = [item for item in load({"join": "murmura1abc"}, environ=HOME).settings if item.secret]
    assert join.key == "join"


def test_state_and_socket_follow_the_xdg_folders() -> None:
    environ = {**HOME, "XDG_STATE_HOME": "/state", "XDG_RUNTIME_DIR": "/run/user/7"}
    paths = load(environ=environ).paths
    assert paths.state_dir == Path("/state/murmura")
    assert paths.socket == Path("/run/user/7/murmura/control.sock")


def test_a_unit_of_systemd_gets_the_folders_systemd_made() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/murmura", "RUNTIME_DIRECTORY": "/run/murmura"}
    paths = load(environ=environ | HOME).paths
    assert paths.state_dir == Path("/var/lib/murmura")
    assert paths.runtime_dir == Path("/run/murmura")


def test_a_chosen_state_folder_takes_its_socket_along() -> None:
    """Two nodes of one user must not meet on one socket."""
    environ = {**HOME, "XDG_RUNTIME_DIR": "/run/user/7"}
    paths = load({"state_dir": "/data/two"}, environ=environ).paths
    assert paths.socket == Path("/data/two/run/control.sock")


def test_without_a_home_the_person_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match="--state-dir"):
        load(environ={})


def test_a_settings_file_in_its_usual_place_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "murmura").mkdir()
    settings_file(tmp_path / "murmura", "nice = 9")
    assert load(environ={**HOME, "XDG_CONFIG_HOME": str(tmp_path)}).config.nice == 9


@pytest.mark.parametrize(
    "name",
    [
        "MURMURA_PORT",
        "MURMURA_SERVICE_HOST",
        "MURMURA_SERVICE_PORT",
        "MURMURA_SERVICE_PORT_P2P",
        "MURMURA_PORT_4001_TCP",
        "MURMURA_PORT_4001_TCP_ADDR",
        "MURMURA_PORT_4001_UDP_PROTO",
        "MURMURA_SEED_SERVICE_HOST",
        "MURMURA_SEED_PORT_4001_TCP_PORT",
    ],
)
def test_what_a_cluster_sets_for_a_service_of_our_name_is_passed_over(name: str) -> None:
    assert load(environ=HOME | {name: "tcp://10.0.0.1:4001"}).config == load(environ=HOME).config


@pytest.mark.parametrize("name", ["MURMURA_PORTS", "MURMURA_SERVICE", "MURMURA_PORT_4001"])
def test_what_only_looks_like_that_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(environ=HOME | {name: "1"})


def test_without_a_home_the_folders_that_are_named_are_enough(tmp_path: Path) -> None:
    """Service managers set none, and `env -i` clears it."""
    state = tmp_path / "state"
    assert load({"state_dir": str(state)}, environ={}).paths.state_dir == state
    unit = {"STATE_DIRECTORY": str(state), "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    paths = load(environ=unit).paths
    assert (paths.state_dir, paths.runtime_dir) == (state, tmp_path / "run")


def test_without_a_home_and_without_a_folder_the_person_is_told_what_to_name() -> None:
    with pytest.raises(ConfigError, match="--state-dir"):
        load(environ={})

"""Where a person may ask the node to listen for HTTP."""

from __future__ import annotations

import pytest

from node.config import load
from node.errors import ConfigError
from node.http.address import HttpAddress, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("4002", "127.0.0.1", 4002, True),
        (":4002", "127.0.0.1", 4002, True),
        ("0", "127.0.0.1", 0, True),
        ("127.0.0.1:4002", "127.0.0.1", 4002, True),
        ("[::1]:4002", "::1", 4002, True),
        ("10.1.2.3:4002", "10.1.2.3", 4002, False),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
    ],
)
def test_a_port_is_of_loopback_and_an_address_is_as_written(
    text: str, host: str, port: int, loopback: bool
) -> None:
    address = parse_address(text)
    assert address == HttpAddress(host, port)
    assert address.is_loopback == loopback
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "http", "localhost:4002", "::1:4002", "1.2.3.4:", "1.2.3.4:70000", "[1.2.3.4]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a port"):
        parse_address(text)


def test_the_settings_say_which_value_is_wrong() -> None:
    with pytest.raises(ConfigError) as wrong:
        load({"http_listen": "localhost:1"}, environ={})
    assert wrong.value.reason.startswith("flag --http-listen: http_listen: must be a port")
    with pytest.raises(ConfigError) as exposed:
        load({"transport_metrics_listen": "0.0.0.0:4003"}, environ={})
    assert "profiler" in exposed.value.reason

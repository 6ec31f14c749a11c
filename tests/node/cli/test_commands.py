"""Commands against a daemon's control server with fixed answers: output, exit codes, errors."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node import exit_codes
from node.cli.entry import COMMANDS, run
from node.control.server import ControlServer, Params, listen
from node.errors import ControlError
from tests.node.cli.samples import PEER, STATUS
from tests.node.runs import sha256_of_text, write_run

pytestmark = pytest.mark.trio

INVITE = {
    "schema_version": 1,
    "invite": "murmura1abc",
    "run_id": "ab" * 32,
    "addresses": [f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"],
    "secret": True,
}


class FixedDaemon:
    """Answers like a daemon, with what the test put in; runs in a thread, since the client blocks."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder
        self.answers: dict[str, Any] = {
            "status": STATUS,
            "id": {"schema_version": 1, "peer_id": PEER, "addresses": ["/ip4/1.2.3.4/tcp/1"]},
            "invite": INVITE,
            "peers": {"schema_version": 1, "peers": [{"peer_id": PEER, "faults": 0, "stage": 1}]},
            "drain": {"deadline_seconds": 20.0},
        }
        self.draining: list[dict[str, Any]] = []
        """What `status` answers once `drain` was asked for; after the last one the daemon is gone."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> FixedDaemon:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # it has left already
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        (self.state_dir / "run").mkdir(parents=True)
        listener = listen(self.state_dir / "run" / "control.sock")
        handlers = {name: self._handler(name) for name in (*self.answers, "export")}
        with trio.CancelScope() as self._scope:
            self._ready.set()
            await ControlServer(handlers).serve(listener)

    def _handler(self, name: str) -> Any:
        async def answer(params: Params) -> Any:
            self.asked.append((name, dict(params)))
            if name not in self.answers:
                raise ControlError("not-now", "this node has no model yet", "wait until it serves")
            if name == "status" and self.asked[0][0] == "drain":
                if self.draining:
                    return self.draining.pop(0)
                self._scope.cancel()
                await trio.sleep_forever()
            return self.answers[name]

        return answer


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FixedDaemon]:
    with FixedDaemon(tmp_path / "node") as fixed:
        yield fixed


def ask(daemon: FixedDaemon, *arguments: str) -> int:
    return run([*arguments, "--state-dir", str(daemon.state_dir)])


def test_status_of_an_unhealthy_node_exits_4(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "status") == exit_codes.UNHEALTHY
    assert "problem    isolated" in capsys.readouterr().out


def test_status_of_a_healthy_node_exits_0(daemon: FixedDaemon) -> None:
    daemon.answers["status"] = {**copy.deepcopy(STATUS), "healthy": True, "unhealthy_reasons": []}
    assert ask(daemon, "status") == exit_codes.OK


def test_json_is_one_object_on_stdout_and_nothing_else(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "id", "peers", "invite"):
        ask(daemon, command, "--json")
        printed = capsys.readouterr()
        assert json.loads(printed.out) == daemon.answers[command]
        assert printed.err == ""


def test_the_invite_of_a_private_run_comes_with_a_warning_beside_it(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "invite") == exit_codes.OK
    printed = capsys.readouterr()
    assert printed.out == "murmura1abc\n"
    assert "like a password" in printed.err
    assert "this machine only" in printed.err or "loopback" in printed.err


def test_peers_are_a_table(daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(daemon, "peers") == exit_codes.OK
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["peer_id", "faults", "stage"]
    assert row.split() == [PEER, "0", "1"]


def test_drain_waits_until_the_node_is_gone(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "drain", "--deadline", "5") == exit_codes.OK
    assert daemon.asked[0] == ("drain", {"deadline_s": 5.0})
    assert "left after" in capsys.readouterr().out


def draining(**pipeline: Any) -> dict[str, Any]:
    report = copy.deepcopy(STATUS)
    report["life"]["state"] = "draining"
    report["services"]["pipeline"] |= {"member": True, "asked_to_stay": False, **pipeline}
    return report


def test_drain_says_what_it_waits_for_each_thing_once(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.draining = [
        draining(),
        *[draining(waiting_for=f"{count} microbatches") for count in (9, 8, 7)],
        *3 * [draining(asked_to_stay=True)],
        draining(member=False),
    ]
    assert ask(daemon, "drain") == exit_codes.OK
    first, flight, state = capsys.readouterr().err.splitlines()
    assert first == "draining: waiting for the members to let this node go (at most 20 s)"
    assert "and these for 9 microbatches" in flight
    assert "nobody else holds the state of stage 1; the others cannot go on" in state
    assert "(at most " in state


def test_an_export_says_the_path_once(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "model.safetensors")
    daemon.answers["export"] = {"schema_version": 1, "path": path, "step": 41, "bytes": 7}
    assert ask(daemon, "export", path) == exit_codes.OK
    assert capsys.readouterr().out == f"{path}: step 41, bytes 7\n"


def test_a_strangers_status_is_two_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"schema_version": 1, "state": "serving", "clock_skew_seconds": 0.0})
    done = subprocess.CompletedProcess([], exit_codes.OK, answer.encode(), b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert run(["status", "--peer", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"]) == exit_codes.OK
    assert capsys.readouterr().out.splitlines() == [
        "state               serving",
        "clock_skew_seconds  0.0",
    ]


def test_a_refusal_by_the_daemon_is_shown_with_what_to_do(
    daemon: FixedDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ask(daemon, "export", str(tmp_path / "model.safetensors")) == exit_codes.FAILED
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "murmura: this node has no model yet",
        "  wait until it serves",
    ]
    assert daemon.asked == [("export", {"path": str(tmp_path / "model.safetensors")})]


def test_without_a_daemon_every_local_command_exits_3_and_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "peers", "id", "invite", "drain"):
        assert run([command, "--state-dir", str(tmp_path)]) == exit_codes.NOT_RUNNING
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "murmura run" in printed.err


def test_with_json_an_error_is_an_object_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--json", "--state-dir", str(tmp_path)]) == exit_codes.NOT_RUNNING
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "NotRunningError"
    assert error["hint"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["statsu"],
        ["status", "--jsn"],
        ["run", "--threads", "many"],
        ["status", "--peer", "1.2.3.4"],
        ["export"],
        ["drain", "--deadline", "-1"],
    ],
)
def test_a_wrong_command_line_exits_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == exit_codes.USAGE
    said = capsys.readouterr().err
    assert all(word in said for word in arguments[1:-1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "no run to take part in"),
        (["run", "--threads", "0"], "flag --threads: threads: must be 1 to 1024"),
        (["run", "--join", "murmura1xyz"], "--join:"),
        (["run", "--run", "/nowhere/run.toml"], "cannot read the run file"),
        (["config", "check", "/nowhere/run.toml"], "cannot read the run file"),
    ],
)
def test_wrong_settings_exit_78_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--state-dir", str(tmp_path)]) == exit_codes.CONFIG
    assert says in capsys.readouterr().err


def test_config_check_looks_at_the_runs_text_and_the_wished_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = write_run(tmp_path, text_sha256="0" * 64)
    check = ["config", "check", str(run_file), "--state-dir", str(tmp_path)]
    assert run(check) == exit_codes.CONFIG
    said = capsys.readouterr().err
    assert "0" * 64 in said
    assert sha256_of_text(tmp_path) in said
    write_run(tmp_path, text_sha256=sha256_of_text(tmp_path))
    assert run(check) == exit_codes.OK
    monkeypatch.setenv("MURMURA_STAGE", "3")
    assert run(check) == exit_codes.CONFIG
    assert "stage must be 0 to 2" in capsys.readouterr().err


def test_config_show_prints_a_settings_file_and_where_each_value_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MURMURA_NICE", "3")
    monkeypatch.setenv("MURMURA_JOIN", "murmura1secret")
    state_dir = ["--state-dir", str(tmp_path)]
    assert run(["config", "show", "--effective", *state_dir]) == exit_codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("nice = 3 ") and "env MURMURA_NICE" in line for line in lines)
    assert run(["config", "show", "--json", *state_dir]) == exit_codes.OK
    shown = capsys.readouterr().out
    assert json.loads(shown)["settings"]["nice"] == {"value": 3, "origin": "env MURMURA_NICE"}
    assert "murmura1secret" not in shown + "".join(lines)


def test_what_config_show_prints_can_be_used_as_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "show", "--state-dir", str(tmp_path)]) == exit_codes.OK
    path = tmp_path / "config.toml"
    path.write_text(capsys.readouterr().out)
    assert run(["config", "check", "--config", str(path)]) == exit_codes.OK


def test_every_command_is_there_and_helps(capsys: pytest.CaptureFixture[str]) -> None:
    for name in set(COMMANDS) - {"demo"}:
        assert run([name, "--help"]) == exit_codes.OK
        assert capsys.readouterr().out.startswith("Usage: murmura")


def test_exit_codes_are_documented() -> None:
    operations = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    for name, code in vars(exit_codes).items():
        if isinstance(code, int):
            assert f"| {code} |" in operations, name

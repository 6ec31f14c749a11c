"""The arrows between the four rooms, read from the imports of every module. Reasons are values: a failure explains itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("protocols", "swarm", "moe", "node", "murmura")

MAY_IMPORT = {
    "protocols": {"protocols"},
    "swarm": {"protocols", "swarm"},
    "moe": {"protocols", "swarm", "moe"},
    "node": {"protocols", "swarm", "moe", "node"},
    "murmura": {"protocols", "swarm", "moe", "node", "murmura"},
}

MODES = {
    "pipeline": ("protocols/ledger/", "swarm/pipeline/", "node/demo/scenarios/pipeline/"),
    "gossip": ("protocols/gossip/", "swarm/gossip/", "node/demo/scenarios/gossip/"),
    "collective": (
        "protocols/collective/",
        "swarm/collective/",
        "node/demo/scenarios/collective/",
    ),
    "moe": ("protocols/experts/", "moe/", "node/demo/scenarios/moe/"),
}
"""The rooms of one mode each. Everything else is shared."""

STANDS_ON = {
    "moe": {"gossip": "what is not an expert is kept together by gossip between the trainers"}
}
"""Modes that use another one, each with its reason."""

KNOWS_MODES = {
    "protocols/run/tables.py": "the registry: which shape a mode's table has",
    "node/modes.py": "the registry: one line per mode",
    "node/demo/main.py": "the registry of scenarios",
    "node/experts.py": "servers and layers of the Python API are a mode's",
    "node/optimizer.py": "a strategy of the Python API is a mode's table",
    "protocols/state_calls.py": "names parts of several modes in its documentation",
}

ONLY_IN = {
    "hivemind": (
        "node/dht/process/",
        "it and libp2p register the same protobuf symbol; it is large",
    ),
    "libp2p": (
        "node/light/",
        "it and hivemind register the same protobuf symbol; it is slow to import",
    ),
    "quart": ("node/http/", "it is loaded only where the settings want HTTP"),
    "quart_trio": ("node/http/", "it is loaded only where the settings want HTTP"),
    "hypercorn": ("node/http/", "it is loaded only where the settings want HTTP"),
    "prometheus_client": ("node/http/", "metrics are read from the status, in one place"),
    "asyncio": ("node/dht/process/", "the daemon has one event loop, and it is trio's"),
}

NEVER = {
    "pickle": "it can run code that a peer sent",
    "marshal": "it can run code that a peer sent",
    "shelve": "it is pickle in a file",
    "dill": "it is pickle",
    "cloudpickle": "it is pickle",
}

PURE = ("trio", "torch", "hivemind", "libp2p", "asyncio", "socket", "numpy")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _modules(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_points_back(room: str) -> None:
    for path in _modules(room):
        for name in _imports(path):
            top = name.partition(".")[0]
            if top in ROOMS or top in ("tests", "benchmarks"):
                assert top in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"


def test_shared_rooms_know_no_mode_and_no_mode_another() -> None:
    for path in _modules("protocols", "swarm", "moe", "node"):
        where = path.relative_to(ROOT).as_posix()
        if where in KNOWS_MODES:
            continue
        for name in _imports(path):
            for mode, rooms in MODES.items():
                target = name.replace(".", "/") + "/"
                if not target.startswith(rooms) or where.startswith(rooms):
                    continue
                ours = next((m for m, own in MODES.items() if where.startswith(own)), "")
                assert mode in STANDS_ON.get(ours, {}), (
                    f"{where} imports {name}, of the mode {mode}"
                )


def test_each_process_imports_only_its_own_library() -> None:
    for path in _modules(*ROOMS):
        where = path.relative_to(ROOT).as_posix()
        for name in _imports(path):
            folder, reason = ONLY_IN.get(name.partition(".")[0], ("", ""))
            assert where.startswith(folder), f"{where} imports {name}: {reason}"


def test_nothing_that_can_run_foreign_code_is_imported() -> None:
    for path in _modules(*ROOMS, "benchmarks"):
        for name in _imports(path):
            top = name.partition(".")[0]
            assert top not in NEVER, f"{path.relative_to(ROOT)} imports {name}: {NEVER[top]}"


def test_no_module_calls_torch_load_or_eval() -> None:
    for path in _modules(*ROOMS, "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "eval", "exec"), (
                f"{path.relative_to(ROOT)}: {called}"
            )


def test_protocols_load_without_event_loop_tensors_or_sockets() -> None:
    names = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in _modules("protocols")
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        f"print(*[name for name in {PURE!r} if name in sys.modules])\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert shown.split() == [], f"protocols/ pulls in {shown}"

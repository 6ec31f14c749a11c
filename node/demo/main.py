"""`murmura demo`: what surrounds every scenario: folder, screen, what is printed, exit code."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from node import exit_codes
from node.demo.result import Options, Result
from node.demo.screen import Screen, open_screen
from node.errors import NodeError
from node.limits import process_age_s

SCENARIOS: Final = {
    "pipeline": "node.demo.scenarios.pipeline.scenario",
    "gossip": "node.demo.scenarios.gossip.scenario",
    "collective": "node.demo.scenarios.collective.scenario",
    "moe": "node.demo.scenarios.moe.scenario",
}
"""Mode -> module with `run(options, folder, screen, *, model) -> Result`."""
POWER_LOSS: Final = "node.demo.scenarios.pipeline.power_loss"
"""Instead of the pipeline's own."""
MODEL_FILE: Final = "murmura-demo.safetensors"


def run(options: Options) -> int:
    """Run the demo and return the exit code: 0 when every bound was kept. Raises NodeError when it could not finish."""
    began_s = time.monotonic() - process_age_s()
    model = ((options.keep or Path.cwd()) / MODEL_FILE).absolute()
    _require_writable(model.parent, make=options.keep is not None)
    scenario = importlib.import_module(
        POWER_LOSS if options.power_loss else SCENARIOS[options.mode]
    )
    with _sigterm_as_interrupt(), _work_folder(options.keep) as folder:
        screen = open_screen(began_s=began_s)
        result = _play(scenario.run, options, folder, screen, model)
    out = sys.stderr if options.as_json else sys.stdout
    out.write(result.summary)
    out.write(f"\nThe trained model: {model}\n")
    if options.keep is not None:
        out.write(f"Logs, journals and run file: {options.keep}\n")
    for sentence in result.broken:
        sys.stderr.write(f"murmura demo: {sentence}\n")
    if options.as_json:
        sys.stderr.flush()
        sys.stdout.write(json.dumps(result.figures, indent=2) + "\n")
    return exit_codes.FAILED if result.broken else exit_codes.OK


def _play(scenario: Any, options: Options, folder: Path, screen: Screen, model: Path) -> Result:
    try:
        result: Result = scenario(options, folder, screen, model=model)
    except KeyboardInterrupt:
        screen.say("interrupted: every node has been killed")
        raise
    finally:
        screen.close()
    return result


@contextmanager
def _work_folder(keep: Path | None) -> Iterator[Path]:
    """Give a private folder with a short path (sockets lie in it); what is worth keeping of it goes to `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="murmura-"))
    try:
        yield folder
    finally:
        if keep is not None:
            _keep(folder, keep)
        shutil.rmtree(folder, ignore_errors=True)


def _keep(folder: Path, keep: Path) -> None:
    """Copy run file, logs and journals, also of a demo that failed. Keys and sockets stay behind."""
    for pattern in ("run.toml", "*.log", "*/log", "*/runs/*/records.msgpack"):
        for source in folder.glob(pattern):
            parts = source.relative_to(folder).parts
            target = keep / parts[0] / parts[-1] if len(parts) > 1 else keep / parts[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _require_writable(folder: Path, *, make: bool) -> None:
    """Find out now, not after three minutes."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(f"cannot make {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NodeError(
            f"the model cannot be written to {folder}",
            "start the demo in a folder of yours, or name one with --keep",
        )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End as on Ctrl-C when asked to by SIGTERM: nodes must not outlive the demo."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""The benchmark of being looked at measures what it says."""

from __future__ import annotations

import http.client
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.observe import artefacts
from benchmarks.observe.onlookers import PAGES, Onlookers

pytestmark = pytest.mark.process


@contextmanager
def server(answers: dict[str, int]) -> Iterator[tuple[int, list[str]]]:
    """Answer these paths with these statuses; give the port, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(answers.get(self.path, 404))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield served.server_address[1], asked
        finally:
            served.shutdown()
            thread.join()


def test_a_scrape_and_two_pages_look_from_the_beginning() -> None:
    answers = {"/metrics": 200, "/api/status": 200, "/api/history": 200}
    with server(answers) as (port, asked), Onlookers(port) as onlookers:
        while len(asked) < 1 + 2 * PAGES:
            threading.Event().wait(0.01)
    assert sorted(set(asked)) == sorted(answers)
    assert asked.count("/api/status") == PAGES
    assert onlookers.scrape_ms


def test_an_answer_that_is_none_fails_the_benchmark() -> None:
    def look(port: int, asked: list[str]) -> None:
        with Onlookers(port):
            while "/metrics" not in asked:
                threading.Event().wait(0.01)

    with (
        server({"/api/status": 200, "/api/history": 200}) as (port, asked),
        pytest.raises(http.client.HTTPException, match="/metrics answers 404"),
    ):
        look(port, asked)


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_the_units_exposure_is_read() -> None:
    exposure = artefacts.exposure_cpu_unit()
    assert exposure is not None
    assert 0 < exposure < 10


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_manifests_are_valid_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes_validate")
    monkeypatch.setattr(artefacts, "OVERLAYS", ("first",))  # the others are tested in tests/deploy
    assert artefacts.manifests_valid() is True
    output = artefacts._output
    monkeypatch.setattr(
        artefacts, "_output", lambda *command: output(*command).replace("replicas:", "replicaz:")
    )
    assert artefacts.manifests_valid() is False

"""Metadata servers of clouds, on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class MetadataServer:
    """A metadata server: says nothing until `gone` is set."""

    def __init__(self) -> None:
        self.gone = False

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """As the clouds do. A header that is missing is refused."""
        if (method, path) == ("PUT", "/latest/api/token"):
            return (
                (200, "a-token") if "x-aws-ec2-metadata-token-ttl-seconds" in headers else (400, "")
            )
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != "a-token":
                return 401, ""
            notice = json.dumps({"action": "terminate", "time": "2026-11-28T08:00:00Z"})
            return (200, notice) if self.gone else (404, "Not Found")
        if path == "/computeMetadata/v1/instance/preempted":
            if headers.get("metadata-flavor") != "Google":
                return 403, ""
            return 200, "TRUE" if self.gone else "FALSE"
        if path in (NAME, EVENTS) and headers.get("metadata") != "true":
            return 400, ""
        if path == NAME:
            return 200, "vm_2"
        if path == EVENTS:
            other = {"EventType": "Preempt", "Resources": ["vm_1"], "NotBefore": ""}
            ours = {**other, "Resources": ["vm_2"], "NotBefore": "Sat, 28 Nov 2026 08:00:00 GMT"}
            return 200, json.dumps({"Events": [other, ours] if self.gone else [other]})
        return 500, ""


@contextmanager
def served(answer: Callable[[str, str, dict[str, str]], tuple[int, str]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = answer(self.command, self.path, headers)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = _reply

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

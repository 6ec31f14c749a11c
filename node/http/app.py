"""What is answered over HTTP: a table of paths. Which request is answered at all says node.http.access."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from node.http.access import Access, Asked
from node.http.metrics import Metrics

log = logging.getLogger(__name__)

Problem = Callable[[], str]
"""Returns why not, or nothing."""

_PAGE: Final = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_HEADERS: Final = {
    # Nothing from outside, nothing inline: markup in a name could not do anything even if it got onto the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the first URL may hold the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the node gives to be shown. Each is called on the event loop, and answers from memory."""

    status: Callable[[], dict[str, Any]]
    history: Callable[[], dict[str, list[Any]]]
    alive: Problem
    ready: Problem
    started: Problem


def build_app(shown: Shown, access: Access, *, cookie: str) -> QuartTrio:
    """Return the application.

    Args:
      cookie: the name of the one in which a browser keeps the token. Browsers share cookies between ports of one host.
    """
    app = QuartTrio("node.http", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 0  # nothing here takes a body
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    _guard(app, access, cookie)
    _for_machines(app, shown)
    _for_people(app, shown, cookie)
    return app


def _guard(app: QuartTrio, access: Access, cookie: str) -> None:
    @app.before_request
    async def refuse() -> Response | None:
        refusal = access.refusal(_asked(cookie))
        if refusal is None:
            return None
        response = _text(refusal.reason, refusal.status)
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="murmura"'
        return response

    @app.errorhandler(HTTPException)
    async def explain(error: HTTPException) -> Response:
        return _text(error.name, error.code or 500)

    @app.after_request
    async def harden(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response


def _asked(cookie: str) -> Asked:
    headers = request.headers
    scheme, _, bearer = headers.get("Authorization", "").partition(" ")
    tokens = (
        bearer.strip() if scheme.lower() == "bearer" else "",
        request.cookies.get(cookie, ""),
        request.args.get("token", ""),
    )
    return Asked(
        path=request.path,
        host=headers.get("Host", ""),
        origin=headers.get("Origin", ""),
        fetch_site=headers.get("Sec-Fetch-Site", ""),
        fetch_mode=headers.get("Sec-Fetch-Mode", ""),
        tokens=tuple(filter(None, tokens)),
    )


def _for_machines(app: QuartTrio, shown: Shown) -> None:
    metrics = Metrics(shown.status)

    def health(problem: Problem) -> Callable[[], Any]:
        async def answer() -> Response:
            found = problem()
            return _text(found or "ok", 503 if found else 200)

        return answer

    for path, problem in (
        ("/healthz", shown.alive),
        ("/readyz", shown.ready),
        ("/startupz", shown.started),
    ):
        app.add_url_rule(path, path, health(problem))

    @app.get("/metrics")
    async def scrape() -> Response:
        body, content_type = metrics.text(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)


def _for_people(app: QuartTrio, shown: Shown, cookie: str) -> None:
    folder = resources.files("node.http") / "page"

    def static(name: str) -> Callable[[], Any]:
        body = (folder / name).read_bytes()

        async def answer() -> Response:
            return Response(body, content_type=_TYPES[name.rpartition(".")[2]])

        return answer

    for path, name in _PAGE.items():
        if path != "/":
            app.add_url_rule(path, path, static(name))
    page = static(_PAGE["/"])

    @app.get("/")
    async def front() -> Response:
        token = request.args.get("token")
        if token is None:
            answer: Response = await page()
            return answer
        # Out of the address bar, and of the history: the page goes on with the cookie.
        response = Response(status=303, headers={"Location": "/"})
        response.set_cookie(cookie, token, httponly=True, samesite="Lax")
        return response

    @app.get("/api/status")
    async def status() -> Response:
        return _json(shown.status())

    @app.get("/api/history")
    async def history() -> Response:
        return _json(shown.history())


def _text(text: str, status: int) -> Response:
    return Response(f"{text}\n", status=status, content_type="text/plain; charset=utf-8")


def _json(data: Any) -> Response:
    # A loss that diverged is not a number, and JSON has none: browsers refuse `NaN`.
    body = json.dumps(_finite(data), separators=(",", ":"))
    return Response(body, content_type="application/json")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if -1e300 < data < 1e300 else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(item) for item in data]
    return data

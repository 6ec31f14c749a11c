"""The page in a real browser: what a person sees at the width of a desktop and of a phone, and what a hostile name can do."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from node.http.access import Access
from node.http.app import Shown, build_app
from tests.node.cli.samples import PEER, STATUS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
]

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
OTHERS = [f"12D3KooW{letter * 40}" for letter in "ABC"]
TRAINING: dict[str, Any] = {
    "in_run": True,
    "role": "stage 1",
    "step": 41,
    "steps": 120,
    "loss": 2.5,
    "held_out_loss": None,
    "samples_per_second": 80.0,
    "peers": 4,
    "resting": False,
    "waiting_for": None,
    "up": True,
    "restarts": 0,
    "last_error": None,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "pipeline": {
        "members_by_stage": [2, 2, 0],
        "members": [
            {"peer_id": peer, "stage": index % 2} for index, peer in enumerate([PEER, *OTHERS])
        ],
    },
    "gossip": {"members": [{"peer_id": peer, "models": 3} for peer in OTHERS]},
    "moe": {
        "grid": [2, 4],
        "layers": ["ffn"],
        "members": [{"peer_id": peer} for peer in OTHERS],
        "table": [
            {
                "expert": f"ffn.{index // 4}.{index % 4}",
                "hosts": [OTHERS[index % 3]] if index else [],
                "here": index == 3,
            }
            for index in range(8)
        ],
    },
}
MAP_OF = {"pipeline": ".stage", "gossip": ".ring circle", "moe": ".expert"}
CURVES: dict[str, list[Any]] = {
    "at_s": [0.0, 2.0, 4.0],
    "step": [0, 1, 2],
    "loss": [3.0, 2.0, 1.0],
    "held_out_loss": [3.1, None, 1.1],
    "samples_per_second": [10.0, 11.0, 12.0],
    "peers": [3, 3, 3],
}


def status_of(mode: str, name: str = "try") -> dict[str, Any]:
    status = copy.deepcopy(STATUS)
    status["run"] |= {"mode": mode, "name": name}
    status["services"] = {mode: TRAINING | SECTIONS[mode]}
    return status


@contextlib.contextmanager
def served(status: dict[str, Any], token: str = "") -> Iterator[int]:
    """Serve the page with this status, on a thread with its own event loop; give its port."""
    from hypercorn.config import Config
    from hypercorn.trio import serve

    shown = Shown(
        status=lambda: status,
        history=lambda: CURVES,
        alive=lambda: "",
        ready=lambda: "",
        started=lambda: "",
    )
    app = build_app(shown, Access(token=token), cookie="murmura-token")
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    began, ended = threading.Event(), trio.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        found["trio"] = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            (bound,) = await nursery.start(serve_it)
            found["port"] = int(bound.rpartition(":")[2])
            began.set()
            await ended.wait()
            nursery.cancel_scope.cancel()

    async def serve_it(*, task_status: Any) -> None:
        await serve(app, config, task_status=task_status)

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert began.wait(20)
        yield found["port"]
    finally:
        found["trio"].run_sync_soon(ended.set)
        thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Give a function that opens a URL in a window of its own, with the errors that it met in `page.errors`."""
    contexts = []

    def open_page(url: str, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("mode", sorted(SECTIONS))
def test_the_swarm_is_drawn_and_fits_the_window(opened: Any, mode: str, width: int) -> None:
    with served(status_of(mode)) as port:
        page = opened(f"http://127.0.0.1:{port}/", width)
        page.wait_for_selector(MAP_OF[mode])
        page.wait_for_selector("#loss path")
        assert page.locator(MAP_OF[mode]).count() == {"pipeline": 3, "gossip": 4, "moe": 8}[mode]
        assert page.inner_text("#figures .figure >> nth=0") == "41 of 120\nstep"
        assert "isolated" in page.inner_text("#problems")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.errors == []


def test_dark_and_light_are_the_viewers_choice(opened: Any) -> None:
    with served(status_of("pipeline")) as port:
        grounds = {
            opened(f"http://127.0.0.1:{port}/", color_scheme=scheme).evaluate(
                "getComputedStyle(document.body).backgroundColor"
            )
            for scheme in ("dark", "light")
        }
    assert len(grounds) == 2


def test_a_name_with_markup_is_a_name(opened: Any) -> None:
    status = status_of("pipeline", MARKUP)
    status["unhealthy_reasons"] = [MARKUP]
    status["services"]["pipeline"]["members"].append({"peer_id": MARKUP, "stage": 0})
    status["services"]["pipeline"]["role"] = MARKUP
    with served(status) as port:
        page = opened(f"http://127.0.0.1:{port}/")
        page.wait_for_selector(".stage")
        assert page.inner_text("#run") == MARKUP
        assert page.inner_text("#problems li") == MARKUP
        assert page.locator("img").count() == 0
        assert page.locator("body script").count() == 0
        assert page.title().startswith("<img")
        assert page.errors == []


def test_nothing_is_fetched_from_elsewhere(opened: Any) -> None:
    with served(status_of("moe")) as port:
        page = opened("about:blank")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector(".expert")
        page.wait_for_selector("#loss path")
    assert len(asked) >= 5
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:")) for url in asked)


def test_with_the_token_in_the_link_the_page_goes_on_without_it(opened: Any) -> None:
    with served(status_of("pipeline"), token="correct-horse-battery") as port:
        refused = opened(f"http://127.0.0.1:{port}/")
        assert "token" in refused.inner_text("body")
        page = opened(f"http://127.0.0.1:{port}/?token=correct-horse-battery")
        page.wait_for_selector(".stage")
        assert page.url == f"http://127.0.0.1:{port}/"


def test_another_page_cannot_read_the_node(opened: Any) -> None:
    with served(status_of("pipeline")) as port, served(status_of("gossip")) as other:
        page = opened(f"http://127.0.0.1:{other}/")
        read = page.evaluate(
            "url => fetch(url).then(answer => answer.text(), error => 'refused')",
            f"http://127.0.0.1:{port}/api/status",
        )
    assert read == "refused"

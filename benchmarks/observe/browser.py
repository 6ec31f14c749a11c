"""How soon a person sees the page: headless Chromium, driven by playwright."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import statistics
from typing import Any, Final

LOADS: Final = 5
PAINT_S: Final = 10.0
_FIRST_PAINT: Final = """() => new Promise(resolve => {
  const found = () => performance.getEntriesByName('first-contentful-paint')[0];
  if (found()) return resolve(found().startTime);
  new PerformanceObserver(() => found() && resolve(found().startTime)).observe({type: 'paint', buffered: true});
})"""


def page_first_paint_ms(port: int) -> float | None:
    """Return the median over some loads, after one that warms up; None where there is no browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return None
    driver: Any = importlib.import_module("playwright.sync_api")
    painted = []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * PAINT_S)
        for _ in range(LOADS + 1):
            page.goto(f"http://127.0.0.1:{port}/")
            painted.append(float(page.evaluate(_FIRST_PAINT)))
        browser.close()
    return round(statistics.median(painted[1:]), 1)

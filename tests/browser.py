"""Debian's Chromium without a screen, driven by WebDriver: plain JSON over HTTP."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.clusters import free_ports

NEEDED = ("chromium", "chromedriver")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in NEEDED if not shutil.which(name)]


class Browser:
    """A session of chromedriver at `url`."""

    def __init__(self, url: str, profile: str) -> None:
        self._url = url
        options = {"args": [*OPTIONS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options | {"binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        found = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/session/{found['sessionId']}"
        self._ask("POST", "/url", {"url": "about:blank"})
        self.console()
        self.requests()  # of the browser's own first page

    def look_at(self, page: Path, width: int, scheme: str, height: int = 900) -> None:
        """Open a page in a window of so many pixels, for people who want it `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._devtools("Emulation.setEmulatedMedia", media)
        self._ask("POST", "/url", {"url": page.absolute().as_uri()})

    def run(self, program: str) -> Any:
        """Return what a JavaScript function body returns."""
        return self._ask("POST", "/execute/sync", {"script": program, "args": []})

    def console(self) -> list[str]:
        """What the console has shown since the last look."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The URLs asked for since the last look."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [request["request"]["url"] for request in asked]

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        picture = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._ask("DELETE", "", None)

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._ask("POST", "/se/log", {"type": kind})
        return entries

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Start one, and end it with all that it has started."""
    (port,) = free_ports(1)
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            _wait_for(port)
            session = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield session
            finally:
                session.close()
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _wait_for(port: int) -> None:
    for _ in range(100):
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
            return
        time.sleep(0.2)
    raise TimeoutError("chromedriver does not answer")

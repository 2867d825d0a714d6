"""A real Chromium through its driver's HTTP interface; nothing to install from an index.

``python tests/helpers/chromium.py ADDRESS QUERY OUT.png`` makes a screenshot of a search page.
"""

import base64
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "down": "\ue015", "up": "\ue013", "right": "\ue014", "escape": "\ue00c"}


def missing() -> str:
    """Return what is not installed, or an empty text."""
    return ", ".join(n for n in ("chromium", "chromedriver") if shutil.which(n) is None)


class Browser:
    """One browser window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self.client = client
        self.session = session

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one WebDriver command."""
        reply = self.client.request(method, f"/session/{self.session}{path}", json=body)
        value = reply.json()["value"]
        if reply.status_code != 200:
            raise RuntimeError(value["message"])
        return value

    def open(self, address: str) -> None:
        """Go to a page."""
        self.ask("POST", "/url", {"url": address})

    def resize(self, width: int, height: int) -> None:
        """Give the page a viewport of this size, however small windows may be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self.ask("POST", "/goog/cdp/execute", command)

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return its value."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, script: str, *, seconds: float = 60.0) -> Any:
        """Run JavaScript until it gives something true."""
        deadline = time.monotonic() + seconds
        while True:
            value = self.run(script)
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.05)

    def keys(self, text: str) -> None:
        """Type on the keyboard, to whatever has the focus."""
        actions = []
        for key in text:
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self.ask("POST", "/actions", body)

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self.ask("GET", "/screenshot"))

    def log(self) -> list[dict[str, Any]]:
        """Return what the console says."""
        return self.ask("POST", "/se/log", {"type": "browser"})


@contextlib.contextmanager
def chromium(*, width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """Give a fresh browser."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Chromium may still be writing its profile when the driver has gone.
    profile = tempfile.mkdtemp(prefix="dptdr-chromium-")
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/status").json()["value"]["ready"]:
                    break
            if time.monotonic() > deadline:
                raise TimeoutError("chromedriver did not start")
            time.sleep(0.05)
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()
        browser = Browser(client, made["value"]["sessionId"])
        try:
            yield browser
        finally:
            browser.ask("DELETE", "")
    finally:
        client.close()
        driver.terminate()
        driver.wait(10)
        shutil.rmtree(profile, ignore_errors=True)


def main() -> None:
    """Make a screenshot of the search page with an answered query."""
    address, query, out = sys.argv[1:4]
    with chromium(width=1400, height=1000) as browser:
        browser.open(address)
        browser.wait("return document.querySelectorAll('#tasks input').length > 1", seconds=120)
        # Few enough hits for the load panel to be in the picture.
        browser.run("document.getElementById('k').value = 3")
        for _ in range(3):
            browser.run("document.getElementById('query').value = ''")
            browser.run("document.getElementById('query').focus()")
            browser.keys(query + KEYS["enter"])
            browser.wait("return document.querySelectorAll('.hit').length > 0")
            time.sleep(2.2)
        Path(out).write_bytes(browser.screenshot())


if __name__ == "__main__":
    main()

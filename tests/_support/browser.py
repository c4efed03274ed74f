"""A headless Chromium, driven over a pipe by the DevTools protocol: what a page draws, logs and asks for."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60.0


def found() -> str | None:
    """Where the browser is, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page in one browser with a new, empty profile in `folder`; everything it started has ended on exit."""

    def __init__(self, folder: Path) -> None:
        path = found()
        assert path is not None
        to_read, to_send = os.pipe()
        to_receive, to_write = os.pipe()
        # the browser reads from 3 and writes to 4; ours move out of the way first
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (to_read, to_write)]
        profile = folder / "profile"
        profile.mkdir()
        self.pid = os.posix_spawn(
            path,
            [path, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            {**os.environ, "HOME": str(folder)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, str(folder / "stderr"), os.O_WRONLY | os.O_CREAT, 0o600),
            ],
            setpgroup=0,
        )
        for each in (to_read, to_write, *high):
            os.close(each)
        self._out, self._in, self._buffer, self._last = to_send, to_receive, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None

    def __enter__(self) -> Browser:
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ask it to end, and end it, with all that it started."""
        self.session = None
        try:
            self.call("Browser.close", within_s=10)
        except (OSError, EOFError, TimeoutError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._out)
        os.close(self._in)
        deadline = time.monotonic() + 10
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # they have all gone by themselves
            return

    def call(self, method: str, within_s: float = TIMEOUT_S, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come meanwhile are kept."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda told: told.get("id") == message["id"], within_s)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, wanted: Callable[[dict[str, Any]], bool], within_s: float = TIMEOUT_S) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while True:
            while b"\0" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._in], [], [], left)[0]:
                    raise TimeoutError("the browser does not answer")
                got = os.read(self._in, 1 << 20)
                if not got:
                    raise EOFError("the browser has gone")
                self._buffer += got
            raw, _, self._buffer = self._buffer.partition(b"\0")
            told: dict[str, Any] = json.loads(raw)
            if "id" not in told:
                self.events.append(told)
            if wanted(told):
                return told

    def open(self, page: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        """Load a file in a window of this size, with media features such as prefers_color_scheme="dark"."""
        self.size(width, height)
        self.media(**media)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self._until(lambda told: told.get("method") == "Page.loadEventFired")

    def size(self, width: int, height: int = 900) -> None:
        """Change the window's size; a narrow one is a phone's."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def media(self, kind: str = "", **features: str) -> None:
        """Change the medium ("print") and its features."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=kind, features=listed)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def settle(self) -> None:
        """Wait until the page has drawn what was asked of it."""
        self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def complaints(self) -> list[str]:
        """Console errors and warnings, uncaught exceptions, and what the log holds, of the page now open."""
        told = []
        for event in self.events:
            params, method = event.get("params", {}), event.get("method")
            if method == "Runtime.exceptionThrown":
                told.append(json.dumps(params["exceptionDetails"])[:500])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                told.append(json.dumps(params["args"])[:500])
            elif method == "Log.entryAdded":
                told.append(params["entry"]["text"])
        return told

    def requests(self) -> list[str]:
        """The addresses that the page now open has asked for, itself and data within it left out."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked[1:] if not url.startswith(("data:", "blob:"))]

    def picture(self, file: Path) -> None:
        """The whole page as a PNG."""
        self.settle()
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def paper(self) -> bytes:
        """The page printed, as a PDF."""
        made = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(made["data"])

"""A page in headless Chromium, driven through the DevTools protocol by Kaleido's choreographer."""

import asyncio
import base64
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from choreographer import Browser
from choreographer.browsers import BrowserFailedError

T = TypeVar("T")
FIRST_ANSWER = 30.0  # seconds; a start takes two, on busy cores ten
EVENTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
REQUEST = "Network.requestWillBeSent"


class Chromium:
    """A browser with one page at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._browser: Any = self._run(self._open())
        self._tab: Any = None
        self.said: list[dict[str, Any]] = []  # console messages and errors
        self.requested: list[str] = []

    async def _open(self) -> Any:
        """A browser that answers. Now and then one does not, and is then started a second time."""
        for last in (False, True):
            browser = Browser()
            try:
                await asyncio.wait_for(browser.open(), FIRST_ANSWER)
            except (TimeoutError, BrowserFailedError):  # open() turns a timeout into the latter
                await self._kill(browser)
                if last:
                    raise
            else:
                return browser
        raise AssertionError

    async def _kill(self, browser: Any) -> None:
        """End a browser that does not answer, and its processes."""
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(browser.subprocess.pid)
            family = [*parent.children(recursive=True), parent]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        browser.subprocess.wait(FIRST_ANSWER)
        await browser.close()  # ends its threads and removes its folders

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, 120))

    def send(self, command: str, **parameters: Any) -> Any:
        """Result of a command of the protocol."""
        answer = self._run(self._tab.send_command(command, parameters))
        assert "error" not in answer, answer
        return answer["result"]

    def load(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file in a new tab, because a tab in the background draws nothing."""
        if self._tab:
            self._run(self._tab.close())
        self._tab = self._run(self._browser.create_tab("about:blank"))
        self.said, self.requested = [], []

        async def say(event: Any) -> None:
            self.said.append(event["params"])

        async def request(event: Any) -> None:
            self.requested.append(event["params"]["request"]["url"])

        for name in EVENTS:
            self._tab.subscribe(name, say, repeating=True)
        self._tab.subscribe(REQUEST, request, repeating=True)
        for domain in ("Page", "Runtime", "Log", "Network", "Performance"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Value of an expression in the page. If it is a promise, the value that it resolves to."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def processor_seconds(self) -> float:
        """Processor time of the page's thread since the page was loaded."""
        metrics = self.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "ThreadTime"))

    def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""

        async def wait() -> None:
            await asyncio.sleep(0.02)

        limit = self._loop.time() + seconds
        while not self.run(f"Boolean({condition})"):
            assert self._loop.time() < limit, condition
            self._run(wait())

    def press(self, key: str) -> None:
        """Press a key and release it."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path: Path) -> None:
        """Write a picture of the window."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def pdf(self, path: Path) -> None:
        """Write the page as it is printed."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._run(self._browser.close())
        self._loop.close()

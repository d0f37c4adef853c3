"""A headless Chromium for tests: opens pages, clicks, drags, and gathers what the console says. Speaks DevTools over two pipes."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PHONE, DESKTOP = (390, 844), (1280, 900)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


def found() -> str | None:
    """Why there is no browser to test with; None where there is one."""
    missing = [name for name in ("chromium", "bash") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not on this machine" if missing else None


class Browser:
    """One page at a time. `messages`: errors and warnings of the console since `open`."""

    def __init__(self, profile: Path) -> None:
        pairs = [os.pipe(), os.pipe()]  # commands, answers
        (read, self._in), (self._out, write) = pairs
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read, write)]
        start = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
        words = ["bash", "-c", start, "bash", "chromium", *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(words, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (read, write, *high):
            os.close(fd)
        self._rest, self._count, self.messages, self._loaded = b"", 0, list[str](), False
        target = self._send("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        self._session = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        """Loads a page at a width and in a colour scheme; waits until it is loaded."""
        self.look(size, scheme)
        self.messages.clear()
        self._loaded = False
        self._send("Page.navigate", {"url": url})
        while not self._loaded:
            self._take()

    def look(self, size: tuple[int, int], scheme: str) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        self._send("Emulation.setDeviceMetricsOverride", metrics)
        self._send("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. Raises AssertionError for what it throws."""
        answer = self._send("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript expression is true."""
        end, is_true = (
            time.monotonic() + seconds,
            f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()",
        )
        while not self.run(is_true):
            assert time.monotonic() < end, f"never true: {condition}; console: {self.messages}"
            time.sleep(0.03)

    def mouse(self, kind: str, x: float, y: float, down: bool = False) -> None:
        words = {"type": kind, "x": x, "y": y, "button": "left", "buttons": int(down), "clickCount": 1}
        self._send("Input.dispatchMouseEvent", words)

    def click(self, x: float, y: float) -> None:
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, down=True)
        for share in (0.3, 0.7, 1.0) if start != end else ():
            self.mouse("mouseMoved", *(a + share * (b - a) for a, b in zip(start, end, strict=True)), down=True)
        self.mouse("mouseReleased", *end)

    def choose(self, id_: str, value: str) -> None:
        """Sets a select or a slider as a person does."""
        events = "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true}));"
        self.run(f"(() => {{ const e = document.getElementById({id_!r}); e.value = {value!r}; {events} }})()")

    def picture(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode(self._send("Page.captureScreenshot", {"format": "png"})["data"])

    # ---- the pipe ----

    def _send(self, method: str, params: dict[str, Any] | None = None, session: str | None = "own") -> Any:
        self._count += 1
        own = self._count
        message = {"id": own, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._take()
            if answer.get("id") == own:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _take(self) -> dict[str, Any]:
        """The next message; events of the page are noted."""
        while b"\0" not in self._rest:
            part = os.read(self._out, 1 << 16)
            assert part, "Chromium has ended"
            self._rest += part
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"].get("exception", {}).get("description", params)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.messages.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.messages.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:", "http://127.0.0.1:")):
                self.messages.append(f"asks the network: {url}")

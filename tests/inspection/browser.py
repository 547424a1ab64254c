"""A real browser, spoken to over DevTools' pipe: no driver and no other package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# The browser reads commands from descriptor 3 and answers on 4.
_START = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 1003); os.dup2(w, 1004); os.dup2(1003, 3); \
os.dup2(1004, 4); os.execv(sys.argv[3], sys.argv[3:])"


def chromium() -> str | None:
    """The path of a Chromium, MADAKV_CHROMIUM before others; None if there is none."""
    return os.environ.get("MADAKV_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One headless browser; `page` opens a page of its own in it."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"]
        options += [f"--user-data-dir={folder / 'profile'}", "about:blank"]
        options += ["--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), program, *options],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.folder = folder
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, *, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """One command, and its result; events that come before it are kept."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for answer in self._read(end - time.monotonic()):
                if answer.get("id") == number:
                    assert "error" not in answer, f"{method}: {answer['error']}"
                    return dict(answer["result"])
        raise TimeoutError(f"{method} took more than {timeout} s")

    def _read(self, timeout: float) -> list[dict[str, Any]]:
        """The messages that are there, or come within `timeout`."""
        if select.select([self._in], [], [], max(0.0, timeout))[0]:
            came = os.read(self._in, 1 << 20)
            if not came:
                raise ConnectionError("the browser ended")
            self._buffer += came
        *whole, self._buffer = self._buffer.split(b"\0")
        messages = [json.loads(each) for each in whole]
        self.events += [each for each in messages if "method" in each]
        return messages

    def page(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """A file, opened and ready."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.size(width, height)
        page.scheme("dark" if dark else "light")
        page.send("Page.navigate", url=path.as_uri())
        page.until("document.documentElement?.dataset.ready === 'yes'")
        return page

    def close(self) -> None:
        try:
            self.send("Browser.close", timeout=10)
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


class Page:
    """A page, and what a person does with it."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def js(self, expression: str) -> Any:
        """What an expression comes to; a promise is waited for."""
        got = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def until(self, expression: str, timeout: float = 40) -> None:
        end = time.monotonic() + timeout
        while not self.js(expression):
            assert time.monotonic() < end, f"never came true: {expression}; {self.complaints()}"
            time.sleep(0.03)

    def settle(self) -> None:
        """Wait for the repaint that a change asked for."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def size(self, width: int, height: int, *, touch: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)

    def scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def box(self, what: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, which an expression names."""
        got = self.js(
            f"(({{left, top, width, height}}) => [left, top, width, height])(({what}).getBoundingClientRect())"
        )
        return tuple(got)

    def hover(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, what: str) -> None:
        """Scroll an element to the middle and click there."""
        self.js(f"({what}).scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.box(what)
        x, y = left + width / 2, top + height / 2
        self.hover(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9}
            code |= {"Escape": 27, "Home": 36, "End": 35, " ": 32, "PageDown": 34}
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code[key])
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code[key])
        self.settle()

    def shot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def download(self, start: Callable[[], None], name: str) -> bytes:
        """The file that comes when `start` is called."""
        folder = self.browser.folder / "downloads"
        self.browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        start()
        end = time.monotonic() + 20
        while not (folder / name).is_file():
            assert time.monotonic() < end, f"{name} never came"
            time.sleep(0.03)
        return (folder / name).read_bytes()

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, and violations of the page's own policy."""
        self.js("1")
        found = []
        for event in self._events():
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"):
                found.append(str(event["params"]["args"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] != "verbose":
                found.append(event["params"]["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, data and its own file aside."""
        addresses = [
            event["params"]["request"]["url"]
            for event in self._events()
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [each for each in addresses if not each.startswith(("data:", "blob:", "file:"))] + [
            each for each in addresses if each.startswith("file:")
        ][1:]

    def _events(self) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("sessionId") == self.session]

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)

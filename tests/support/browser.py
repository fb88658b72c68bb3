"""A headless Chromium that shows a page and is controlled by the Chrome DevTools Protocol over pipes (file descriptors
3 and 4 of the browser, messages of JSON that end with a zero byte)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "chromium-headless-shell"

#: Timeout of an answer of the browser, in seconds. Its first start takes some seconds.
TIMEOUT_S = 60.0

needs_browser = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed: `script/bootstrap test` installs it"
)

#: A function of JavaScript that returns the texts of a page whose contrast is below 4.5:1 (WCAG 2.2, 1.4.3).
LOW_CONTRAST = r"""
(() => {
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.body.querySelectorAll('*')) {
    if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(rgb(element.closest('svg') ? style.fill : style.color)), luminance(behind(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.push(element.textContent.slice(0, 80));
  }
  return low;
})()
"""


class Browser:
    """A page in the browser. `problems`: texts of its console, errors included. `requests`: every URL it asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._id = 0
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def show(self, page: Path, *, width: int = 1000) -> None:
        """Loads a page and waits until all of it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=width < 500
        )
        self._events.clear()
        self.problems.clear()
        self.requests.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._note(self._read())

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything in the page that a screen reader reads."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]

    def pdf_pages(self) -> int:
        """Prints the page to PDF and returns its number of pages."""
        data = base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])
        return len(re.findall(rb"/Type\s*/Page\b", data))

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.problems.append(json.dumps(params))

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{PROGRAM} does not answer"
            data = os.read(self._from, 1 << 20)
            assert data, f"{PROGRAM} has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """Starts the browser, with a profile in a folder, and ends it after the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    arguments = [
        PROGRAM, "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(folder / "browser.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # The ends of the pipes may be 3 and 4 themselves, so they are moved out of the way first.
    reads, writes = os.dup2(to_browser[0], 100), os.dup2(from_browser[1], 101)
    pairs = [(null, 0), (null, 1), (log, 2), (reads, 3), (writes, 4)]
    actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in pairs]
    program = shutil.which(PROGRAM) or PROGRAM
    process = os.posix_spawn(program, arguments, os.environ | {"HOME": str(folder)}, file_actions=actions, setpgroup=0)
    for handle in (to_browser[0], from_browser[1], reads, writes, null, log):
        os.close(handle)
    try:
        yield Browser(to_browser[1], from_browser[0])
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(to_browser[1])
        os.close(from_browser[0])

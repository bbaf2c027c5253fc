"""Dagster's UI over a home, as ``make dev`` serves it, and a browser that looks at it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audio_assets.demo_server import HOST

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def dev_command() -> str:
    """What ``make dev`` runs, as the Makefile has it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^dev:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    return re.sub(r"\\\n\s*", "", recipe[1]).strip().replace("$$", "$")


@contextmanager
def ui_server(home: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The UI on a home; gives its address."""
    port = free_port()
    command = dev_command().replace("$(BIN)/", f"{Path(sys.executable).parent}/").replace("$(PORT)", str(port))
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=ROOT,
        env={**environment, "AUDIO_ASSETS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the UI did not come up"
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def quiet_page(address: str) -> Iterator["Page"]:
    """A tab of a real browser. Errors on its console, dialogs and requests to anywhere else fail at the end."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=options)
        tab = browser.new_page(viewport={"width": 1600, "height": 1400}, base_url=address)
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("console", lambda said: said.type == "error" and complaints.append(f"console: {said.text}"))
        tab.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:")) or complaints.append(f"request: {request.url}")
            ),
        )
        yield tab
        browser.close()
    assert complaints == []

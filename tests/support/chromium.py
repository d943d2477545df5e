"""Chromium for the tests: found, started, served, and asked what axe has to say."""

import contextlib
import functools
import http.server
import shutil
import threading
from importlib.resources import files

import pytest
from playwright.sync_api import sync_playwright

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@contextlib.contextmanager
def launching(*flags):
    """What starts a Chromium with these flags; without one the test is skipped."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        kind, args = playwright.chromium, ["--no-sandbox", *flags]
        yield lambda: kind.launch(executable_path=found, args=args)


@contextlib.contextmanager
def served(folder):
    """The address of a folder, served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()


def violations(page):
    """What axe has to say about a page: [[rule, the first element], …]."""
    page.evaluate(AXE)
    return page.evaluate("""async () => {
        const { violations } = await axe.run(document);
        return violations.map((v) => [v.id, v.nodes[0].html]);
    }""")

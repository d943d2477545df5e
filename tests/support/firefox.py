"""Firefox, headless, by Marionette: what the tests need of it, in the standard library."""

import contextlib
import json
import shutil
import socket
import subprocess
import time

PREFERENCES = {
    "dom.webgpu.enabled": True,
    "gfx.webgpu.ignore-blocklist": True,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "network.captive-portal-service.enabled": False,
    "services.settings.server": "data:,",  # asks nobody for anything
    "browser.startup.homepage_override.mstone": "ignore",
}
FOUND = shutil.which("firefox-esr") or shutil.which("firefox")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Firefox:
    """Pages of one Firefox: `go` to an address, `run` a function's body of JavaScript."""

    def __init__(self, port, seconds=60):
        until = time.monotonic() + seconds
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
                break
            except ConnectionRefusedError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        self.file = self.socket.makefile("rb")
        self.receive()  # who it is
        self.number = 0
        self.ask("WebDriver:NewSession", {"capabilities": {"alwaysMatch": {}}})

    def receive(self):
        digits = b""
        while not digits.endswith(b":"):
            one = self.file.read(1)
            if not one:
                raise ConnectionError("Firefox has ended")
            digits += one
        return json.loads(self.file.read(int(digits[:-1])))

    def ask(self, command, parameters):
        self.number += 1
        text = json.dumps([0, self.number, command, parameters]).encode()
        self.socket.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self.receive()
        if error:
            raise RuntimeError(f"{command}: {error['error']}: {error['message']}")
        return result

    def close(self):
        self.file.close()
        self.socket.close()

    def go(self, url):
        self.ask("WebDriver:Navigate", {"url": url})

    def run(self, body, *given):
        parameters = {"script": body, "args": list(given), "sandbox": None}
        return self.ask("WebDriver:ExecuteScript", parameters)["value"]

    def until(self, condition, seconds):
        """Waits until an expression of JavaScript is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {condition};")):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.2)
        return value


@contextlib.contextmanager
def running(folder):
    """A Firefox of its own, with a new profile in `folder`."""
    port = free_port()
    preferences = {**PREFERENCES, "marionette.port": port}
    lines = [f'user_pref("{name}", {json.dumps(v)});' for name, v in preferences.items()]
    (folder / "user.js").write_text("\n".join(lines), encoding="utf-8")
    command = [FOUND, "--headless", "--marionette", "--no-remote", "--profile", str(folder)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with contextlib.closing(Firefox(port)) as firefox:
                yield firefox
        finally:
            process.terminate()
            process.wait(20)

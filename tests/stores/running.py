"""The stores' servers as processes of their own, which tests kill, freeze and start again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kits.ports import free_port

SECRET = "a-secret-of-forty-bytes-that-is-only-for-tests"
KEY = "sb_secret_only_for_tests"
BUCKET = "generated-images"
PATIENCE_S = 20.0


class SupabaseProcess:
    """`tests.stores.supabase` on one port, with one folder, through any number of deaths."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/storage/v1"
        self.public_url = f"{self.url}/object/public/{BUCKET}"
        self._command = [sys.executable, "-m", "tests.stores.supabase", "--port", str(self.port)]
        self._command += ["--folder", str(folder), "--secret", SECRET, "--key", KEY, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["port"] == self.port

    def kill(self) -> None:
        """At once, as a power cut would; returns when it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def behave(self, **behaviour: Any) -> None:
        """Set the next faults; no argument means no fault."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/_test/behaviour", method="PUT")
        asked.data = json.dumps(behaviour).encode()
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            assert answer.status == 200


class MotoProcess:
    """An S3 server, with one bucket."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.public_url = f"{self.url}/{BUCKET}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        """Returns when it listens and has its bucket."""
        until_s = time.monotonic() + PATIENCE_S
        made = urllib.request.Request(self.public_url, method="PUT", headers={"x-amz-acl": "public-read"})
        while True:
            try:
                urllib.request.urlopen(made, timeout=PATIENCE_S).close()
                return
            except urllib.error.URLError:
                assert time.monotonic() < until_s and self.process.poll() is None, "moto did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def frozen(process: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """It does nothing meanwhile, and its connections stay open."""
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)

"""A real nginx in front of gateways, as an ingress controller runs it: it is given its servers, and told of changes."""

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.kits.ports import free_port
from tests.kits.programs import program
from tests.kits.system import wait_until

CONFIG = """
{user}daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    upstream gateways {{
        {servers}
        keepalive 32;  # and 60 s idle, below the gateways' 75
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 120s;
            # nginx' own rule, in words: what was sent and is no GET is never sent again.
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


class Nginx:
    """One that listens at `port`. `route` changes where it leads; requests under way end where they are."""

    def __init__(self, folder: Path, servers: Sequence[int]) -> None:
        self.port = free_port()
        self._folder = folder
        self._folder.mkdir()
        self._configure(servers)
        command = [program("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._listens, "nginx listens")  # a signal before that would end it

    @property
    def log(self) -> Path:
        return self._folder / "nginx.log"

    def route(self, servers: Sequence[int]) -> None:
        """Lead to these ports from now on; new connections do so within moments."""
        self._configure(servers)
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it at once."""
        self._process.terminate()
        self._process.wait()

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _configure(self, servers: Sequence[int]) -> None:
        text = CONFIG.format(
            port=self.port,
            servers=" ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in servers),  # readiness decides
            user="user root;\n" if os.geteuid() == 0 else "",  # its folder is for this user only
        )
        (self._folder / "nginx.conf").write_text(text)

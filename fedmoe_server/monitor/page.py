"""``python -m fedmoe_server page``: a page of the runs, live, and ``/metrics`` for Prometheus.

It is there to be read, by programs of this machine. Nothing can be done through it, it listens on loopback alone, and
it answers no page of another origin, and no name but this machine's own: another one may be made to mean 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from fedmoe.deployment.folder import HERE
from fedmoe.deployment.ports import own_address
from fedmoe.errors import FedMoEError
from fedmoe_server.deploy.server_folder import ServerFolder
from fedmoe_server.monitor.exported import CONTENT_TYPE, exposition
from fedmoe_server.monitor.overview import Watcher, described

SECONDS = 10.0  # that a connection may be silent
OWN_SITE = ("none", "same-origin")  # of a browser's Sec-Fetch-Site: typed in, or asked by the page itself
Answer = tuple[int, str, bytes]


def serve(server: ServerFolder, address: str, ready: Callable[[str], None]) -> None:
    """Serve the page until the process is ended. ready: called with the page's address once it can be opened.

    Raises FedMoEError if there is no server in the folder, or the address is taken or not of this machine alone.
    """
    server.addresses()
    host, port = own_address(address, "--address")
    page = files(__package__).joinpath("page.html").read_bytes()
    with ThreadingHTTPServer((host, port), partial(_Requests, _Site(Watcher(server), page))) as listener:
        ready(f"http://{address}/")
        listener.serve_forever()


class _Site:
    """What is answered to a path."""

    def __init__(self, watcher: Watcher, page: bytes) -> None:
        self._watcher = watcher
        self._page = page
        script = page.partition(b"<script>")[2].partition(b"</script>")[0]
        mark = b64encode(hashlib.sha256(script).digest()).decode()
        # Of the page nothing runs but its own script, which talks to this server alone.
        self.policy = (
            f"default-src 'none'; script-src 'sha256-{mark}'; style-src 'unsafe-inline'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def answer(self, path: str, query: str) -> Answer:
        """Return status, type and content."""
        try:
            if path == "/":
                return 200, "text/html; charset=utf-8", self._page
            if path == "/metrics":
                return 200, CONTENT_TYPE, exposition(self._watcher.look())
            if path == "/data":
                chosen = parse_qs(query).get("run", [None])[0]
                found = json.dumps(described(self._watcher.look(), chosen), allow_nan=False)
                return 200, "application/json", found.encode()
        except FedMoEError as error:
            return 500, "text/plain; charset=utf-8", f"{error}\n".encode()
        return 404, "text/plain; charset=utf-8", b"there are /, /data and /metrics\n"


class _Requests(BaseHTTPRequestHandler):
    """Answers GET; the base class refuses all else."""

    timeout = SECONDS
    server_version, sys_version = "fedmoe", ""

    def __init__(self, site: _Site, *words: object) -> None:
        self._site = site
        super().__init__(*words)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer a request of this machine's own programs."""
        try:
            given = None if self._foreign() else urlsplit(self.path)
        except ValueError:  # what is no host and no path at all
            given = None
        if given is None:
            status, kind, content = 403, "text/plain; charset=utf-8", b"open this page by the address that it has\n"
        else:
            status, kind, content = self._site.answer(given.path, given.query)
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", self._site.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _foreign(self) -> bool:
        """Whether a browser asks by another name, or for a page of another origin."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if urlsplit(f"//{host}").hostname not in HERE or self.headers.get("Sec-Fetch-Site", "none") not in OWN_SITE:
            return True
        return origin is not None and origin != f"http://{host}"

    def log_message(self, *words: object) -> None:
        """Say nothing: a request is no event."""

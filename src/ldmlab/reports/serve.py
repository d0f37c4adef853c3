"""`python src/report.py serve=true`: the store as a local site. Only this machine reaches it, and it only reads.

It listens on 127.0.0.1. It answers GET and HEAD; files lie under /file/ and only inside the store; a request that names another
host is refused, so that no foreign page can ask through a person's browser (DNS rebinding).
"""

import errno
import json
import mimetypes
import sys
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ldmlab.errors import ConfigError, DataError
from ldmlab.reports import site
from ldmlab.reports.overview import Overview

HOST = "127.0.0.1"
TEXT = (".json", ".jsonl", ".yaml", ".yml", ".log", ".csv", ".md", ".txt")
POLICY = (  # reports carry scripts of their own (Vega compiles expressions), and nothing may come from a network
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
GUARDS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
CHUNK = 1 << 20  # bytes


class Handler(BaseHTTPRequestHandler):
    """Routes of the site; `server.store` is what it shows."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):  # the reader has gone
            self.close_connection = True
        except DataError as error:
            self._page(HTTPStatus.INTERNAL_SERVER_ERROR, site.refused("A file of the store is damaged", str(error)))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._page(HTTPStatus.INTERNAL_SERVER_ERROR, site.refused("Error", "The terminal of this site says more."))

    do_HEAD = do_GET

    def refuse_writing(self) -> None:
        self.close_connection = True  # what the request carries is not read
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Connection", "close")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = refuse_writing

    def _answer(self) -> None:
        if self.headers.get("Host", "") not in self.server.names:
            why = f"This site answers as {self.server.names[0]} alone."
            return self._page(HTTPStatus.FORBIDDEN, site.refused("Refused", why))
        store, (_, first, *rest) = self.server.store, unquote(urlsplit(self.path).path, errors="replace").split("/")
        pages: dict[tuple[str, int], Any] = {
            ("", 0): site.home, ("run", 1): site.run, ("study", 1): site.study, ("stage", 2): site.stage, ("stages", 1): site.kind,
        }  # fmt: skip
        if first == "file" and rest:
            return self._file(store.inside(*rest))
        if any(store.inside(part) is None for part in rest):
            return self._missing()
        if first == "favicon.ico":  # browsers ask for one
            return self._head(HTTPStatus.OK, "image/x-icon", 0)
        if first == "live.json":
            return self._json(site.live(store))
        if first == "curves" and len(rest) == 2:
            return self._json(site.curves(store, rest[0], rest[1].removesuffix(".json")))
        make = pages.get((first, len(rest)))
        body = make(store, *rest) if make is not None else None
        return self._page(HTTPStatus.OK, body) if body is not None else self._missing()

    def _missing(self) -> None:
        self._page(HTTPStatus.NOT_FOUND, site.refused("Not found", "The store has nothing of this name."))

    def _page(self, status: HTTPStatus, body: bytes) -> None:
        self._head(status, "text/html; charset=utf-8", len(body))
        self._write(body)

    def _json(self, value: Any) -> None:
        if value is None:
            return self._missing()
        body = json.dumps(value, allow_nan=False).encode()
        self._head(HTTPStatus.OK, "application/json", len(body))
        return self._write(body)

    def _file(self, path: Path | None) -> None:
        """A file inside the store, as it is now: what is appended meanwhile is left out."""
        if path is None or not path.is_file():
            return self._missing()
        kind = "text/plain" if path.suffix in TEXT else mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        kind += "; charset=utf-8" if kind.startswith("text/") else ""
        with path.open("rb") as file:
            left = path.stat().st_size
            self._head(HTTPStatus.OK, kind, left)
            while left and self.command == "GET" and (part := file.read(min(CHUNK, left))):
                self.wfile.write(part)
                left -= len(part)
            self.close_connection |= self.command == "GET" and left > 0  # it became shorter: the reader must notice
        return None

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(length)} | GUARDS
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, body: bytes) -> None:
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are not printed: a page with live curves asks every two seconds."""


class Server(ThreadingHTTPServer):
    """Listens on this machine alone. store: what it shows."""

    daemon_threads = True

    def __init__(self, store: Path, port: int):
        super().__init__((HOST, port), Handler)
        self.store = Overview(store)
        port = self.server_address[1]
        self.names = (f"{HOST}:{port}", f"localhost:{port}", *((HOST, "localhost") if port == 80 else ()))

    @property
    def url(self) -> str:
        return f"http://{self.names[0]}/"


def make_server(store: Path, port: int) -> Server:
    """port: 0 for any that is free. Raises DataError without a store, ConfigError for a port that cannot be had."""
    store = store.expanduser()
    if not store.is_dir():
        raise DataError(f"store={store}: no such folder. Make a run first: python src/train.py; or name another store.")
    try:
        return Server(store.resolve(), port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used by you"
        raise ConfigError(f"port={port} {why}. Choose another one; port=0 takes any that is free.") from None


def serve(store: Path, port: int) -> None:
    """Shows the store until it is interrupted (Ctrl-C)."""
    with make_server(store, port) as server:
        print(f" store  {server.url}   Ctrl-C ends it; nothing in the store is changed", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(" closed")

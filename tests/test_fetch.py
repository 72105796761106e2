"""The fetcher against a real server on this machine: nothing enters the cache that has not matched its digest."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from foundation import fetch
from foundation.fetch import FetchError, fetch_url

CONTENT = b"interactions" * 1000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        early = self.path == "/early" or (self.path == "/flaky" and self.requests.count("/flaky") == 1)
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if early else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def server(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with an empty cache and no requests yet."""
    monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path / "cache"))
    Handler.requests.clear()
    return address


def cached(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file()]


def test_fetched_once(server: str, tmp_path: Path) -> None:
    path = fetch_url(f"{server}/data.zip", DIGEST)
    assert path.read_bytes() == CONTENT
    assert fetch_url(f"{server}/data.zip", DIGEST) == path
    assert Handler.requests == ["/data.zip"]


@pytest.mark.parametrize(
    ("path", "message", "tries"), [("/data.zip", "sha256 is", 1), ("/early", "closed after", 3), ("/missing", "404", 1)]
)
def test_failures_leave_the_cache_empty(server: str, tmp_path: Path, path: str, message: str, tries: int) -> None:
    digest = DIGEST if path != "/data.zip" else "sha256:" + "0" * 64
    with pytest.raises(FetchError, match=message):
        fetch_url(server + path, digest)
    assert not cached(tmp_path)
    assert len(Handler.requests) == tries


def test_a_broken_connection_is_tried_again(server: str) -> None:
    assert fetch_url(f"{server}/flaky", DIGEST).read_bytes() == CONTENT


def test_no_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="check the network, or download it by hand"):
        fetch_url("http://127.0.0.1:1/data.zip", DIGEST)


def test_unknown_asset() -> None:
    with pytest.raises(FetchError, match=r"no asset is named 'nothing'; known: ml-100k"):
        fetch.fetch("nothing")

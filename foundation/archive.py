"""Reading compressed files that strangers made: bounded in size and ratio, whole, and never by a path they name.

Members are read into memory or to a name of our own; nothing is extracted under the name an archive gives it, so paths that
lead out of a folder and links are harmless. DEFLATE cannot compress more than 1032:1; real tables reach about 20:1.
"""

from __future__ import annotations

import errno
import gzip
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

MAX_RATIO = 200
MAX_BYTES = 64 << 30
MAX_LINE_BYTES = 16 << 20
_FREE_BYTES = 1 << 20  # small files may be empty space, so to speak


class ArchiveError(ValueError):
    """An archive that is damaged or hostile; the message says which and why."""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip at `path`, its directory read."""
    with _zip_errors(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of one member, its CRC checked."""
    info = archive.getinfo(name)
    what = f"{archive.filename}: {name!r}"
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveError(f"{what} is a link")
    if info.flag_bits & 1:
        raise ArchiveError(f"{what} is encrypted")
    _check_size(info.file_size, info.compress_size, what)
    with _zip_errors(archive.filename), archive.open(info) as stream:
        content = stream.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise ArchiveError(f"{what} has {len(content)} bytes or more, its entry says {info.file_size}")
    return content


@contextmanager
def _zip_errors(path: Any) -> Iterator[None]:
    """What zipfile and its decompressors say of a damaged file, as an `ArchiveError`."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if getattr(error, "errno", None) != errno.EINVAL:  # EINVAL: an offset that leads out of the file
            raise
        raise ArchiveError(f"{path} is not a readable zip ({error}); fetch it again") from None
    except Exception as error:  # BadZipFile, zlib.error, LZMAError, EOFError, ValueError, struct.error, NotImplementedError, …
        raise ArchiveError(f"{path} is not a readable zip ({error}); fetch it again") from None


def read_bytes(path: Path) -> bytes:
    """All of a file, gunzipped if its name ends in .gz."""
    if path.suffix != ".gz":
        return path.read_bytes()
    chunks, total = [], 0
    with _gunzip(path) as stream:
        while chunk := stream.read(1 << 20):
            total += len(chunk)
            _check_size(total, path.stat().st_size, str(path))
            chunks.append(chunk)
    return b"".join(chunks)


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, gunzipped if its name ends in .gz."""
    total = 0
    with _gunzip(path) if path.suffix == ".gz" else path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise ArchiveError(f"{path} has a line of more than {MAX_LINE_BYTES >> 20} MiB")
            total += len(line)
            if path.suffix == ".gz":
                _check_size(total, path.stat().st_size, str(path))
            yield line


@contextmanager
def _gunzip(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{path} is damaged or not gzip ({error}); fetch it again") from None


def _check_size(size: int, compressed: int, what: str) -> None:
    if size > MAX_BYTES or size > MAX_RATIO * compressed + _FREE_BYTES:
        raise ArchiveError(
            f"{what} unpacks to {size:,} bytes or more from {compressed:,}; at most {MAX_RATIO}:1 and "
            f"{MAX_BYTES >> 30} GiB are read"
        )

"""What failed: the user's input, a file, or the machine; told from the exception alone, in one place for all stages.

Libraries report a lack of memory or disk in many ways: MemoryError, RuntimeError with a sentence (torch, ONNX Runtime), an
ImportError when a shared object cannot be mapped, a panic of Rust code. What the machine lacks is never a file's fault.
"""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from pathlib import Path

ABSURD_BYTES = 1 << 42  # no honest file asks for 4 TiB at once, but a damaged header does
_NO_MEMORY = re.compile(  # the last is said of an extension that let a failed allocation pass
    r"can(?:'t|not) allocate memory|out of memory|std::bad_alloc|failed to allocate memory|failed to map segment|"
    r"can't start new thread|exception Resource temporarily unavailable|"
    r"cannot enable executable stack|_ALLOC_FAILED|memory allocation of \d+ bytes failed|"
    r"memory allocation still failed|returned NULL without setting an exception",
    re.IGNORECASE,
)
_NO_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_LIBRARIES = ("safetensors", "safetensors_rust", "polars", "onnx", "onnxruntime", "openvino", "huggingface_hub")


class Explained(RuntimeError):
    """An error whose message says already what the machine could not do, and what to do about it."""


def is_library_error(error: BaseException) -> bool:
    """Whether a library failed, by exception or by a panic of its Rust code, which pyo3 raises outside of `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def lacks_memory(error: BaseException) -> bool:
    """Whether memory could not be had; an absurd request is a damaged file's, and no lack of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or says_no_memory(str(error))


def says_no_memory(text: str) -> bool:
    """Whether a library's own words are about a lack of memory."""
    return bool(_NO_MEMORY.search(text)) and not any(int(size) >= ABSURD_BYTES for size in re.findall(r"\d{13,}", text))


def lacks_disk(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(_NO_DISK.search(str(error)))


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine is what is lacking (memory, disk, a library, a permission), and no file is at fault."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return error.errno is not None
    return isinstance(error, ImportError) or lacks_memory(error) or lacks_disk(error)


def explain(error: BaseException, go_on: str) -> str | None:
    """One line for the user: what the machine or a library could not do; None for what can only be a mistake of ours."""
    if isinstance(error, Explained):
        return f"{error}; then {go_on}"
    for cause in causes(error):
        said = first_line(str(cause), "no details")
        if lacks_memory(cause):
            return f"out of memory ({said}); lower a batch_size, or free some memory, then {go_on}"
        if lacks_disk(cause):
            return f"the disk is full ({said}); free some space, then {go_on}"
    text = first_line(str(error))
    if not isinstance(error, OSError | ImportError) and address_space_is_spent():
        return f"probably out of memory: the limit of address space is reached ({text}); raise `ulimit -v`, then {go_on}"
    if isinstance(error, ImportError):
        return f"a library is missing ({text}); `make setup` installs all of them"
    if isinstance(error, OSError | RuntimeError):
        return f"{type(error).__name__}: {text}" if type(error) in (OSError, RuntimeError) else text
    if type(error).__module__.split(".")[0] in _LIBRARIES or not isinstance(error, Exception):
        return f"{type(error).__name__}: {text}"
    return None


def address_space_is_spent() -> bool:
    """Whether this process came within 2% of its limit of address space (RLIMIT_AS): what fails then may not say why."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/status")
    if limit == resource.RLIM_INFINITY or not status.exists():  # no limit, or a system without /proc
        return False
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmPeak"))
    return int(peak.split()[1]) * 1024 > 0.98 * limit


def require_address_space(num_bytes: int, what: str) -> None:
    """Refuse to begin what cannot end well: near its limit of address space CPython may look for memory in an endless loop."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < num_bytes:
        raise MemoryError(f"`ulimit -v` allows {limit / 2**30:.1f} GiB of address space; {what} needs {num_bytes / 2**30:.1f}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from: a library's own summary may hide what was lacking."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(text: str, default: str = "") -> str:
    """The first line of what was said that says something, not endless."""
    lines = [
        line for line in text.strip().splitlines() if not line.startswith("Exception from ")
    ]  # OpenVINO's places in its code
    return (lines or [default])[0][:300]

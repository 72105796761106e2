"""The process that watches over the one that works, and says what ended it where that could no longer speak.

A process that the kernel kills for want of memory, or that a C++ or Rust library aborts, has no last word: the user would see
«Killed», or nothing. So the command forks once, while it is light: the child works, the parent waits, hands on the signals it
is sent, and names the signal that ended the child. If the parent is killed, the kernel kills the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from foundation import console

_HANDED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_WATCHED = {*_HANDED_ON, signal.SIGCHLD}
_MEANING = {
    signal.SIGKILL: "killed; if nobody did that, the system ran out of memory: lower a batch_size, or free some memory",
    signal.SIGABRT: "aborted by a library, mostly for want of memory (see above): lower a batch_size, or free some memory",
    signal.SIGSEGV: "ended by an invalid access to memory inside a library, which may be a lack of memory",
    signal.SIGBUS: "ended because a page could not be read or written: is a disk, or memory, full?",
}
_PR_SET_PDEATHSIG = 1
_LOADER_CODE = 127  # glibc's dynamic loader ends a process with it when it cannot go on


def supervised(work: Callable[[], int], go_on: str) -> int:
    """The exit code of `work`, run in a child process; 128 + the signal's number if one ended it."""
    if not hasattr(signal, "sigwaitinfo"):  # a system without it (macOS)
        return work()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child == 0:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return work()
    code = _wait(child)
    if reason := ended_by(code):
        console.say(f"failed: {reason}; then {go_on}")
    if code == _LOADER_CODE:
        return 1
    return code if code >= 0 else 128 - code


def ended_by(code: int) -> str | None:
    """What an exit code (of a signal: minus its number) says of the end of a process that could say nothing itself."""
    if code == _LOADER_CODE:
        return "ended while a library was loaded (see above), mostly for want of memory: free some"
    if code >= 0 or (name := signal.Signals(-code)) not in _MEANING:
        return None
    return f"{_MEANING[name]} ({name.name})"


def _wait(child: int) -> int:
    """Wait for the child; its exit code, or minus the signal that ended it."""
    while True:
        found = signal.sigwaitinfo(_WATCHED)
        if found.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        elif found.si_pid:  # 0: from the terminal, which sends it to the child as well
            os.kill(child, found.si_signo)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

"""What the user sees: messages and progress bars on standard error, one JSON object as the last line of standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def say(message: str) -> None:
    """A line for the person watching."""
    print(f"[recdistill] {message}", file=sys.stderr, flush=True)


def one_line(text: str, limit: int = 600) -> str:
    """What a stranger's file says, fit to be shown: one line, no control characters, not endless."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:limit])
    return shown + " …" * (len(text) > limit)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """A progress bar; where no terminal shows it, at most a line every 15 s."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    interval_s = 0.1 if watched else 15.0
    bar = tqdm(iterable, description, total, mininterval=interval_s, delay=interval_s, dynamic_ncols=watched, leave=False)
    return iter(bar)


def bytes_bar(description: str, total: int | None) -> Any:
    """A tqdm bar to `update` by bytes, as a context manager; where no terminal shows it, at most a line every 15 s."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    interval_s = 0.1 if watched else 15.0
    shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False, "dynamic_ncols": watched}
    return tqdm(desc=description, total=total, mininterval=interval_s, delay=interval_s, **shown)


def result(value: dict[str, Any]) -> None:
    """A stage's result: the last line of standard output, one JSON object (no NaN)."""
    print(json.dumps(value, allow_nan=False), flush=True)

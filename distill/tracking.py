"""Where a training run reports, beside the terminal: TensorBoard's event files where they are asked for, else nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.artifact import Unavailable


class Tracker:
    """Keeps nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note values by name after so many steps; a resumed run notes some steps again."""

    def close(self) -> None:
        """Nothing comes after this."""


class TensorBoard(Tracker):
    """Writes a folder that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Unavailable("TensorBoard is not installed; `pip install -e .[tensorboard]`") from None
        self.writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def open_tracker(folder: Path | None) -> Tracker:
    """TensorBoard in `folder`, or nothing."""
    return TensorBoard(folder) if folder else Tracker()

"""What a training leaves to look at: a CSV file and, where installed, TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path


class Log:
    """Appends rows of figures to `log.csv` and TensorBoard events in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.csv"
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._events = None
        else:
            self._events = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, **figures: float) -> None:
        """Add one row; the first row of a new file names the columns."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(["step", *figures])
            rows.writerow([step, *(f"{value:.6g}" for value in figures.values())])
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

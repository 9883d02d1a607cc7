"""What `batch`, `watch` and `serve` say on stderr: lines for people, or a JSON object a line for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mri_qpan.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, message, and what `extra={"fields": …}` held."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name.rpartition(".")[2]),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


class _ConsoleHandler(logging.Handler):
    """Lines above a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def start_logging(kind: str, console: Console | None = None) -> None:
    """Send what this package logs to stderr.

    Parameters
    ----------
    kind
        One of `FORMATS`.
    console
        Where a progress bar stands, which lines of text go above.

    Raises
    ------
    InputError
        If the kind is another.
    """
    if kind not in FORMATS:
        raise OptionError(f"--log-format {kind}: choose {' or '.join(FORMATS)}")
    handler: logging.Handler
    if kind == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
    else:
        handler = logging.StreamHandler() if console is None else _ConsoleHandler(console)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("mri_qpan")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)

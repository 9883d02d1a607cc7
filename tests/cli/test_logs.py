import json
import logging
from collections.abc import Iterator
from datetime import datetime
from io import StringIO

import pytest
from rich.console import Console

from mri_qpan.cli.logs import start_logging
from mri_qpan.errors import InputError


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """This package's logger, as it was afterwards."""
    logger = logging.getLogger("mri_qpan")
    before = logger.handlers, logger.level
    yield logging.getLogger("mri_qpan.recon.serving.server")
    logger.handlers, logger.level = before


def test_json_lines(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("json")
    logger.info("%s\nis done", "a", extra={"event": "done", "fields": {"file": "\udce9", "images": 2}})
    try:
        raise ValueError("a bug")
    except ValueError:
        logger.exception("127.0.0.1: session failed")
    done, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(done.pop("time")).utcoffset() is not None
    assert done == {"level": "info", "event": "done", "message": "a\nis done", "file": "\udce9", "images": 2}
    assert (failed["level"], failed["event"]) == ("error", "server")
    assert "ValueError: a bug" in failed["traceback"]


def test_text(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("text")
    logger.info("listening [1]")
    assert capsys.readouterr().err.endswith(" listening [1]\n")
    console = Console(file=StringIO(), width=20)
    start_logging("text", console)
    logger.info("a long line [red] above a progress bar")
    assert console.file.getvalue().endswith("a long line [red] above a progress bar\n")  # type: ignore[attr-defined]


def test_another_format() -> None:
    with pytest.raises(InputError, match="--log-format xml: choose text or json"):
        start_logging("xml")

"""The few exceptions that this package raises on purpose.

The command line turns each into one line and the exit code that stands with it.
"""

from collections.abc import Sequence
from typing import ClassVar

PART_FAILED = 4
"""Exit code of a command that worked some of its inputs and not others."""


class MriQpanError(Exception):
    """Something went wrong that the user can act on: the message says what, where and what to do."""

    exit_code: ClassVar[int] = 1


class ReconError(MriQpanError):
    """A reconstruction failed although its input was understood."""


class InputError(MriQpanError):
    """The input cannot be used: unreadable, inconsistent or of a kind that is not supported."""

    exit_code = 3


class OptionError(InputError):
    """An option has a value that no input could be reconstructed with."""

    exit_code = 2


class ModelError(MriQpanError):
    """A model file is missing, damaged or of another architecture than its header says."""

    exit_code = 3


class UnknownModelError(ModelError):
    """An option names a model that is not there."""

    exit_code = 2


class TrainingStoppedError(MriQpanError):
    """A signal ended a training; its checkpoint is written, and the same command goes on."""

    exit_code = 143


def exit_code(failures: Sequence[MriQpanError], inputs: int) -> int:
    """Return the exit code of a command some of whose `inputs` failed: the failures' own if all did."""
    if len(failures) < inputs:
        return PART_FAILED
    codes = {failure.exit_code for failure in failures}
    return codes.pop() if len(codes) == 1 else MriQpanError.exit_code

"""The few exceptions that this package raises on purpose.

The command line turns each into one line and the exit code that stands with it.
"""

from typing import ClassVar


class MriQpanError(Exception):
    """Something went wrong that the user can act on: the message says what, where and what to do."""

    exit_code: ClassVar[int] = 1


class ReconError(MriQpanError):
    """A reconstruction failed although its input was understood."""


class InputError(MriQpanError):
    """The input cannot be used: unreadable, inconsistent or of a kind that is not supported."""

    exit_code = 3


class ModelError(MriQpanError):
    """A model file is missing, damaged or of another architecture than its header says."""

    exit_code = 3

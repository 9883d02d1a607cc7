"""The one exception of this package."""


class MaskError(ValueError):
    """A mask cannot be made, read or written as asked: one line says what, where and what to do."""

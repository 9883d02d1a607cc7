"""MRD over a socket: ismrmrd's own framing, with every length bounded and the header kept as it was sent."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from typing import Any

from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer, ProtocolSerializer

from mri_qpan.errors import InputError

LARGEST_MESSAGE = (
    2**28
)  # bytes of any one part of a message: 128 channels of 65535 samples would be a quarter
LARGEST_TEXT = 2**24
CONFIG_FILE = 1024  # bytes of a config's name, always
CHUNK = 2**20
DECLARED = re.compile(rb"(\s*<\?xml[^>]*encoding=[\"'])([A-Za-z][\w.-]*)")

__all__ = ["ConfigFile", "ConfigText", "HeaderText", "MrdReader", "MrdWriter", "head_of"]


def head_of(item: Any) -> bytes:
    """Return the header of an acquisition or a waveform: `getHead` takes 100 times as long to copy it."""
    return bytes(item._head)


class HeaderText(str):
    """The ISMRMRD header (XML) of a session."""


class _Stream:
    """The reading end of a socket: exactly as many bytes as asked for, or an `InputError`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.most = LARGEST_MESSAGE
        self.waits: Callable[[], bool] = lambda: False

    def read(self, count: int) -> bytes:
        """Return `count` bytes; fewer only where the peer has left between two messages."""
        if count > self.most:
            raise InputError(f"a message of {count} bytes is beyond any of MRD's: not MRD, or damaged")
        # Memory follows what arrives, whatever was announced.
        found = bytearray()
        while len(found) < count:
            try:
                part = self._connection.recv(min(CHUNK, count - len(found)))
            except TimeoutError as error:
                if self.waits():
                    continue
                raise TimeoutError(f"nothing came for {self._connection.gettimeout():g} s") from error
            if not part:
                if not found and count == 2:
                    return b""
                raise InputError("the connection ended in the middle of a message")
            found += part
        return bytes(found)


class MrdReader(ProtocolDeserializer):
    """Yields what a peer sends (`deserialize`): ends at CLOSE.

    Parameters
    ----------
    connection
        The socket.
    waits
        Says, when the peer has been silent for the socket's timeout, whether to wait on.
    """

    def __init__(self, connection: socket.socket, waits: Callable[[], bool] = lambda: False) -> None:
        self._source = _Stream(connection)
        self._source.waits = waits
        super().__init__(self._source)

    def __iter__(self) -> Any:
        """Yield every message.

        Raises
        ------
        InputError
            If the bytes are no MRD, or end without CLOSE.
        OSError
            If the connection breaks or stalls.
        """
        try:
            yield from self.deserialize()
        except EOFError as error:
            raise InputError("the peer left without CLOSE") from error
        except (OSError, InputError):
            raise
        except Exception as error:  # ismrmrd's parsers fail in many ways on damaged messages
            raise InputError(f"not MRD, or damaged: {' '.join(str(error).split())[:160]}") from error

    def _deserialize_ismrmrd_header(self) -> Any:
        # Headers in the wild are not always valid: mrd_header reads them leniently, ismrmrd does not.
        return HeaderText(self._deserialize_text())

    def _deserialize_config_file(self) -> ConfigFile:
        # What stands behind the first NUL is whatever was in the peer's buffer.
        return ConfigFile(_decoded(self._source.read(CONFIG_FILE).partition(b"\0")[0]))

    def _deserialize_text(self) -> str:
        self._source.most = LARGEST_TEXT
        try:
            (length,) = struct.unpack("<I", self._source.read(4))
            return _decoded(self._source.read(length).partition(b"\0")[0])
        finally:
            self._source.most = LARGEST_MESSAGE


def _decoded(text: bytes) -> str:
    """Return a text, as XML in its own encoding says; what is no UTF-8 is taken for Latin-1 else."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        declared = DECLARED.match(text)
        name = declared[2].decode("ascii") if declared else "latin-1"
        try:
            words = text.decode(name)
        except (LookupError, UnicodeDecodeError):
            words = text.decode("latin-1")
        # Whoever writes it on writes UTF-8.
        return words if declared is None else words[: declared.start(2)] + "UTF-8" + words[declared.end(2) :]


class MrdWriter(ProtocolSerializer):
    """Sends messages (`serialize`) and CLOSE (`close`).

    Parameters
    ----------
    connection
        The socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(_Sink(connection))

    def serialize(self, obj: Any) -> None:
        """Send one message, in one piece."""
        if isinstance(obj, HeaderText):
            self._write_message_id(3)
            self._serialize_text(obj)
        else:
            super().serialize(obj)
        self._stream.flush()


class _Sink:
    """The writing end of a socket; a message leaves whole, or is the last."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._torn = False

    def write(self, data: Any) -> None:
        """Take a part of a message."""
        self._parts.append(bytes(data))

    def flush(self) -> None:
        """Send what was taken; the socket's timeout bounds how long the peer may read nothing of it.

        Raises
        ------
        OSError
            If it cannot be sent whole, and ever after: what followed would be taken for the rest of it.
        """
        parts, self._parts = self._parts, []
        if self._torn:
            raise BrokenPipeError("a message before was cut short")
        left = memoryview(b"".join(parts))
        self._torn = True
        try:
            while left:
                left = left[self._connection.send(left[:CHUNK]) :]
        except TimeoutError as error:
            raise TimeoutError(f"nothing was read for {self._connection.gettimeout():g} s") from error
        self._torn = False

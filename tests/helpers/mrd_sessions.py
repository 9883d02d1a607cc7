"""Sessions with an MRD server, said and checked."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ismrmrd
import numpy as np
import torch
from mrd_files import header_xml, lines, random_kspace

from mri_qpan.fourier import ifft_numpy
from mri_qpan.methods import Method, get_method
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving.mrd_stream import MrdReader, MrdWriter
from mri_qpan.recon.serving.turns import Turns

NY, NX = 24, 32
XML = header_xml((NX, NY, 1))
CPU = torch.device("cpu")


def zero_filled() -> Job:
    return Job(get_method("zero-filled"), CPU)


def broken() -> Job:
    def run(adjoint: Any, normal: Any) -> Any:
        raise RuntimeError("a bug")

    return Job(Method("broken", run), CPU)


@contextmanager
def computing() -> Iterator[Turns]:
    """Turns with a thread that computes."""
    turns = Turns()
    thread = threading.Thread(target=turns.compute)
    thread.start()
    try:
        yield turns
    finally:
        turns.end()
        thread.join(30)
        assert not thread.is_alive()


def flagged(kspace: np.ndarray, flag: int = ismrmrd.ACQ_LAST_IN_SLICE, **counters: Any) -> list[Any]:
    """The lines of k-space (coil, y, x), the last one flagged."""
    made = lines(kspace, **counters)
    made[-1].set_flag(flag)
    return made


def talk(address: tuple[str, int], *messages: Any, close: bool = True) -> list[Any]:
    """Say all messages, then listen to the end."""
    with socket.create_connection(address, timeout=30) as connection:
        writer = MrdWriter(connection)
        for message in messages:
            if isinstance(message, bytes):
                connection.sendall(message)
            else:
                writer.serialize(message)
        if close:
            writer.close()
        return list(MrdReader(connection))


def images(answer: list[Any]) -> list[Any]:
    return [m for m in answer if isinstance(m, ismrmrd.Image)]


def texts(answer: list[Any]) -> str:
    return "\n".join(m for m in answer if isinstance(m, str))


def expected(kspace: np.ndarray) -> np.ndarray:
    return np.abs(ifft_numpy(kspace, (-2, -1)))[0]


def assert_is(image: Any, kspace: np.ndarray) -> None:
    wanted = expected(kspace)
    pixels = image.data[0, 0].astype(float)
    assert np.abs(pixels / pixels.max() - wanted / wanted.max()).max() < 5e-3


KSPACE = random_kspace(1, NY, NX, seed=1)


SLICE = flagged(KSPACE)

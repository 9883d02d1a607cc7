"""Maps that are made while lines still arrive."""

import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_files import header_xml, lines, random_kspace
from mrd_sessions import CPU, computing, flagged

from mri_qpan.methods import Method, get_method
from mri_qpan.recon import prepare
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.painter import Painter
from mri_qpan.recon.serving.session import Lines, Session
from mri_qpan.recon.serving.turns import Turns

NY, NX = 64, 48
XML = header_xml((NX, NY, 1))
CALIBRATION = set(range(NY // 2 - 8, NY // 2 + 8))
UNIFORM = sorted(CALIBRATION | set(range(0, NY, 4)))
KSPACE = random_kspace(3, NY, NX)


def fed(session: Session, order: list[int], **counters: int) -> tuple[list[int], Lines]:
    """Feed an image's lines; return after how many its region was taken for complete, and the image."""
    early, done = [], []
    for number, acquisition in enumerate(flagged(KSPACE[:, order], **counters)):
        acquisition.idx.kspace_encode_step_1 = order[number]
        done += session.add(acquisition)
        if session.calibrated() is not None:
            early.append(number + 1)
    return early, done[0]


def test_the_first_line_beyond_the_centre_tells() -> None:
    early, _ = fed(Session(XML, "peer", 10**9), UNIFORM)
    assert early == [UNIFORM.index(NY // 2 + 8) + 2]  # which adjoins, and is taken too


def test_once_an_image_and_again_for_the_next() -> None:
    session = Session(XML, "peer", 10**9)
    assert [len(fed(session, UNIFORM, slice=s)[0]) for s in range(3)] == [1, 1, 1]


def test_an_order_that_cannot_be_foretold_is_let_be() -> None:
    session = Session(XML, "peer", 10**9)
    order = np.random.default_rng(3).permutation(NY).tolist()
    assert len(fed(session, order, slice=0)[0]) == 1
    assert fed(session, order, slice=1)[0] == []


def test_separate_calibration_is_complete_with_the_first_line() -> None:
    session = Session(XML, "peer", 10**9)
    for line in lines(KSPACE, range(24, 40), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]):
        session.add(line)
    assert fed(session, UNIFORM)[0] == [1]


@pytest.mark.parametrize("kind", ["averages", "slab"])
def test_what_is_not_foretold(kind: str) -> None:
    session = Session(XML, "peer", 10**9)
    made = lines(KSPACE[:, UNIFORM])
    for acquisition, y in zip(made, UNIFORM, strict=True):
        acquisition.idx.kspace_encode_step_1 = y
        acquisition.idx.average = int(kind == "averages")
        acquisition.idx.kspace_encode_step_2 = int(kind == "slab")
        session.add(acquisition)
        assert session.calibrated() is None


def test_maps_made_ahead_are_those_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken as they are: the whole image asks for no others."""
    session, painter = Session(XML, "peer", 10**9), Painter(Job(get_method("cg-sense"), CPU), XML, "peer")
    ahead: list[Lines] = []
    done: list[Lines] = []
    for number, acquisition in enumerate(flagged(KSPACE[:, UNIFORM])):
        acquisition.idx.kspace_encode_step_1 = UNIFORM[number]
        done += session.add(acquisition)
        ahead += [lines for lines in [session.calibrated()] if lines is not None]
    painter.begin(ahead[0])
    calls = []
    real = prepare._calibrated
    monkeypatch.setattr(prepare, "_calibrated", lambda *given: calls.append(given) or real(*given))
    (image,) = painter.paint(done[0], calls.append)
    assert image.data.any()
    assert not [call for call in calls if not isinstance(call, str)]


def test_images_come_before_what_is_done_ahead() -> None:
    order: list[str] = []
    begun, wait = threading.Event(), threading.Event()

    def first() -> None:
        order.append("first")
        begun.set()
        wait.wait(5)

    with computing() as turns:
        calls = [
            partial(turns.image, first),
            partial(turns.spare, lambda: order.append("ahead"), lambda: True),
            partial(turns.image, lambda: order.append("second")),
        ]
        threads = [threading.Thread(target=call) for call in calls]
        for thread in threads:
            thread.start()
            assert begun.wait(5)
            time.sleep(0.1)
        wait.set()
        for thread in threads:
            thread.join(10)
    assert order == ["first", "second", "ahead"]


def held(turns: Turns) -> tuple[threading.Event, threading.Thread]:
    """An image that is being computed until the event."""
    begun, wait = threading.Event(), threading.Event()
    image = threading.Thread(target=lambda: turns.image(lambda: begun.set() or wait.wait(5)))
    image.start()
    assert begun.wait(5)
    return wait, image


def test_what_is_done_ahead_gives_way() -> None:
    done: list[str] = []
    with computing() as turns:
        wait, image = held(turns)
        turns.spare(lambda: done.append("given up"), lambda: False)
        assert not turns._ahead  # nor are its samples kept
        wait.set()
        image.join(10)
        here = threading.get_ident()
        turns.spare(lambda: done.append("late"), lambda: threading.get_ident() == here)  # ends with its turn
        turns.spare(lambda: done.append("ahead"), lambda: True)
        with pytest.raises(ZeroDivisionError):
            turns.image(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            turns.spare(lambda: [][1 // 0], lambda: True)
        assert turns.image(lambda: 7) == 7
    assert done == ["ahead"]


def test_an_end_leaves_nobody_waiting() -> None:
    with computing() as turns:
        wait, image = held(turns)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(turns.image, lambda: "never")
            while not turns._images:
                time.sleep(0.01)
            turns.abandon()
            wait.set()
            with pytest.raises(CancelledError):
                waiting.result(10)
        image.join(10)
        with pytest.raises(RuntimeError, match="has ended"):
            turns.image(lambda: "later")


def test_samples_of_an_image_are_let_go() -> None:
    class Samples:
        pass

    with computing() as turns:
        samples = Samples()
        gone = weakref.ref(samples)
        assert turns.image(lambda given=samples: given is not None)  # type: ignore[misc]
        del samples
        deadline = time.monotonic() + 5
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone() is None


def test_one_thread_computes_for_all_sessions(
    serve: Callable[..., tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP threads of several that compute would be more than cores, and slow."""
    threads: list[int] = []
    real = Painter.begin

    def begin(painter: Painter, lines: Lines) -> None:
        threads.append(threading.get_ident())
        real(painter, lines)

    def noted() -> Job:
        def run(adjoint: Any, normal: Any) -> Any:
            threads.append(threading.get_ident())
            return adjoint

        threads.append(threading.get_ident())
        return Job(Method("noted", run), CPU)

    def one_client(address: tuple[str, int]) -> list[Any]:
        with socket.create_connection(address, timeout=30) as connection:
            writer = MrdWriter(connection)
            for message in (ConfigFile("default"), HeaderText(XML)):
                writer.serialize(message)
            for number, acquisition in enumerate(flagged(KSPACE[:, UNIFORM])):
                acquisition.idx.kspace_encode_step_1 = UNIFORM[number]
                writer.serialize(acquisition)
                time.sleep(0.3 if number == len(UNIFORM) - 3 else 0)  # its maps are made meanwhile
            writer.close()
            return [message for message in MrdReader(connection) if isinstance(message, ismrmrd.Image)]

    monkeypatch.setattr(Painter, "begin", begin)
    address = serve(jobs={"default": noted})
    with ThreadPoolExecutor() as pool:
        assert [len(images) for images in pool.map(one_client, [address] * 3)] == [1, 1, 1]
    assert len(threads) > 1 + 3  # maps were made ahead
    assert len(set(threads)) == 1

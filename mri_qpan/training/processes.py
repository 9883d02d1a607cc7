"""What the processes of one training agree on, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from mri_qpan.networks import Network


def rank() -> int:
    """Return this process's number; 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def agree(stop: bool, device: torch.device) -> bool:
    """Return whether any process wants to stop."""
    if not dist.is_initialized():
        return stop
    flag = torch.tensor(float(stop), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag > 0)


def average_gradients(network: Network[Any]) -> None:
    """Replace every process's gradients by their mean."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def quiet_worker(_: int) -> None:
    """Prepare a process that simulates measurements: one thread, and no stop of its own."""
    torch.set_num_threads(1)
    # The parent handles a stop; a worker that died first would end it with an error.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def stop_signal() -> Iterator[Event]:
    """Lend an event that SIGTERM and SIGINT set, so that the loop can save and leave.

    Outside the main thread, where Python lets nobody handle signals, nothing sets it.
    """
    stop = Event()
    if current_thread() is not main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

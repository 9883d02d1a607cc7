"""The training loop: one process a device, resumable, the same on a CPU and on GPUs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mri_qpan.errors import InputError, TrainingStoppedError
from mri_qpan.models import store
from mri_qpan.training.bank import Bank
from mri_qpan.training.processes import agree, quiet_worker, rank, stop_signal
from mri_qpan.training.ranges import ranges_of
from mri_qpan.training.recipe import Recipe
from mri_qpan.training.run import Run
from mri_qpan.training.simulate import Calibrate, Case, Simulation
from mri_qpan.training.validation import PUBLISHED_SPOKES, validation_cases

MEASURED, UNSEEN = 150, 10**6
"""Batches that the ranges of a model's card are taken from, and what sets their seed apart."""


@dataclass(frozen=True)
class Schedule:
    """When a training ends and what happens in between.

    Attributes
    ----------
    minutes
        End after this much training time even if steps remain; the learning rate falls accordingly.
    validate_every
        Minutes between validations.
    save_every
        Minutes between checkpoints.
    """

    minutes: float | None = None
    validate_every: float = 6.0
    save_every: float = 3.0


def train(
    recipe: Recipe,
    bank: Bank,
    folder: Path,
    *,
    device: torch.device,
    schedule: Schedule,
    init: Path | None = None,
    calibrate: Calibrate | None = None,
    report: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Path:
    """Train, or go on with, the network of `recipe` and return its model file.

    Parameters
    ----------
    recipe
        What to train.
    bank
        Training and validation images (`bank.build`).
    folder
        Where checkpoint, logs, validation images and the model (`<name>.safetensors`) go. A checkpoint
        found there is resumed.
    device
        CPU or a GPU. Under torchrun every process takes its own.
    schedule
        Time limits.
    init
        Model file to start from when there is no checkpoint.
    calibrate
        Estimates coil maps from simulated samples (see `simulate.Simulation`).
    report
        Called after each step with (step, steps, loss).

    Raises
    ------
    InputError
        If the bank lacks the recipe's data sets or images to validate on, or the checkpoint is damaged,
        belongs to another recipe, to this one with other settings, or to a training from another model.
    TrainingStoppedError
        If SIGTERM or SIGINT ended the training; its checkpoint is written.
    """
    missing = set(recipe.groups + recipe.validation) - set(bank.groups)
    if missing:
        raise InputError(
            f"the training data lack the sets {', '.join(sorted(missing))} of recipe {recipe.name}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, folder, device, init)
    data = _simulation(recipe, bank, recipe.seed + 1000 * rank(), recipe.steps, calibrate)
    cases = _cases(recipe, bank, calibrate) if rank() == 0 else []
    if rank() == 0 and not cases:
        raise InputError(
            'the training data hold no images to validate on (files called v_*, sets that end in "/val")'
        )
    run.judge_by(cases)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(run.step, recipe.steps),
        num_workers=1 if device.type == "cpu" else max(1, min(12, (os.cpu_count() or 2) - 2)),
        prefetch_factor=4,
        persistent_workers=False,
        worker_init_fn=quiet_worker,
    )
    started = last_save = last_validation = time.monotonic()
    before = run.seconds
    losses: list[float] = []
    with stop_signal() as stop:
        for case in loader:
            progress = run.step / recipe.steps
            if schedule.minutes is not None:
                progress = max(progress, run.seconds / 60 / schedule.minutes)
            if agree(progress >= 1 or stop.is_set(), device):
                break
            losses.append(run.advance(case.to(device), _learning_rate(recipe, run.step, progress)))
            now = time.monotonic()
            run.seconds = before + now - started
            report(run.step, recipe.steps, losses[-1])
            if rank() == 0 and (now - last_validation) / 60 >= schedule.validate_every:
                run.validate(cases, losses)
                losses, last_validation = [], time.monotonic()
            if rank() == 0 and (now - last_save) / 60 >= schedule.save_every:
                run.save()
                last_save = time.monotonic()
    if rank() == 0:
        run.save()
    if stop.is_set():
        raise TrainingStoppedError(
            f"stopped at step {run.step} of {recipe.steps}: the same command goes on from {folder}"
        )
    if rank() == 0:
        run.validate(cases, losses)
        if not recipe.published:
            note_ranges(run.model_file, recipe, bank, device, calibrate)
        run.save()
    return run.model_file


def note_ranges(
    file: Path, recipe: Recipe, bank: Bank, device: torch.device, calibrate: Calibrate | None
) -> None:
    """Write into a model's card what it met in training (`ranges.ranges_of`), from fresh simulations."""
    model = store.load(file, device, engine="float32")
    data = _simulation(recipe, bank, recipe.seed + UNSEEN, MEASURED, calibrate)
    ranges = ranges_of(model, (data[index] for index in range(MEASURED)), device)
    store.save(file, model, model.name, model.card | {"training": model.card["training"] | {"seen": ranges}})


def _simulation(recipe: Recipe, bank: Bank, seed: int, steps: int, calibrate: Calibrate | None) -> Simulation:
    return Simulation(
        bank.of(set(recipe.groups)),
        list(recipe.sizes),
        recipe.pixels,
        recipe.ratios,
        seed,
        steps,
        recipe.published,
        recipe.spokes,
        dict(zip(recipe.groups, recipe.shares, strict=True)) if recipe.shares else None,
        calibrate,
        recipe.noise,
        recipe.enlarge,
        recipe.turned,
        recipe.extracted,
    )


def _cases(recipe: Recipe, bank: Bank, calibrate: Calibrate | None) -> list[Case]:
    numbers = recipe.spokes or PUBLISHED_SPOKES
    brains = recipe.extracted > 0
    return validation_cases(bank, recipe.published, calibrate, recipe.validation, numbers, brains)


def _learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / recipe.warm_up)
    return recipe.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)

"""The training loop: one process a device, resumable, the same on a CPU and on GPUs."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from mri_qpan._version import __version__
from mri_qpan.benchmark.machine import processor
from mri_qpan.engines import inplace
from mri_qpan.errors import InputError
from mri_qpan.models import store
from mri_qpan.networks import Network, build
from mri_qpan.scaling import robust_scale
from mri_qpan.training.bank import Bank
from mri_qpan.training.log import Log
from mri_qpan.training.muon import Muon
from mri_qpan.training.ranges import ranges_of
from mri_qpan.training.recipe import Recipe
from mri_qpan.training.simulate import MAX_NOISE, Calibrate, Case, Simulation
from mri_qpan.training.validation import Score, evaluate, validation_cases

AVERAGING = 0.999
"""Decay of the running average of the weights, which is what is validated and kept."""

CLIP = 1.0

SCALARS = 10.0
"""Learning rate of thresholds, gates and powers, relative to the convolutions'."""

MEASURED, UNSEEN = 150, 10**6
"""Batches that the ranges of a model's card are taken from, and what sets their seed apart."""

PHASE = 0.1
"""Weight of the last image's complex error beside that of its magnitude, which is what people look at.

The least complex error alone leaves the magnitude too small wherever noise is as large as the signal: a
measured image has a noise floor, its complex expectation has none.
"""

TYPICAL_ERROR = 5e-3
"""Mean squared error of a typical start image at unit scale; see `_loss`."""


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
        If the bank lacks the recipe's data sets or the checkpoint belongs to another recipe.
    """
    missing = set(recipe.groups) - set(bank.groups)
    if missing:
        raise InputError(
            f"the training data lack the sets {', '.join(sorted(missing))} of recipe {recipe.name}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(recipe, folder, device, init)
    data = _simulation(recipe, bank, recipe.seed + 1000 * _rank(), recipe.steps, calibrate)
    cases = validation_cases(bank, recipe.published, calibrate) if _rank() == 0 else []
    stop = _StopSignal()
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(run.step, recipe.steps),
        num_workers=1 if device.type == "cpu" else max(1, min(12, (os.cpu_count() or 2) - 2)),
        prefetch_factor=4,
        persistent_workers=False,
        worker_init_fn=_quiet_worker,
    )
    started = last_save = last_validation = time.monotonic()
    before = run.seconds
    losses: list[float] = []
    for case in loader:
        progress = run.step / recipe.steps
        if schedule.minutes is not None:
            progress = max(progress, run.seconds / 60 / schedule.minutes)
        if _agree(progress >= 1 or stop.asked, device):
            break
        losses.append(run.advance(case.to(device), _learning_rate(recipe, run.step, progress)))
        now = time.monotonic()
        run.seconds = before + now - started
        report(run.step, recipe.steps, losses[-1])
        if _rank() == 0 and (now - last_validation) / 60 >= schedule.validate_every:
            run.validate(cases, losses)
            losses, last_validation = [], time.monotonic()
        if _rank() == 0 and (now - last_save) / 60 >= schedule.save_every:
            run.save()
            last_save = time.monotonic()
    if _rank() == 0:
        if not stop.asked:
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
        calibrate,
    )


class _Run:
    """Network, average, optimizer and counters: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, init: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.folder = folder
        self.device = device
        self.model_file = folder / f"{recipe.name}.safetensors"
        self.checkpoint = folder / "checkpoint.safetensors"
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf
        self.init: str | None = None
        self.steps_before, self.minutes_before = 0, 0.0
        self.network = build(recipe.network, inplace.fast_dtype(device))
        if not self.checkpoint.exists() and init is not None:
            self._start_from(init)
        self.teacher = self._teacher(init) if recipe.distillation else None
        self.network.to(device).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizers = _optimizers(self.network, recipe)
        self.log = Log(folder) if _rank() == 0 else None
        if self.checkpoint.exists():
            self._restore()
        if device.type != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++"))):
            self.network.compile_step()
        self.average.share_step(self.network)

    def advance(self, case: Case, learning_rate: float) -> float:
        """Take one optimizer step and return the loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["share"]
        count = min(self.recipe.constrained, self.recipe.network.layers)
        # Drawn from the step alone, so that a resumed training goes on as if it had not stopped.
        chooser = np.random.default_rng([self.recipe.seed, self.step])
        layers = chooser.choice(self.recipe.network.layers, count, replace=False)
        loss = _loss(self.network, case, frozenset(int(i) for i in layers), self.recipe, self.teacher)
        self.network.zero_grad()
        loss.backward()
        if dist.is_initialized():
            _average_gradients(self.network)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        if bool(torch.isfinite(norm)):  # else this batch would poison every weight
            for optimizer in self.optimizers:
                optimizer.step()
        self.network.follow()
        self.step += 1
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        return float(loss.detach())

    def validate(self, cases: list[Case], losses: list[float]) -> None:
        """Validate the averaged network, log, and keep its model file if it is the best yet."""
        # The scales that the weights were trained with: a fresh fit may find another minimum, 0.4 dB worse.
        for mean, value in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mean.copy_(value)
        score = evaluate(self.average, cases, self.device, self.folder / "validation.png")
        assert self.log is not None
        self.log.write(
            self.step,
            minutes=self.seconds / 60,
            loss=float(np.mean(losses)) if losses else math.nan,
            **score.figures(),
        )
        if score.psnr > self.best:
            self.best = score.psnr
            store.save(self.model_file, self.average, self.recipe.name, self._card(score))

    def save(self) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {}
        for prefix, network in (("network", self.network), ("average", self.average)):
            tensors |= {f"{prefix}.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        header = {
            "recipe": self.recipe.name,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "init": self.init,
            "steps_before": self.steps_before,
            "minutes_before": self.minutes_before,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file(tensors, temporary, {"run": json.dumps(header)})
        temporary.replace(self.checkpoint)

    def _restore(self) -> None:
        with safe_open(self.checkpoint, "pt", device=str(self.device)) as file:
            header = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["recipe"] != self.recipe.name:
            raise InputError(
                f"{self.checkpoint} belongs to recipe {header['recipe']}, not {self.recipe.name}; "
                "choose another output folder"
            )
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            network.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    _, _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds = header["step"], header["seconds"]
        self.best, self.init = header["best"], header["init"]
        self.steps_before, self.minutes_before = header["steps_before"], header["minutes_before"]

    def _start_from(self, path: Path) -> None:
        source = store.load(path)
        own = self.network.state_dict()
        weights = {k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape}
        # A quantizer's scale is fitted, carried features start shut, a noise floor starts as physics has it,
        # shares start equal.
        new = (".scale", ".carry", "floor", ".raw_shares")
        lacking = [k for k in own if k not in weights and not k.endswith(new)]
        if lacking:
            raise InputError(f"{path}: does not fit recipe {self.recipe.name} ({lacking[0]} differs)")
        self.network.load_state_dict(own | weights)
        self.network.refit()
        self.init = f"{source.name} {source.sha256[:12]}"
        earlier = source.card["training"]
        self.steps_before = earlier.get("steps", 0) + earlier.get("steps_before", 0)
        self.minutes_before = earlier.get("minutes", 0.0) + earlier.get("minutes_before", 0.0)

    def _teacher(self, path: Path | None) -> Network[Any]:
        if path is None:
            raise InputError(
                f"recipe {self.recipe.name} learns from the model that it starts from: give it with --init"
            )
        return store.load(path, self.device, engine="float32")

    def _card(self, score: Score) -> dict[str, Any]:
        cpu = f"{processor()}, {os.cpu_count()} cores"
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu
        return {
            "data": list(self.recipe.groups),
            "training": {
                "recipe": self.recipe.name,
                "steps": self.step,
                "planned_steps": self.recipe.steps,
                "minutes": round(self.seconds / 60, 1),
                "machine": where,
                "ratios": list(self.recipe.ratios),
                "matrices": [list(size) for size in self.recipe.sizes],
                "largest_noise": 0.0 if self.recipe.published else MAX_NOISE,
                "processes": dist.get_world_size() if dist.is_initialized() else 1,
                "init": self.init,
                "steps_before": self.steps_before,
                "minutes_before": round(self.minutes_before, 1),
                "version": __version__,
            },
            "figures": {"validation": score.figures()},
            "licence": "BSD-3-Clause; trained on the data sets listed, each under its own terms",
        }


def _optimizers(network: Network[Any], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, AdamW for the scalars and gates."""
    convolutions = [p for p in network.parameters() if p.ndim == 4]
    others = [p for p in network.parameters() if p.ndim < 4]
    return [
        Muon([{"params": convolutions, "share": 1.0}], lr=recipe.learning_rate),
        torch.optim.AdamW([{"params": others, "share": SCALARS}], lr=recipe.learning_rate, weight_decay=0.0),
    ]


def _loss(
    network: Network[Any],
    case: Case,
    constrained: frozenset[int],
    recipe: Recipe,
    teacher: Network[Any] | None,
) -> Tensor:
    """Eq. 9 at unit scale, each image weighted by how hard it is, earlier layers supervised a little.

    The last image of a complex network is asked for the target's magnitude, and a little for its phase.

    The weight is one over the error of the image that the network starts from, so that one coil at 15 % does
    not drown eight coils at 50 %.
    """
    encoding = case.encoding()
    adjoint = encoding.adjoint(case.kspace)
    scale = robust_scale(adjoint) if adjoint.is_complex() else adjoint.new_ones(())
    adjoint, target = adjoint / scale, case.target / scale
    images, constraint = network.forward_for_training(adjoint, encoding.normal, constrained)
    start, *layers = images
    weight = (TYPICAL_ERROR / _mean_square(start - target).clamp_min(1e-9)).clamp(0.1, 20.0)
    errors = [_mean_square(image - target) for image in reversed(layers)]
    if target.is_complex():
        errors[0] = PHASE * errors[0] + _mean_square(layers[-1].abs() - target.abs())
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(adjoint, encoding.normal)
        share = recipe.distillation
        errors[0] = (1 - share) * errors[0] + share * _mean_square(layers[-1] - taught)
    error = sum(
        (recipe.supervision**index * (weight * e).mean() for index, e in enumerate(errors)),
        torch.zeros_like(constraint),
    )
    return error + recipe.constraint * recipe.network.layers / max(1, len(constrained)) * constraint


def _mean_square(image: Tensor) -> Tensor:
    parts = torch.view_as_real(image) if image.is_complex() else image
    return parts.square().flatten(1).mean(1)


def _learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / recipe.warm_up)
    return recipe.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _agree(stop: bool, device: torch.device) -> bool:
    """Return whether any process wants to stop."""
    if not dist.is_initialized():
        return stop
    flag = torch.tensor(float(stop), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag > 0)


def _average_gradients(network: Network[Any]) -> None:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    # The parent handles a stop; a worker that died first would end it with an error.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can save and leave."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

"""A training under way: its network, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from mri_qpan._version import __version__
from mri_qpan.benchmark.machine import processor
from mri_qpan.engines import inplace
from mri_qpan.errors import InputError, ReconError
from mri_qpan.models import store
from mri_qpan.networks import Network, build
from mri_qpan.networks.config import NetworkConfig
from mri_qpan.training.log import Log
from mri_qpan.training.loss import loss_of
from mri_qpan.training.muon import Muon
from mri_qpan.training.processes import average_gradients, rank
from mri_qpan.training.recipe import Recipe
from mri_qpan.training.simulate import MAX_NOISE, Case
from mri_qpan.training.validation import Score, evaluate

AVERAGING = 0.999
"""Decay of the running average of the weights, which is what is validated and kept."""

CLIP = 1.0

SCALARS = 10.0
"""Learning rate of thresholds, gates and powers, relative to the convolutions'."""


class Run:
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
        self.best, self.judged_by = -math.inf, ""
        self.init: str | None = None
        self.steps_before, self.minutes_before, self.own_before = 0, 0.0, 0
        self.network = build(recipe.network, inplace.fast_dtype(device))
        if not self.checkpoint.exists() and init is not None:
            self._start_from(init)
        self.teacher = self._teacher(init) if recipe.distillation else None
        self.network.to(device).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizers = _optimizers(self.network, recipe)
        self.log = Log(folder) if rank() == 0 else None
        if self.checkpoint.exists():
            self._restore(init)
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
        loss = loss_of(self.network, case, frozenset(int(i) for i in layers), self.recipe, self.teacher)
        self.network.zero_grad()
        loss.backward()
        if dist.is_initialized():
            average_gradients(self.network)
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

    def judge_by(self, cases: list[Case]) -> None:
        """Take the validation cases, before the first step: the best model is the best by these."""
        digest = hashlib.sha256()
        for case in cases:
            for tensor in (case.kspace, case.mask, case.target):
                digest.update(tensor.numpy().tobytes())
        found = digest.hexdigest()[:16]
        if self.judged_by != found:
            self.best = -math.inf
        self.judged_by = found

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
            "settings": _settings(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "judged_by": self.judged_by,
            "init": self.init,
            "steps_before": self.steps_before,
            "own_steps_before": self.own_before,
            "minutes_before": self.minutes_before,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        try:
            temporary.write_bytes(serialize(tensors, {"run": json.dumps(header)}))
            temporary.replace(self.checkpoint)
        except OSError as error:
            raise ReconError(f"{self.checkpoint} could not be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _restore(self, init: Path | None) -> None:
        try:
            with safe_open(self.checkpoint, "pt", device=str(self.device)) as file:
                header = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{self.checkpoint} is damaged ({error}): remove it, and go on from the model with --init"
            ) from error
        if init is not None and header["init"] != _label(store.load(init)):
            began = f"from {header['init']}" if header["init"] else "at random"
            raise InputError(
                f"{self.checkpoint} began {began}, not from {init}: go on without --init, or choose another "
                "output folder"
            )
        if header["recipe"] != self.recipe.name:
            raise InputError(
                f"{self.checkpoint} belongs to recipe {header['recipe']}, not {self.recipe.name}; "
                "choose another output folder"
            )
        # Checkpoints of older versions do not tell their settings.
        settings = _settings(self.recipe)
        changed = [k for k, v in header.get("settings", settings).items() if settings.get(k) != v]
        if changed:
            raise InputError(
                f"{self.checkpoint} was trained with other settings of {self.recipe.name} "
                f"({', '.join(changed)}); choose another output folder, and go on from its model with --init"
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
            for parameter, held in optimizer.state.items():
                if any(v.ndim and v.shape != parameter.shape for v in held.values()):
                    raise InputError(
                        f"{self.checkpoint}: written by a version that ordered its parameters otherwise; "
                        "start another training from its model with --init"
                    )
        self.step, self.seconds = header["step"], header["seconds"]
        self.best, self.init = header["best"], header["init"]
        self.judged_by = header.get("judged_by", "")
        self.steps_before, self.minutes_before = header["steps_before"], header["minutes_before"]
        self.own_before = header.get("own_steps_before", 0)

    def _start_from(self, path: Path) -> None:
        source = store.load(path)
        own = self.network.state_dict()
        given = source.state_dict()
        if isinstance(source.config, NetworkConfig) and isinstance(self.recipe.network, NetworkConfig):
            _rename_penalties(given, source.config.penalties, self.recipe.network.penalties)
        weights = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
        # A quantizer's scale is fitted, carried features start shut, a noise floor starts as physics has it,
        # shares start equal, a new penalty's shape as configured.
        new = (".scale", ".carry", "floor", ".raw_shares", ".raw_gamma", ".raw_a")
        lacking = [k for k in own if k not in weights and not k.endswith(new)]
        if lacking:
            raise InputError(f"{path}: does not fit recipe {self.recipe.name} ({lacking[0]} differs)")
        self.network.load_state_dict(own | weights)
        self.network.refit()
        self.init = _label(source)
        earlier = source.card["training"]
        self.steps_before = earlier.get("steps", 0) + earlier.get("steps_before", 0)
        self.minutes_before = earlier.get("minutes", 0.0) + earlier.get("minutes_before", 0.0)
        if earlier.get("recipe") == self.recipe.name:
            self.own_before = earlier.get("steps", 0) + earlier.get("own_steps_before", 0)

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
                "spokes": list(self.recipe.spokes),
                "validation": list(self.recipe.validation),
                "matrices": [list(size) for size in self.recipe.sizes],
                "largest_noise": self.recipe.noise if self.recipe.published else MAX_NOISE,
                "processes": dist.get_world_size() if dist.is_initialized() else 1,
                "init": self.init,
                "steps_before": self.steps_before,
                "own_steps_before": self.own_before,
                "minutes_before": round(self.minutes_before, 1),
                "version": __version__,
            },
            "figures": {"validation": score.figures()},
            "licence": "BSD-3-Clause; trained on the data sets listed, each under its own terms",
        }


def _label(model: Network[Any]) -> str:
    return f"{model.name} {model.sha256[:12]}"


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what a resumed training must share with the one before; its length and pace may change."""
    values = asdict(recipe)
    for name in ("steps", "learning_rate", "warm_up"):
        del values[name]
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _rename_penalties(weights: dict[str, Tensor], old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Sort thresholds and shares by penalty, in place.

    A penalty that the old network lacks starts at the mean of its raw thresholds; shares then start equal.
    """
    for name, value in list(weights.items()):
        if name.endswith(".raw_thresholds"):
            weights[name] = torch.stack([value[old.index(p)] if p in old else value.mean() for p in new])
        if name.endswith(".raw_shares"):
            if set(old) == set(new):
                weights[name] = value[[old.index(p) for p in new]]
            else:
                del weights[name]


def _optimizers(network: Network[Any], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, AdamW for the scalars and gates, and for learned functions' values."""
    kinds: dict[int, list[Tensor]] = {}
    for p in network.parameters():
        kinds.setdefault(4 if p.ndim == 4 else 2 if p.ndim == 2 else 0, []).append(p)
    others = [{"params": kinds[0], "share": SCALARS}]
    if 2 in kinds:
        others.append({"params": kinds[2], "share": 1.0})  # neighbours lie 0.02 apart
    return [
        Muon([{"params": kinds[4], "share": 1.0}], lr=recipe.learning_rate),
        torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=0.0),
    ]

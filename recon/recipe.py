"""How to reconstruct a file, in plain values: to be compared, stored and sent to another process."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mri_qpan import models
from mri_qpan._version import __version__
from mri_qpan.errors import OptionError
from mri_qpan.methods import Method, find_device, get_method, method_names
from mri_qpan.recon.compression import Number
from mri_qpan.recon.job import Job
from mri_qpan.recon.maps import load_maps
from mri_qpan.recon.partial_fourier import check_mode
from mri_qpan.recon.readers.array_trajectory import Trajectory
from mri_qpan.recon.study import Undersampling, is_mask_file
from mri_qpan.recon.writers import DEFAULT, find_formats


@dataclass(frozen=True)
class Recipe:
    """What `Job` holds, by name.

    Attributes
    ----------
    method
        See `methods.get_method`.
    undersample
        KIND:RATIO[:SEED] or a mask's file (see `study.Undersampling`).
    maps
        File of coil sensitivities (see `maps.load_maps`).
    formats
        See `writers.find_formats`.
    device
        See `methods.find_device`.
    compress, dims, hard_dc, partial_fourier, strict, phase, memory, report, replicas
        As in `Job`.
    """

    method: str = models.DEFAULT
    undersample: str | None = None
    maps: Path | None = None
    formats: tuple[str, ...] = DEFAULT
    device: str = "auto"
    compress: Number = "auto"
    dims: str | None = None
    hard_dc: bool = False
    partial_fourier: str = "auto"
    strict: bool = False
    phase: bool = False
    memory: int | None = None
    report: bool = False
    replicas: int = 0

    def job(self) -> Job:
        """Load the method and whatever else is named.

        Raises
        ------
        InputError
            If a name or a value cannot be used.
        ModelError
            If the model's file cannot.
        """
        if self.replicas == 1:
            raise OptionError("--uncertainty 1: a standard deviation needs at least 2 reconstructions")
        device = find_device(self.device)
        formats = find_formats(self.formats)
        return Job(
            method=get_method(self.method, device),
            device=device,
            undersampling=None if self.undersample is None else Undersampling.parse(self.undersample),
            mps=None if self.maps is None else load_maps(self.maps),
            compress=self.compress,
            hard_dc=self.hard_dc,
            partial_fourier=check_mode(self.partial_fourier),
            strict=self.strict,
            phase=self.phase,
            memory=self.memory,
            report=self.report,
            replicas=self.replicas,
            dims=self.dims,
            formats=formats,
        )

    def resolved(self) -> Recipe:
        """Return the recipe with absolute paths, for a process that may run in another folder."""
        method = self.method
        file, colon, function = method.rpartition(":")
        if file.endswith(".py"):
            method = f"{Path(file).absolute()}{colon}{function}"
        elif method not in method_names() and (method.endswith(".safetensors") or os.sep in method):
            method = str(Path(method).absolute())
        dims, trajectory = self.dims, self._trajectory_file()
        if dims is not None and trajectory is not None:
            axes, _, words = dims.partition("@")
            dims = f"{axes}@{trajectory.absolute()}:{words.rpartition(':')[2]}"
        maps = None if self.maps is None else self.maps.absolute()
        mask = None if self._mask_file() is None else str(Path(self.undersample or "").absolute())
        return replace(self, method=method, maps=maps, dims=dims, undersample=mask or self.undersample)

    def _mask_file(self) -> Path | None:
        """Return the file whose content is the mask: of BART's two, the one with the samples."""
        if self.undersample is None or not is_mask_file(self.undersample):
            return None
        path = Path(self.undersample)
        return path.with_suffix(".cfl") if path.suffix == ".hdr" else path

    def _trajectory_file(self) -> Path | None:
        """Return the .npy file that `dims` names, if it does."""
        _, at, words = (self.dims or "").partition("@")
        name = Trajectory.parse(words).name if at else ""
        return Path(name) if name.endswith(".npy") else None

    def digest(self, method: Method) -> str:
        """Return 64 hexadecimal digits that change with whatever changes the outputs, files' contents too.

        Parameters
        ----------
        method
            That of `job()`. Where it has no hash of its own, a function's file is hashed; a classical method
            is known by its name and this package's version.
        """
        file = self.method.rpartition(":")[0]
        code = _sha256(Path(file)) if file.endswith(".py") else None
        trajectory, mask = self._trajectory_file(), self._mask_file()
        known = [
            __version__,
            method.name,
            method.sha256 or code,
            self.undersample,
            None if self.maps is None else _sha256(self.maps),
            None if trajectory is None else _sha256(trajectory),
            None if mask is None else _sha256(mask),
            sorted(self.formats),
            [self.compress, self.dims, self.hard_dc, self.strict, self.report, self.replicas],
            [self.partial_fourier, self.phase, self.memory, self.device],
        ]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""`mri-qpan serve`: MRD over TCP beside a scanner."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mri_qpan.cli import options
from mri_qpan.cli.logs import start_logging
from mri_qpan.errors import InputError, OptionError

if TYPE_CHECKING:
    import torch

    from mri_qpan.recon.job import Job

DEFAULT = "default"
CONFIG_KEYS = {"method": (str,), "coils": (int, str), "hard_dc": (bool,), "partial_fourier": (str,)}

EPILOG = """
A config is a name that the client sends (a path or suffix around it does not matter): `default`, the name of
a method (qpan+-1bit, wavelet, …), `null` and `savedataonly`, which make no images, or NAME for a NAME.toml in
--config-dir, which may hold

  method = "qpan+-3bit"

  coils = 12

  hard_dc = true

  partial_fourier = "none"

as the options of `mri-qpan recon` say; left out, coils and partial_fourier are "auto".
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("serve", epilog=EPILOG)(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 9002,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", metavar="NAME", help="Of the config `default`; as in `mri-qpan recon`."
        ),
    ] = None,
    config_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The site's own configs, NAME.toml each.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep what is received, an ISMRMRD file a session that grows by whole slices.",
        ),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Sessions at once; more wait.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Images to reconstruct at once.")] = 1,
    patience: Annotated[
        float, typer.Option(min=1, max=1e6, metavar="SECONDS", help="How long a client may be silent.")
    ] = 120.0,
    memory: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1e6,
            metavar="GIB",
            help="Samples a session may hold before an image is complete; also of its whole matrix.",
        ),
    ] = 4.0,
    device: options.Device = "auto",
    log_format: options.LogFormat = "text",
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = "127.0.0.1",
) -> None:
    """Reconstruct what scanners or other clients send as MRD over TCP, as they send it.

    An image goes back as soon as its last line is there. Ctrl-C or SIGTERM: no more clients, and sessions in
    hand are finished.
    """
    from mri_qpan import models
    from mri_qpan.methods import find_device
    from mri_qpan.recon.files import check_output_folder
    from mri_qpan.recon.metrics import ServerMeter, metered
    from mri_qpan.recon.serving.server import Server, Settings, warm_up

    if not host.strip():
        raise OptionError("--host is empty, which is every network's address: say 0.0.0.0 if that is meant")
    if method is not None and config_dir is not None and (config_dir / f"{DEFAULT}.toml").is_file():
        raise OptionError(f"--method, and {DEFAULT}.toml in {config_dir}: the default is one of them")
    start_logging(log_format)
    place = find_device(device)
    if save is not None:
        check_output_folder(save)
    jobs = _jobs(models.DEFAULT if method is None else method, config_dir, place)
    default = jobs[DEFAULT]()  # wrong names end here, not at the first client
    jobs[DEFAULT] = lambda: default
    warm_up(default)
    with metered(ServerMeter, metrics_host, metrics_port) as meter:
        settings = Settings(
            jobs=jobs,
            default=DEFAULT,
            host=host,
            port=port,
            save=save,
            patience=patience,
            clients=clients,
            memory=round(memory * 2**30),
            workers=workers,
            meter=meter,
        )
        try:
            server = Server(settings)
        except OSError as error:
            raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error

        def stop(signum: int, frame: FrameType | None) -> None:
            server.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        typer.echo("mri-qpan: listening on {}:{}, configs {}".format(*server.address, ", ".join(jobs)))
        server.serve()
        typer.echo("mri-qpan: every session has ended")


def config_names(method: str, folder: Path | None) -> list[str]:
    """Return what clients can ask for, the default first; raises `InputError` as `serve` does."""
    import torch

    return list(_jobs(method, folder, torch.device("cpu")))


def _jobs(method: str, folder: Path | None, device: torch.device) -> dict[str, Callable[[], Job]]:
    """Return the reconstructions by config name: fixed names, and the site's files, read now."""
    from mri_qpan.methods import method_names
    from mri_qpan.recon.serving.conversation import DRAINING

    jobs: dict[str, Callable[[], Job]] = {DEFAULT: partial(_job, {"method": method}, device)}
    jobs |= {name: partial(_job, {"method": name}, device) for name in method_names()}
    if folder is None:
        return jobs
    if not folder.is_dir():
        raise InputError(f"--config-dir {folder}: no such folder")
    for path in sorted(folder.glob("*.toml")):
        if path.stem in DRAINING:
            raise InputError(f"{path}: {path.stem} takes everything and makes no image: choose another name")
        config = {"method": method} | _read(path)
        name = config["method"]
        if name not in method_names() and not Path(name.rpartition(":")[0] or name).is_file():
            raise InputError(f"{path}: no method or file called {name!r}")
        jobs[path.stem] = partial(_job, config, device)
    return jobs


def _read(path: Path) -> dict[str, Any]:
    from mri_qpan.recon.compression import parse_number
    from mri_qpan.recon.partial_fourier import check_mode

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    for key, value in found.items():
        if key not in CONFIG_KEYS:
            raise InputError(f"{path}: unknown key {key!r}: choose from {', '.join(CONFIG_KEYS)}")
        if type(value) not in CONFIG_KEYS[key]:
            kinds = " or a ".join(kind.__name__ for kind in CONFIG_KEYS[key])
            raise InputError(f"{path}: {key} is a {kinds}, not {value!r}")
    try:
        parse_number(found.get("coils", "auto"))
        check_mode(found.get("partial_fourier", "auto"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def _job(config: dict[str, Any], device: torch.device) -> Job:
    from mri_qpan.methods import get_method
    from mri_qpan.recon.compression import parse_number
    from mri_qpan.recon.job import Job

    return Job(
        get_method(config["method"], device),
        device,
        compress=parse_number(config.get("coils", "auto")),
        hard_dc=config.get("hard_dc", False),
        partial_fourier=config.get("partial_fourier", "auto"),
    )

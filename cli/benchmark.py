"""`mri-qpan benchmark`: measured comparisons with SigPy, BART and the classical solvers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mri_qpan.cli.benchmark_batch import batch
from mri_qpan.cli.benchmark_soak import soak
from mri_qpan.cli.benchmark_speed import speed
from mri_qpan.errors import InputError, OptionError

if TYPE_CHECKING:
    from mri_qpan.benchmark.peers import Method
    from mri_qpan.benchmark.real import Compared

STEM = "benchmark-real"

Inputs = Annotated[
    list[Path], typer.Argument(help="Fully sampled 2-D k-space files, grey images, or folders of images.")
]
Masks = Annotated[str, typer.Option(help="Comma-separated masks, each KIND:RATIO[:SEED].")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables (Markdown and JSON).")]
Figures = Annotated[
    Path | None, typer.Option(help="Folder for a PNG a file, with error maps; none without it.")
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated methods instead of all: names from the table, .safetensors files, or"
        " FILE.py:FUNCTION."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Images to take of each folder.")]
Rounds = Annotated[
    int, typer.Option(min=0, help="Timed rounds through all methods, after the warm-up; 0 times nothing.")
]
Evaluations = Annotated[
    int, typer.Option(min=1, help="Reconstructions spent on tuning a classical method on a case.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every method.")]
Tuned = Annotated[
    list[Path] | None,
    typer.Option(help="JSON of an earlier run, its tuned parameters to be taken where they fit; repeatable."),
]

Dims = Annotated[
    str | None, typer.Option(metavar="NAME,NAME...", help="Axes of .npy and .mat files, as for recon.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    verbs = typer.Typer(help="Compare with SigPy, BART and the classical solvers.", no_args_is_help=True)
    verbs.command("real")(real)
    verbs.command("brain")(brain)
    verbs.command("serve")(serve)
    verbs.command("soak")(soak)
    verbs.command("batch")(batch)
    verbs.command("speed")(speed)
    app.add_typer(verbs, name="benchmark")


def real(
    inputs: Inputs,
    output: Output,
    masks: Masks = "lines:0.25,lines:0.33,random2d:0.20",
    figures: Figures = None,
    methods: Methods = None,
    count: Count = 2,
    rounds: Rounds = 1,
    evaluations: Evaluations = 4,
    threads: Threads = 1,
    tuned: Tuned = None,
    dims: Dims = None,
) -> None:
    """Undersample full measurements and compare every method's image, with the reference and by the clock.

    Classical methods are tuned for the PSNR of every slice; BART takes part where it is installed.
    """
    from mri_qpan.benchmark import machine, report
    from mri_qpan.benchmark.real import compare
    from mri_qpan.recon.cases import cases, names_of
    from mri_qpan.recon.files import check_output_folder, output_folder, staged

    check_output_folder(output)
    if figures is not None:
        check_output_folder(figures)
    known = {key: found for path in tuned or [] for key, found in report.read_tuned(path).items()}
    chosen = _choose(methods, threads)
    specs = [spec.strip() for spec in masks.split(",")]
    prepared = [
        case
        for path, name in zip(inputs, names_of(inputs), strict=True)
        for case in cases(path, specs, count=count, dims=dims, name=name)
    ]
    with progress_bar(len(prepared) * len(chosen) * (1 + rounds)) as advance:
        compared = compare(
            prepared,
            chosen,
            rounds=rounds,
            evaluations=evaluations,
            threads=threads,
            tuned=known,
            progress=advance,
        )
    results = report.to_json(
        compared,
        chosen,
        command=shlex.join(["mri-qpan", *sys.argv[1:]]),
        machine=machine.describe(threads),
        settings={"rounds": rounds, "evaluations": evaluations},
    )
    with staged(output_folder(output)) as stage:
        (stage / f"{STEM}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (stage / f"{STEM}.md").write_text(report.to_markdown(results), encoding="utf-8")
    if figures is not None:
        with staged(output_folder(figures)) as stage:
            _draw(compared, chosen, stage)
    _print(results)
    typer.echo(f"Tables by mask and input, and all values: {output / STEM}.md and .json")


def brain(
    images: Annotated[Path, typer.Argument(help="Folder of 8-bit grey test images of one size.")],
    output: Output,
    masks: Annotated[Path, typer.Option(help="Folder with the published masks, mask_20.mat and so on.")],
    ratios: Annotated[str, typer.Option(help="Comma-separated percents of samples.")] = "20,30,40,50",
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated models instead of all that ship or were fetched; names or files."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Take the first images only.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for charts and a case with error maps; none without it.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Repeat the published experiment: real images, pseudo-radial masks, one coil.

    Models for complex images take part too, on the same samples.
    """
    from mri_qpan import models
    from mri_qpan.benchmark import brain as protocol
    from mri_qpan.benchmark import machine
    from mri_qpan.benchmark.charts import charts, check_matplotlib
    from mri_qpan.recon.cases import read_masks, read_pictures
    from mri_qpan.recon.files import check_output_folder, output_folder, staged

    check_output_folder(output)
    if figures is not None:
        check_output_folder(figures)
        check_matplotlib()
    pictures = read_pictures(images, count)
    chosen = read_masks(masks, ratios, pictures[0].image.shape)
    names = models.list_models() if methods is None else [name.strip() for name in methods.split(",")]
    loaded = [(models.load_model(name), models.model_path(name).stat().st_size) for name in names]
    contenders = [protocol.zero_filled(), *protocol.contenders(loaded)]
    with progress_bar(len(pictures) * len(chosen)) as advance:
        results = protocol.compare(pictures, chosen, contenders, threads=threads, progress=advance)
    results["command"] = shlex.join(["mri-qpan", *sys.argv[1:]])
    results["machine"] = machine.describe(threads)
    report = protocol.to_markdown(results)
    with staged(output_folder(output)) as stage:
        (stage / "brain.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (stage / "brain.md").write_text(report, encoding="utf-8")
    if figures is not None:
        with staged(output_folder(figures)) as stage:
            for name, chart in charts(results, protocol.published(results)).items():
                chart.savefig(stage / f"{name}.png", dpi=130)
            sheet = protocol.example(pictures, chosen, contenders, results)
            sheet.save(stage / "brain-case.png", optimize=True)
    typer.echo(report.partition("## Masks")[0])
    typer.echo(f"All values: {output / 'brain.json'}")


def serve(
    file: Annotated[Path, typer.Argument(help="ISMRMRD raw data of one image.")],
    output: Output,
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients at once.")] = "1,2,4,8",
    slices: Annotated[int, typer.Option(min=1, max=8, help="Slices that each client sends.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Images that the server reconstructs at once.")] = 1,
    interval: Annotated[
        float,
        typer.Option(min=0, help="Seconds that a slice takes; 0: as fast as the server takes them."),
    ] = 0.0,
    method: Annotated[str | None, typer.Option("--method", "-m", help="As in `mri-qpan recon`.")] = None,
) -> None:
    """Let many clients at once send slices to `mri-qpan serve`: latency, throughput, memory, correctness."""
    from mri_qpan import models
    from mri_qpan.benchmark import machine
    from mri_qpan.recon import load
    from mri_qpan.recon.files import check_output_folder, output_folder, staged

    check_output_folder(output)
    words = [word.strip() for word in clients.split(",")]
    if not all(word.isdecimal() and 0 < int(word) <= 64 for word in words):
        raise OptionError(f"--clients {clients}: numbers from 1 to 64, separated by commas")
    name = models.DEFAULT if method is None else method
    with progress_bar(len(words)) as advance:
        found = load.load(file, name, [int(word) for word in words], slices, workers, interval, advance)
    report = load.to_markdown(
        found, file, name, workers, shlex.join(["mri-qpan", *sys.argv[1:]]), machine.describe(0)
    )
    with staged(output_folder(output)) as stage:
        (stage / "benchmark-serve.md").write_text(report, encoding="utf-8")
    typer.echo(report)


def _choose(names: str | None, threads: int) -> list[Method]:
    """Return SigPy's and BART's methods and all shipped models, or those of `names`."""
    from mri_qpan import models
    from mri_qpan.benchmark import peers

    classical = peers.classical(threads)
    known = {method.name: method for method in [*classical, *peers.own_solvers()]}
    everybody = [*[method.name for method in classical], *models.list_models(channels=2)]
    wanted = everybody if names is None else [name.strip() for name in names.split(",")]
    chosen = [known[name] if name in known else _network(name, [*known]) for name in wanted]
    called = [method.name for method in chosen]
    for number, method in enumerate(chosen):
        if called.count(method.name) > 1:
            if wanted.count(wanted[number]) > 1:
                raise OptionError(f"--methods names {wanted[number]} twice")
            chosen[number] = replace(method, name=f"{method.name} ({wanted[number]})")
    if not any(method.classical for method in chosen):
        raise OptionError("--methods names no classical method to compare with: add zero-filled at least")
    return chosen


def _network(name: str, classical: list[str]) -> Method:
    from mri_qpan.benchmark import peers
    from mri_qpan.methods import get_method

    try:
        method = get_method(name)
    except InputError as error:
        raise type(error)(f"--methods: {error}; and, to compare with, {', '.join(classical)}") from error
    stated = {} if method.sha256 is None else {"sha256": method.sha256[:12], "engine": method.engine}
    return peers.network(method.name, method.run, **stated)


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[str], None]]:
    """Show on a terminal how far a measurement is; call what is yielded with what is done next."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        started = False

        def show(words: str) -> None:
            nonlocal started
            bar.update(task, description=words, advance=int(started))
            started = True

        yield show


def _draw(compared: Sequence[Compared], methods: Sequence[Method], folder: Path) -> None:
    """Draw the first slice and mask of every input: zero-filled, the best classical, the networks."""
    from mri_qpan.benchmark.figures import comparison

    networks = [method.name for method in methods if not method.classical]
    drawn: set[str] = set()
    for entry in compared:
        if entry.case.group in drawn:
            continue
        drawn.add(entry.case.group)
        psnr = {outcome.method: outcome.metrics["psnr"] for outcome in entry.outcomes}
        best = max((name for name in psnr if name not in networks), key=lambda name: psnr[name])
        shown = dict.fromkeys(["zero-filled", best, *networks])
        images = [
            (f"{name}  {psnr[name]:.2f} dB", entry.images[name]) for name in shown if name in entry.images
        ]
        file = folder / f"{entry.case.group.replace('/', '_')}.png"
        comparison(entry.case.reference, images).save(file, optimize=True)


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mri_qpan.benchmark.report import clock, rows

    table = Table(title="Mean over all inputs and masks")
    table.add_column("method")
    for name in ("PSNR / dB", "SSIM", "NMSE", "HFEN", "s a slice", "gain / dB"):
        table.add_column(name, justify="right")
    for row in rows(results):
        table.add_row(
            row.method,
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.nmse:.4f}",
            f"{row.hfen:.3f}",
            clock(row),
            f"{row.gain:+.2f}",
            style=None if row.classical else "bold",
        )
    Console().print(table)

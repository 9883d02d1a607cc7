"""`mri-qpan benchmark speed`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mri_qpan.errors import OptionError

PARTS = ("engines", "bart", "starts", "commands", "sizes")
STEM = "benchmark-speed"
START_ROUNDS = 3


def speed(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for Markdown, JSON and charts.")],
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads.")] = "1,2",
    models: Annotated[
        str | None,
        typer.Option(help="Comma-separated models instead of all complex ones known here; names or files."),
    ] = None,
    matrix: Annotated[
        int, typer.Option(min=32, max=1024, help="Matrix of the phantom's slice, a square.")
    ] = 256,
    file: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Fully sampled 2-D k-space to take in the phantom's place, its first slice."
        ),
    ] = None,
    mask: Annotated[str, typer.Option(help="Mask, KIND:RATIO[:SEED].")] = "lines:0.25",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds through all engines.")] = 7,
    parts: Annotated[str, typer.Option(help="Comma-separated parts to measure.")] = ",".join(PARTS),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for charts (the extra `figures`); none without it.")
    ] = None,
) -> None:
    """Measure what a reconstruction costs: every engine, BART beside it, cold starts, cost against size.

    Takes some minutes on two cores. Leave the machine alone meanwhile.
    """
    from importlib.metadata import PackageNotFoundError, version

    from mri_qpan import models as shipped
    from mri_qpan.benchmark import machine
    from mri_qpan.benchmark.charts import check_matplotlib
    from mri_qpan.benchmark.speed import charts, report
    from mri_qpan.cli.benchmark import progress_bar
    from mri_qpan.recon.files import check_output_folder, output_folder, staged

    counts = _counts(threads)
    wanted = [part.strip() for part in parts.split(",")]
    if not set(wanted) <= set(PARTS):
        raise OptionError(f"--parts {parts}: choose from {', '.join(PARTS)}")
    names = [name.strip() for name in models.split(",")] if models else shipped.list_models(channels=2)
    for name in names:
        shipped.load_model(name)
    check_output_folder(output)
    if figures is not None:
        check_output_folder(figures)
        check_matplotlib()
    with progress_bar(None) as advance:
        advance("the measurement")
        case = _case(file, matrix, mask)
        results: dict[str, Any] = {
            "command": shlex.join(["mri-qpan", *sys.argv[1:]]),
            "machine": machine.describe(threads),
            "settings": {
                "threads": counts,
                "rounds": rounds,
                "matrix": list(case.mask.shape),
                "sized": shipped.DEFAULT if shipped.DEFAULT in names else names[0],
            },
        }
        for runtime in ("onnxruntime", "openvino"):
            with suppress(PackageNotFoundError):
                results["machine"][runtime] = version(runtime)
        results |= _measure(
            wanted, case, names, counts, rounds, results["settings"]["sized"], matrix, advance
        )
    with staged(output_folder(output)) as stage:
        (stage / f"{STEM}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (stage / f"{STEM}.md").write_text(report.to_markdown(results), encoding="utf-8")
    if figures is not None:
        with staged(output_folder(figures)) as stage:
            for name, chart in charts.charts(results).items():
                chart.savefig(stage / f"{name}.png", dpi=130)
    typer.echo(report.to_markdown(results))
    typer.echo(f"All values: {output / STEM}.json")


def _measure(
    parts: list[str],
    case: Any,
    names: list[str],
    threads: list[int],
    rounds: int,
    sized: str,
    matrix: int,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """Return the parts asked for, in the order of the report."""
    import tempfile

    from mri_qpan.benchmark.speed import coils, engines, problem, processes

    found: dict[str, Any] = {}
    single = problem.single_coil(case)
    most = threads[-1]
    if "starts" in parts:  # before this process has warmed the disk's cache more than it must
        found["starts"] = processes.starts(names, single, most, advance)
    if "commands" in parts:
        whole = problem.Problem(case.kspace, case.mps, case.mask)
        found["commands"] = processes.commands(whole, START_ROUNDS, advance)
    if "sizes" in parts:
        found["sizes"] = processes.sizes(sized, case.mask_spec, most, processes.series(matrix), advance)
    if "engines" in parts:
        with tempfile.TemporaryDirectory(prefix="mri-qpan-") as folder:
            entries, skipped = engines.contenders(names, single, threads, Path(folder))
            rows, failed = engines.measure(entries, rounds, advance)
        found["engines"] = {"rows": rows, "skipped": skipped + failed}
    if "bart" in parts:
        found["bart"] = coils.beside_bart(case, names, threads, max(1, rounds // 2), advance)
    return found


def _case(file: Path | None, matrix: int, mask: str) -> Any:
    """Return the user's slice, or the phantom's."""
    from mri_qpan.benchmark.speed.problem import head_case
    from mri_qpan.recon.cases import cases
    from mri_qpan.sampling_masks import MaskError

    if file is not None:
        return next(cases(file, [mask], count=1))
    try:
        return head_case((matrix, matrix), 8, mask)
    except MaskError as error:
        raise OptionError(f"--mask {mask}: {error}") from error


def _counts(threads: str) -> list[int]:
    words = [word.strip() for word in threads.split(",")]
    if not all(word.isdecimal() and 0 < int(word) <= 256 for word in words):
        raise OptionError(f"--threads {threads}: numbers from 1 to 256, separated by commas")
    return sorted({int(word) for word in words})

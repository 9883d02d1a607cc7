import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sigpy as sp
from PIL import Image

from mri_qpan.cli import main

Run = Callable[..., tuple[int, str, str]]
METHODS = ("--methods", "zero-filled,CG-SENSE (SigPy),TV (ours)", "--evaluations", "2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `mri-qpan benchmark`: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mri-qpan", "benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.run()
        said = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, said.out, said.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    phantoms = tmp_path / "phantoms"
    phantoms.mkdir()
    for n, size in enumerate([(48, 40), (40, 48)]):
        grey = (200 * np.abs(sp.shepp_logan(size))).astype(np.uint8)
        Image.fromarray(grey).save(phantoms / f"{n}.png")
    return phantoms


def test_real(run: Run, folder: Path, tmp_path: Path) -> None:
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    masks = "lines:0.5,random2d:0.4"
    code, out, _ = run("real", folder, "--masks", masks, *METHODS, "-o", tables, "--figures", figures)
    assert code == 0
    assert "zero-filled" in out
    assert "benchmark-real" in out
    results = json.loads((tables / "benchmark-real.json").read_text())
    assert len(results["cases"]) == 4
    assert results["command"].startswith("mri-qpan benchmark real")
    assert "## random2d:0.4" in (tables / "benchmark-real.md").read_text()
    assert sorted(p.name for p in tables.iterdir()) == ["benchmark-real.json", "benchmark-real.md"]
    with Image.open(figures / "phantoms.png") as picture:
        assert picture.width == 3 * 40  # the reference, zero-filled and the best one


def test_methods_of_one_name_are_told_apart(run: Run, folder: Path, tmp_path: Path) -> None:
    for name, gain in (("a", 0.5), ("b", 1)):
        text = f"def reconstruct(adjoint, normal):\n    return {gain} * adjoint\n"
        (tmp_path / f"{name}.py").write_text(text)
    both = [f"{tmp_path}/{name}.py:reconstruct" for name in "ab"]
    arguments = ("real", folder / "0.png", "--masks", "lines:0.5", "--rounds", "0", "-o", tmp_path / "out")
    code, _, _ = run(*arguments, "--methods", ",".join(["zero-filled", *both]))
    assert code == 0
    rows = (tmp_path / "out" / "benchmark-real.md").read_text().splitlines()
    half, whole = (next(r.split("|")[2:4] for r in rows if r.startswith("|") and n in r) for n in both)
    zero = next(r.split("|")[2:4] for r in rows if r.startswith("| zero-filled"))
    assert whole == zero != half
    code, _, errors = run(*arguments, "--methods", ",".join(["zero-filled", both[0], both[0]]))
    assert code == 2
    assert "twice" in errors


def test_tuned_parameters_are_used_again(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ("real", folder / "0.png", "--masks", "lines:0.5", *METHODS, "--rounds", "0")
    assert run(*arguments, "-o", tmp_path / "first")[0] == 0
    first = json.loads((tmp_path / "first" / "benchmark-real.json").read_text())
    first["cases"][0]["outcomes"][2]["parameters"]["lamda"] = 0.123
    (tmp_path / "changed.json").write_text(json.dumps(first))
    assert run(*arguments, "-o", tmp_path / "second", "--tuned", tmp_path / "changed.json")[0] == 0
    second = json.loads((tmp_path / "second" / "benchmark-real.json").read_text())
    assert second["cases"][0]["outcomes"][2]["parameters"]["lamda"] == 0.123


@pytest.mark.parametrize(
    ("arguments", "words", "ends"),
    [
        (["0.png", "--methods", "magic"], "no method called 'magic'", 2),
        (["0.png", "--methods", "missing.safetensors"], "missing.safetensors", 3),
        (["0.png", "--masks", "spots:0.5"], "spots", 2),
        (["0.png", "--masks", "lines"], "lines", 2),
        (["missing.png"], "missing.png", 3),
        (["0.png", "--tuned", "0.png"], "not the JSON file", 3),
    ],
)
def test_bad_input_ends_in_one_line(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str, ends: int
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = run("real", *arguments, "-o", "tables")
    assert code == ends
    assert words in err
    assert err.count("\n") == 1
    assert not list(Path("tables").glob("*"))


def test_help_names_the_options(run: Run) -> None:
    code, out, _ = run("real", "--help")
    assert code == 0
    assert "--tuned" in out


@pytest.mark.parametrize("verb", ["real", "brain", "serve", "soak", "batch", "speed"])
def test_a_failure_leaves_no_folder(run: Run, tmp_path: Path, verb: str) -> None:
    gone: tuple[str | Path, ...] = (tmp_path / "gone.h5",)
    gone = ("--input", *gone) if verb == "speed" else gone
    more = ("--masks", tmp_path) if verb == "brain" else ()
    code, _, said = run(verb, *gone, *more, "-o", tmp_path / "new" / "tables")
    assert (code, "gone.h5" in said) == (3, True)
    assert list(tmp_path.iterdir()) == []

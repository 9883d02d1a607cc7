"""Kinds of masks that another package brings."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mri_qpan.sampling_masks import KINDS, MaskError, kind_names, make_mask, parse_spec

CODE = """
import numpy as np
from mri_qpan.sampling_masks import MaskError

def comb(shape, ratio, calib, seed):
    if calib is not None:
        raise MaskError("a comb has no calibration lines")
    mask = np.zeros(shape, bool)
    mask[..., seed % 2 :: round(1 / ratio), :] = True
    return mask

def wrong(shape, ratio, calib, seed):
    return np.ones((3, 3), bool)

def number(shape, ratio, calib, seed):
    return np.ones(shape)

def empty(shape, ratio, calib, seed):
    return np.zeros(shape, bool)

def failing(shape, ratio, calib, seed):
    return 1 / 0
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "lab_masks.py").write_text(CODE)
    info = tmp_path / "lab_masks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-masks\nVersion: 1.0\n")
    names = ("comb", "wrong", "number", "empty", "failing", "missing")
    points = [f"{name} = lab_masks:{name}" for name in names] + ["lines = lab_masks:wrong"]
    (info / "entry_points.txt").write_text("\n".join(["[mri_qpan.masks]", *points]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("lab_masks", None)


def test_a_kind_of_another_package(plugin: Path) -> None:
    assert parse_spec("comb:4x:1") == ("comb", 0.25, 1)
    mask = make_mask("comb", (1, 8, 6), 0.25, seed=1)
    assert np.flatnonzero(mask[0, :, 0]).tolist() == [1, 5]
    with pytest.raises(MaskError, match="a comb has no calibration lines"):
        make_mask("comb", (8, 6), 0.25, calib=4)


def test_the_packages_own_kinds_come_first(plugin: Path) -> None:
    assert kind_names() == [*KINDS, "comb", "empty", "failing", "missing", "number", "wrong"]
    assert make_mask("lines", (64, 64), 0.5).shape == (64, 64)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wrong", r"returned bool of shape \(3, 3\), not bool of \(8, 6\)"),
        ("number", r"returned float64 of shape \(8, 6\)"),
        ("empty", "without a sample"),
        ("failing", "'failing' failed: ZeroDivisionError: division by zero"),
        ("missing", "'missing' failed: AttributeError"),
    ],
)
def test_what_is_wrong_with_it_is_said(plugin: Path, kind: str, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        make_mask(kind, (8, 6), 0.25)


def test_arguments_are_checked_before_it_is_called(plugin: Path) -> None:
    for shape, ratio, seed in (((0, 4), 0.5, 0), ((8, 6), 1.5, 0), ((8, 6), 0.5, -1)):
        with pytest.raises(MaskError, match=r"(sizes from 1|at most at 1|seed)"):
            make_mask("comb", shape, ratio, seed=seed)


def test_unknown_kinds_are_told_the_choices(plugin: Path) -> None:
    with pytest.raises(MaskError, match="partial, comb, empty"):
        parse_spec("cmob:4x")

"""Readers and writers that another package brings."""

import sys
from pathlib import Path

import numpy as np
import pytest
from mrd_files import random_kspace

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Image, ImageSeries
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers import FORMATS, find_formats

CODE = """
import numpy as np
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.readers import KSpaceStream
from mri_qpan.recon.writers import Format

def read(path):
    data = np.load(path)
    mask = np.ones(data.shape[1:], bool)
    return KSpaceStream([Index()], iter([KSpace(data, mask, mask.shape, Geometry((1.0, 1.0, 1.0)))]), None)

def write(path, series):
    path.write_text(str(len(series.images)))

counter = Format(".count", write)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lab_formats.py").write_text(CODE)
    info = tmp_path / "lab_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mri_qpan.readers]\n.lab = lab_formats:read\n[mri_qpan.writers]\ncount = lab_formats:counter\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("lab_formats", None)


def test_a_reader_of_another_package(plugin: Path) -> None:
    kspace = random_kspace(2, 1, 4, 4)
    with (plugin / "scan.lab").open("wb") as file:
        np.save(file, kspace)
    (image,) = open_kspace(plugin / "scan.lab")
    np.testing.assert_array_equal(image.data, kspace)


def test_a_writer_of_another_package(plugin: Path) -> None:
    formats = find_formats(["png", "count"])
    assert formats["png"] is FORMATS["png"]
    image = Image(np.ones((1, 2, 2), np.complex64), Geometry((1.0, 1.0, 1.0)))
    formats["count"].write(plugin / "a.count", ImageSeries([image], None, {}))
    assert (plugin / "a.count").read_text() == "1"


def test_unknown_formats() -> None:
    with pytest.raises(InputError, match="no format called 'jpeg': choose from ismrmrd, nifti"):
        find_formats(["png", "jpeg"])

"""The load test of the MRD server, small."""

from pathlib import Path

import numpy as np
import pytest
from mrd_files import header_xml, lines, random_kspace, write

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.load import Load, _Client, load, to_markdown, wrong_images

XML = header_xml((32, 24, 1))


def test_two_clients(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", XML, lines(random_kspace(1, 24, 32)))
    (found,) = load(path, "zero-filled", [2], 3, 1)
    assert (found.clients, found.slices, found.wrong) == (2, 3, 0)
    assert len(found.latencies) == 6
    assert min(found.latencies) > 0
    page = to_markdown([found], path, "zero-filled", 1, "mri-qpan benchmark serve", {"processor": "P"})
    assert "| 2 | 6 |" in page


def test_images_of_another_slice_are_noticed() -> None:
    reference = np.arange(12.0).reshape(3, 4) * 100
    client = _Client(received={0: (0.0, reference), 1: (0.0, reference)})
    assert wrong_images(client, reference, 2) == 1


def test_files_and_servers_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", XML, lines(random_kspace(1, 24, 32), slice=1))
    with pytest.raises(InputError, match="one image many times"):
        load(path, "zero-filled", [1], 1, 1)
    path = write(tmp_path / "2.h5", XML, lines(random_kspace(1, 24, 32)))
    with pytest.raises(ReconError, match="did not start"):
        load(path, "no such method", [1], 1, 1)
    assert Load(1, 1, 0.0, 1.0, [1.0], None, 0).memory_mib is None

"""What the reader says of files that it cannot use, whatever is wrong with them."""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from mrd_files import (
    KSPACE,
    NX,
    NY,
    XML,
    header_xml,
    limit_xml,
    line,
    lines,
    random_kspace,
    refused,
    write,
)

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import hdf5, hdf5_worker, open_kspace
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.ismrmrd import IsmrmrdFile


class TestBadInput:
    def test_no_such_file(self, path):
        assert "no such file" in refused(path)

    def test_not_hdf5(self, path):
        path.write_bytes(b"not an HDF5 file at all")
        assert "not an HDF5 file" in refused(path)

    def test_directory(self, path):
        path.mkdir()
        assert "a folder" in refused(path)

    def test_empty_hdf5(self, path):
        h5py.File(path, "w").close()
        assert "it holds nothing" in refused(path)

    def test_another_kind_of_hdf5(self, path):
        with h5py.File(path, "w") as file:
            file["kspace"] = np.zeros(3)
        assert "kspace" in refused(path)

    def test_images_instead_of_raw_data(self, path):
        with h5py.File(path, "w") as file:
            for name in ("data", "header", "attributes"):
                file[f"dataset/{name}"] = np.zeros(3)
        assert "without ISMRMRD or fastMRI raw data (it holds dataset)" in refused(path)

    def test_numbers_instead_of_acquisitions(self, path):
        with h5py.File(path, "w") as file:
            file["dataset/data"] = np.zeros(3)
            file["dataset/xml"] = "<a/>"
        assert "without ISMRMRD or fastMRI raw data" in refused(path)

    def test_no_acquisitions(self, path):
        with h5py.File(path, "w") as file:
            file.create_dataset("dataset/data", (0,), ismrmrd.hdf5.acquisition_dtype)
            file["dataset/xml"] = XML
        assert "no acquisitions" in refused(path)

    def test_no_header(self, path):
        assert "no ISMRMRD header" in refused(write(path, None, lines(KSPACE)))

    def test_no_imaging_acquisitions(self, path):
        acquisitions = lines(KSPACE, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        assert f"{NY} noise" in refused(write(path, XML, acquisitions))

    def test_line_outside_the_matrix(self, path):
        message = refused(write(path, XML, [*lines(KSPACE), line(KSPACE[:, 0], ky=NY, counter=77)]))
        assert "scan counter 77" in message
        assert "along y" in message

    def test_partition_outside_the_matrix(self, path):
        volume = random_kspace(1, 4, NY, NX)
        assert "along z" in refused(write(path, header_xml((NX, NY, 2)), lines(volume)))

    def test_readout_outside_the_matrix(self, path):
        assert "along x" in refused(write(path, header_xml((NX - 2, NY, 1)), lines(KSPACE)))

    def test_everything_discarded(self, path):
        assert "discards" in refused(write(path, XML, lines(KSPACE, pre=NX, post=0)))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1j * np.nan, 1e30])
    def test_samples_that_are_not_numbers(self, path, value):
        bad = KSPACE.copy()
        bad[1, 4, 2] = value
        assert "scan counter 4" in refused(write(path, XML, lines(bad)))

    @pytest.mark.parametrize("trajectory", ["radial", "spiral", "epi", "goldenangle", "other"])
    def test_not_cartesian(self, path, trajectory):
        assert trajectory in refused(
            write(path, header_xml((NX, NY, 1), trajectory=trajectory), lines(KSPACE))
        )

    def test_channels_that_change(self, path):
        message = refused(
            write(path, XML, [*lines(KSPACE, rows=range(5)), line(KSPACE[:1, 5], ky=5, counter=9)])
        )
        assert "scan counter 9" in message
        assert "channels" in message

    def test_noise_scan_of_other_channels(self, path):
        noise = line(random_kspace(3, 100), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        assert "3 channels" in refused(write(path, XML, [noise, *lines(KSPACE)]))

    @pytest.mark.parametrize(
        ("matrix", "words"),
        [
            ((60000, 60000, 60000), "are beyond any scan"),
            ((8192, 8192, 1), "were acquired for a matrix of 1 x 8192 x 8192"),
            ((NX, 60000, 1), f"were acquired for a matrix of 1 x 60000 x {NX}"),
        ],
    )
    def test_absurd_matrix(self, path, matrix, words):
        header = header_xml(matrix, limits=limit_xml("kspace_encoding_step_1", 9, 4))
        assert words in refused(write(path, header, lines(KSPACE)))

    @pytest.mark.parametrize("x", [0, -8, 10**9])
    def test_impossible_matrix(self, path, x):
        limits = limit_xml("kspace_encoding_step_1", NY - 1, NY // 2)
        header = header_xml((x, NY, 1), recon=(NX, NY, 1), fov=(1, 1, 1), limits=limits)
        assert f"impossible matrix size {x} x {NY} x 1" in refused(write(path, header, lines(KSPACE)))

    @pytest.mark.parametrize("x", ["8.5", "x", "1e999"])
    def test_matrix_that_is_no_number(self, path, x):
        header = header_xml((x, NY, 1), recon=(NX, NY, 1), fov=(1, 1, 1))
        assert f"should be a whole number, it is '{x}'" in refused(write(path, header, lines(KSPACE)))

    @pytest.mark.parametrize(
        ("xml", "words"),
        [
            ("", "is not valid XML"),
            ("<a", "is not valid XML"),
            ("plain words", "is not valid XML"),
            ("<ismrmrdHeader/>", "has no <encoding>"),
            ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "has no <encoding>"),
        ],
    )
    def test_unusable_header(self, path, xml, words):
        assert words in refused(write(path, xml, lines(KSPACE)))

    def test_unknown_encoding(self, path):
        assert "encoding 4" in refused(write(path, XML, lines(KSPACE, encoding=4)))

    def test_header_and_samples_disagree(self, path):
        write(path, XML, lines(KSPACE))
        with h5py.File(path, "r+") as file:
            rows = file["dataset/data"][:]
            rows["head"]["number_of_samples"][3] = NX - 1
            file["dataset/data"][:] = rows
        assert "acquisition 3" in refused(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, path, share):
        write(path, XML, lines(KSPACE))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "damaged or truncated" in refused(path)


def attending(process: Hdf5Process) -> int:
    """Return the process that has the file: a fork, where the system tells of it."""
    children = Path(f"/proc/{process._process.pid}/task/{process._process.pid}/children")
    return int(children.read_text().split()[0]) if children.is_file() else process._process.pid


class TestProcess:
    """The HDF5 library works in a process of its own: its crashes and hangs end in an `InputError`."""

    def test_crash(self, path):
        process = Hdf5Process(write(path, XML, lines(KSPACE)))
        os.kill(attending(process), signal.SIGSEGV)
        with pytest.raises(InputError, match="crashed or hung"):
            IsmrmrdFile(process).samples(np.arange(2))

    def test_hang(self, path, monkeypatch):
        process = Hdf5Process(write(path, XML, lines(KSPACE)))
        monkeypatch.setattr(hdf5, "PATIENCE", 0.05)
        os.kill(attending(process), signal.SIGSTOP)
        with pytest.raises(InputError, match="crashed or hung"):
            IsmrmrdFile(process).samples(np.arange(2))

    def test_a_process_that_hangs_ends_by_itself(self, path, monkeypatch):
        """Whoever waited for it may have been killed."""
        script = (
            "import sys, time, h5py\n"
            f"sys.path.insert(0, {str(Path(hdf5_worker.__file__).parent)!r})\n"
            "import hdf5_worker as worker\n"
            "worker.LONGEST = 1\n"
            "h5py.File = lambda *given: time.sleep(60)\n"
            "worker.serve_files(sys.stdin.buffer, sys.stdout.buffer)\n"
        )
        request = json.dumps({"open": str(write(path, XML, lines(KSPACE)))}).encode() + b"\n"
        subprocess.run([sys.executable, "-P", "-c", script], input=request, check=True, timeout=30)

    @pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are read as Linux tells them")
    def test_a_process_takes_no_more_than_its_file_can_need(self, path):
        """HDF5 asks for as many bytes as a damaged chunk's size says: 4 GiB of a file of 7 kB were seen."""
        process = Hdf5Process(write(path, XML, lines(KSPACE)))
        folder = Path("/proc") / str(attending(process))
        (limit,) = re.findall(r"Max address space +(\d+)", (folder / "limits").read_text())
        used = int((folder / "statm").read_text().split()[0]) * resource.getpagesize()
        assert 2**28 < int(limit) - used <= 2**29 + 8 * path.stat().st_size

    def test_file_is_free_after_the_last_image(self, path):
        list(open_kspace(write(path, XML, lines(KSPACE))))
        h5py.File(path, "w").close()

    def test_two_files_at_once(self, path):
        first = open_kspace(write(path, XML, lines(KSPACE)))
        second = open_kspace(write(path.with_name("2.h5"), XML, lines(2 * KSPACE)))
        np.testing.assert_array_equal(next(second).data, 2 * next(first).data)

    def test_file_is_free_after_an_unfinished_stream(self, path):
        stream = open_kspace(write(path, XML, lines(KSPACE) + lines(KSPACE, slice=1)))
        next(stream)
        del stream
        gc.collect()
        h5py.File(path, "w").close()

    def test_process_ends_with_an_unread_stream(self, path):
        stream = open_kspace(write(path, XML, lines(KSPACE)))
        process = stream._images.gi_frame.f_locals["file"]._process._process
        del stream
        gc.collect()
        assert process.poll() is not None

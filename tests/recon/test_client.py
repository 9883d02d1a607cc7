"""The MRD client against our server, and against servers that fail."""

import resource
import socket
import threading
from pathlib import Path

import h5py
import ismrmrd
import pytest
from mrd_files import line, random_kspace, write
from mrd_sessions import CPU, KSPACE, XML, assert_is, flagged

from mri_qpan.errors import InputError, ReconError
from mri_qpan.methods import get_method
from mri_qpan.recon.client import send
from mri_qpan.recon.job import Job


class TestSend:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        noise = line(random_kspace(1, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        made = [noise, *flagged(KSPACE, slice=0), *flagged(2 * KSPACE, slice=1)]
        return write(tmp_path / "scan.h5", XML, made)

    def test_images_are_saved(self, serve, raw: Path, tmp_path: Path) -> None:
        assert send(raw, serve(), "default", tmp_path / "out.h5") == 2
        with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", mode="r") as dataset:
            found = [dataset.read_image("image_1", i) for i in range(dataset.number_of_images("image_1"))]
            assert "ismrmrdHeader" in dataset.read_xml_header().decode()
        assert [image.slice for image in found] == [0, 1]
        assert_is(found[1], KSPACE)

    @pytest.mark.parametrize("config", ["broken", "null"])
    def test_failures_leave_nothing(self, serve, raw: Path, tmp_path: Path, config: str) -> None:
        with pytest.raises(ReconError):
            send(raw, serve(), config, tmp_path / "out.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]

    def test_no_server(self, raw: Path, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        with pytest.raises(ReconError, match="refused"):
            send(raw, address, "default", tmp_path / "out.h5")

    def test_a_server_that_leaves(self, raw: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=lambda: listener.accept()[0].close())
            thread.start()
            with pytest.raises(ReconError):
                send(raw, listener.getsockname(), "default", tmp_path / "out.h5")
            thread.join()

    def test_a_server_that_says_nothing(self, raw: Path, tmp_path: Path) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            pytest.raises(ReconError, match="timed out"),
        ):
            send(raw, listener.getsockname(), "default", tmp_path / "out.h5", patience=0.5)
        assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]

    @pytest.mark.parametrize("content", [None, b"no", b"\x89HDF\r\n\x1a\n" + bytes(100)])
    def test_no_raw_file(self, serve, tmp_path: Path, content: bytes | None) -> None:
        raw = tmp_path / "scan.h5"
        if content is not None:
            raw.write_bytes(content)
        with pytest.raises(InputError, match=r"scan\.h5"):
            send(raw, serve(), "default", tmp_path / "out.h5")

    def test_an_output_that_cannot_be_written(self, serve, raw: Path, tmp_path: Path) -> None:
        (tmp_path / "out.h5").mkdir()
        with pytest.raises(ReconError, match="cannot be written"):
            send(raw, serve(), "default", tmp_path / "out.h5")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            with pytest.raises(ReconError, match="cannot be written: File too large"):
                send(raw, serve(), "default", tmp_path / "other.h5")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert {path.name for path in tmp_path.iterdir()} == {"scan.h5", "out.h5"}

    def test_a_real_head(self, serve, shared_data: Path, tmp_path: Path) -> None:
        raw = shared_data / "kspace/head_8ch_256_R3_acs24.h5"
        jobs = {"default": lambda: Job(get_method("qpan+-3bit"), CPU)}
        assert send(raw, serve(jobs=jobs), "default", tmp_path / "out.h5") == 1
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["dataset/image_1/data"].shape == (1, 1, 1, 256, 256)

"""The MRD client against our server, and against servers that fail."""

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from mrd_files import line, random_kspace, write
from mrd_sessions import CPU, KSPACE, XML, assert_is, flagged

from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving.client import send
from mri_qpan.recon.serving.mrd_stream import MrdReader, MrdWriter


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

    def test_failures_leave_nothing(self, serve, raw: Path, tmp_path: Path) -> None:
        with pytest.raises(ReconError):
            send(raw, serve(), "broken", tmp_path / "out.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]

    @pytest.mark.parametrize("config", ["null", "savedataonly"])
    def test_no_image_where_none_was_asked_for_is_no_failure(
        self, serve, raw: Path, tmp_path: Path, config: str
    ) -> None:
        assert send(raw, serve(), config, tmp_path / "out.h5") == 0
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
            pytest.raises(ReconError, match=r"nothing came for 0\.5 s"),
        ):
            send(raw, listener.getsockname(), "default", tmp_path / "out.h5", patience=0.5)
        assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]

    @contextmanager
    def saying(self, *messages: Any) -> Iterator[tuple[str, int]]:
        """A server that reads all, then says these."""

        def answer() -> None:
            with listener.accept()[0] as connection:
                list(MrdReader(connection))
                writer = MrdWriter(connection)
                for message in messages:
                    writer.serialize(message)
                writer.close()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=answer)
            thread.start()
            yield listener.getsockname()
            thread.join()

    def test_what_came_before_a_failure_is_saved(self, raw: Path, tmp_path: Path) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 8, 8), np.int16), image_series_index=1)
        with (
            self.saying(image, "error: slice 1", image) as address,
            pytest.raises(ReconError, match=r"error: slice 1 \(2 images in .*out\.h5\)"),
        ):
            send(raw, address, "default", tmp_path / "out.h5")
        with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", mode="r") as dataset:
            assert dataset.number_of_images("image_1") == 2

    def test_images_of_other_sizes_and_types_are_saved(self, raw: Path, tmp_path: Path) -> None:
        sent = {
            "image_1": np.ones((1, 1, 8, 8), np.int16),
            "image_1_2": np.ones((1, 1, 16, 16), np.int16),
            "image_1_3": np.ones((1, 1, 8, 8), np.complex64),
        }
        made = [ismrmrd.Image.from_array(pixels, image_series_index=1) for pixels in sent.values()]
        with self.saying(*made, *made) as address:
            assert send(raw, address, "default", tmp_path / "out.h5") == 6
        with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", mode="r") as dataset:
            for name, pixels in sent.items():
                assert dataset.number_of_images(name) == 2
                np.testing.assert_array_equal(dataset.read_image(name, 1).data, pixels)

    @pytest.mark.parametrize("kind", ["itself", "symlink", "hard link", "input is a link"])
    def test_the_raw_file_is_no_output(self, raw: Path, tmp_path: Path, kind: str) -> None:
        before, source, output = raw.read_bytes(), raw, raw
        if kind != "itself":
            output = tmp_path / "link.h5"
            (output.hardlink_to if kind == "hard link" else output.symlink_to)(raw)
        if kind == "input is a link":
            source, output = output, source
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0)
            with pytest.raises(OptionError, match="is the raw file itself"):
                send(source, listener.getsockname(), "default", output, patience=1.0)
            with pytest.raises(BlockingIOError):  # nobody called
                listener.accept()
        assert raw.read_bytes() == before

    @pytest.mark.parametrize("content", [None, b"no", b"\x89HDF\r\n\x1a\n" + bytes(100)])
    def test_no_raw_file(self, serve, tmp_path: Path, content: bytes | None) -> None:
        raw = tmp_path / "scan.h5"
        if content is not None:
            raw.write_bytes(content)
        with pytest.raises(InputError, match=r"scan\.h5"):
            send(raw, serve(), "default", tmp_path / "out.h5")

    def test_an_output_that_cannot_be_written(self, serve, raw: Path, tmp_path: Path) -> None:
        (tmp_path / "out.h5").mkdir()
        with pytest.raises(OptionError, match="is a folder"):
            send(raw, ("127.0.0.1", 1), "default", tmp_path / "out.h5")
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

"""Sessions with the MRD server that go well."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_files import header_xml, limit_xml, line, lines, random_kspace, write
from mrd_sessions import CPU, KSPACE, NX, NY, SLICE, XML, assert_is, broken, flagged, images, talk, texts

from mri_qpan.fourier import fft_numpy
from mri_qpan.methods import Method
from mri_qpan.recon.job import Job
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.serving.mrd_stream import ConfigFile, ConfigText, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.server import warm_up
from mri_qpan.recon.serving.session import Session


class TestGoodSessions:
    def test_one_slice(self, serve) -> None:
        answer = talk(serve(), ConfigFile("default.xml"), HeaderText(XML), *flagged(KSPACE))
        (image,) = images(answer)
        assert_is(image, KSPACE)
        assert image.data.dtype == np.int16
        assert (image.image_index, image.image_series_index) == (1, 1)
        assert tuple(image.field_of_view) == (NX, NY, 1)
        assert image.meta["Keep_image_geometry"] == "1"
        assert "MRD stream from 127.0.0.1" in image.meta["Provenance"]
        assert "error" not in texts(answer)

    def test_an_image_leaves_before_the_next_one_is_sent(self, serve) -> None:
        with socket.create_connection(serve(), timeout=30) as connection:
            writer, reader = MrdWriter(connection), iter(MrdReader(connection))
            writer.serialize(ConfigFile("default"))
            writer.serialize(HeaderText(XML))
            for number in range(3):
                kspace = random_kspace(1, NY, NX, seed=number)
                for acquisition in flagged(kspace, slice=number):
                    writer.serialize(acquisition)
                image = next(reader)
                assert_is(image, kspace)
                assert (image.slice, image.image_index) == (number, number + 1)
            writer.close()
            assert list(reader) == []

    def test_what_a_session_came_to_is_logged_for_machines(
        self, serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "mri_qpan")
        talk(serve(), ConfigFile("default"), HeaderText(XML), *SLICE)
        deadline = time.monotonic() + 30
        while not (found := [r for r in caplog.records if getattr(r, "event", "") == "closed"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        counts = {"acquisitions": len(SLICE), "images": 1, "failures": 0, "waveforms": 0, "returned": 0}
        assert counts.items() <= found[0].fields.items()

    def test_one_scale_for_the_series(self, serve) -> None:
        made = [a for s in range(2) for a in flagged((s + 1) * KSPACE, slice=s)]
        first, second = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        np.testing.assert_allclose(second.data, 2 * first.data.astype(int), atol=2)

    def test_a_blank_slice_is_sent_and_sets_no_scale(self, serve) -> None:
        made = [a for s in range(3) for a in flagged(min(s, 1) * KSPACE, slice=s)]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *made)
        blank, first, second = images(answer)
        assert not blank.data.any()
        assert first.data.max() > 100
        assert np.array_equal(first.data, second.data)
        assert "slice 0: every sample is zero" in texts(answer)

    @pytest.mark.parametrize("flag", [ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT, None])
    def test_slices_that_end_together(self, serve, flag) -> None:
        made = [a for s in range(2) for a in lines((s + 1) * KSPACE, slice=s)]
        if flag is not None:
            made[-1].set_flag(flag)
        answer = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        assert [image.slice for image in answer] == [0, 1]

    def test_averages_are_awaited(self, serve) -> None:
        xml = header_xml(
            (NX, NY, 1),
            limits=limit_xml("kspace_encoding_step_1", NY - 1, NY // 2) + limit_xml("average", 1, 0),
        )
        made = [*flagged(KSPACE, average=0), *flagged(3 * KSPACE, average=1)]
        (image,) = images(talk(serve(), ConfigFile("default"), HeaderText(xml), *made))
        assert_is(image, KSPACE)

    def test_noise_calibration_and_navigators(self, serve) -> None:
        kspace = random_kspace(4, NY, NX)
        noise = line(random_kspace(4, 256), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        navigator = line(kspace[:, 0], flags=[ismrmrd.ACQ_IS_NAVIGATION_DATA])
        calib = lines(kspace, range(8, 16), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        sent = [noise, *calib, navigator, *flagged(kspace[:, ::2])]
        for number, acquisition in enumerate(sent[10:]):
            acquisition.idx.kspace_encode_step_1 = 2 * number
        wave = ismrmrd.Waveform.from_array(np.zeros((2, 10), np.uint32))
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), wave, *sent)
        assert len(images(answer)) == 1
        assert "1 waveforms were not used" in texts(answer)
        assert "1 acquisitions of navigators and the like were not used" in texts(answer)

    @pytest.mark.parametrize("config", [ConfigFile("of another site.xml"), ConfigText("<gadgetron/>\n")])
    def test_an_unknown_config_is_the_default_and_said(self, serve, config) -> None:
        answer = talk(serve(), config, HeaderText(XML), *flagged(KSPACE))
        assert len(images(answer)) == 1
        assert "'default' taken instead" in texts(answer)

    @pytest.mark.parametrize("config", ["null", "savedataonly"])
    def test_draining_configs_make_nothing_but_are_saved(self, serve, tmp_path: Path, config: str) -> None:
        answer = talk(serve(save=tmp_path), ConfigFile(config), HeaderText(XML), *flagged(KSPACE))
        assert answer == []
        (saved,) = tmp_path.glob("*.h5")
        (kspace,) = open_kspace(saved)
        np.testing.assert_array_equal(kspace.data[:, 0], KSPACE)

    def test_images_pass_through_and_texts_are_logged(self, serve) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), "hello\0", image)
        assert len(answer) == 1
        np.testing.assert_array_equal(answer[0].data, image.data)

    def test_clients_at_once_get_their_own_images(self, serve) -> None:
        address = serve(workers=2)
        found: dict[int, list[Any]] = {}

        def client(number: int) -> None:
            made = [
                a for s in range(3) for a in flagged(random_kspace(1, NY, NX, seed=100 * number + s), slice=s)
            ]
            found[number] = images(talk(address, ConfigFile("default"), HeaderText(XML), *made))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in found.items():
            assert [image.slice for image in answer] == [0, 1, 2]
            for s, image in enumerate(answer):
                assert_is(image, random_kspace(1, NY, NX, seed=100 * number + s))


BOTH = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]


class TestSorting:
    """What `Session` makes of flags and counters."""

    def test_lines_with_both_calibration_flags_are_their_images_own(self, serve) -> None:
        made = []
        for s in range(2):
            slice_ = lines((s + 1) * KSPACE, slice=s)
            for acquisition in slice_[8:16]:
                for flag in BOTH:
                    acquisition.set_flag(flag)
            slice_[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
            made += slice_
        found = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        assert [image.slice for image in found] == [0, 1]
        for image in found:
            assert_is(image, KSPACE)

    def test_lines_of_the_first_repetition_that_calibrate_serve_the_later_ones(self, tmp_path: Path) -> None:
        session = Session(XML, "peer", 10**7)
        for acquisition in lines(KSPACE, range(1, 16, 2), flags=BOTH[:1]):
            session.add(acquisition)
        for repetition in range(3):
            made = flagged(KSPACE[:, ::2], repetition=repetition)
            for row, acquisition in enumerate(made):
                acquisition.idx.kspace_encode_step_1 = 2 * row
                for flag in BOTH:
                    acquisition.set_flag(flag)
            *_, done = (found for a in made for found in session.add(a))
            (image,) = open_kspace(write(tmp_path / f"{repetition}.h5", XML, done.acquisitions))
            assert image.index.repetition == repetition
            assert image.calib_mask is not None
            assert image.calib_mask[0, :16].all()

    def test_calibration_of_an_earlier_repetition_is_let_go(self) -> None:
        session = Session(XML, "peer", 10**6)
        for repetition in range(50):
            for acquisition in lines(KSPACE, range(8, 16), flags=BOTH[:1], repetition=repetition):
                session.add(acquisition)
            (done,) = session.add(flagged(KSPACE[:, :1], repetition=repetition)[0])
            assert len(done.acquisitions) == 9

    def test_a_few_stragglers_make_no_image(self, serve) -> None:
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *SLICE, *flagged(KSPACE[:, :2]))
        assert len(images(answer)) == 1
        assert "2 lines came after" in texts(answer)

    def test_averages_written_as_decimals(self, serve) -> None:
        limits = limit_xml("kspace_encoding_step_1", NY - 1, NY // 2) + limit_xml("average", 1, 0)
        xml = header_xml((NX, NY, 1), limits=limits.replace("<maximum>1<", "<maximum>1.0<"))
        made = [*flagged(KSPACE, average=0), *flagged(KSPACE, average=1)]
        assert len(images(talk(serve(), ConfigFile("default"), HeaderText(xml), *made))) == 1

    @pytest.mark.parametrize("first", [0.0, 0.05])
    def test_a_first_slice_in_air_leaves_room_for_the_others(self, serve, first: float) -> None:
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (NY, NX)), indexing="ij")
        head = fft_numpy((np.hypot(x, y) < 0.6) * (1 + 0.2 * x), (0, 1))[None]
        noise = 0.01 * random_kspace(2, NY, NX, seed=7)
        made = [*flagged(first * head + noise[:1], slice=0), *flagged(head + noise[1:], slice=1)]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *made)
        assert "too bright" not in texts(answer)
        assert_is(images(answer)[1], head + noise[1:])

    def test_brighter_images_than_the_scale_holds_are_told_of(self, serve) -> None:
        made = [*flagged(KSPACE, slice=0), *flagged(500 * KSPACE, slice=1)]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *made)
        assert len(images(answer)) == 2
        assert "too bright for the scale" in texts(answer)

    def test_images_say_which_is_first_and_last(self, serve) -> None:
        limits = limit_xml("kspace_encoding_step_1", NY - 1, NY // 2)
        limits += "".join(
            limit_xml(name, most, 0)
            for name, most in (("slice", 1), ("repetition", 1), ("contrast", 0), ("phase", 0), ("set", 0))
        )
        made = [a for r in range(2) for s in range(2) for a in flagged(KSPACE, slice=s, repetition=r)]
        xml = header_xml((NX, NY, 1), limits=limits)
        found = images(talk(serve(), ConfigFile("default"), HeaderText(xml), *made))
        names = ("FIRST_IN_REPETITION", "LAST_IN_REPETITION", "FIRST_IN_SLICE", "LAST_IN_SLICE")
        flags = [[i.is_flag_set(getattr(ismrmrd, f"IMAGE_{name}")) for name in names] for i in found]
        assert flags == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]]

    @pytest.mark.parametrize("flag", [ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT])
    def test_without_limits_the_scanners_flags_tell_the_last(self, serve, flag: int) -> None:
        made = [*flagged(KSPACE, slice=0), *flagged(KSPACE, slice=1)]
        made[-1].set_flag(flag)
        found = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        assert [i.is_flag_set(ismrmrd.IMAGE_FIRST_IN_REPETITION) for i in found] == [True, False]
        assert [i.is_flag_set(ismrmrd.IMAGE_LAST_IN_REPETITION) for i in found] == [False, True]
        last = flag == ismrmrd.ACQ_LAST_IN_MEASUREMENT
        assert [i.is_flag_set(ismrmrd.IMAGE_LAST_IN_SET) for i in found] == [False, last]

    @pytest.mark.parametrize(
        ("text", "made"),
        [('{"parameters": {"config": "null"}}', 0), ('{"parameters": {"config": "broken"}}', 0), ("{]", 1)],
    )
    def test_the_operators_choice_of_a_config(self, serve, text: str, made: int) -> None:
        """OpenRecon's scanners send it as JSON after the header."""
        answer = talk(serve(), ConfigFile("openrecon"), HeaderText(XML), text, *SLICE)
        assert len(images(answer)) == made
        assert ("a bug" in texts(answer)) == ("broken" in text)


def test_warming_up_runs_the_method_and_forgives_it(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def run(adjoint: Any, normal: Any) -> Any:
        seen.append(adjoint.shape)
        return adjoint

    warm_up(Job(Method("own", run), CPU))
    assert [shape[-2:] for shape in seen] == [(64, 64)]
    assert not caplog.records
    warm_up(broken())
    assert "fails on a phantom: a bug" in caplog.text

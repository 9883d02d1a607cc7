import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import (
    KSPACE,
    NX,
    NY,
    XML,
    few,
    header_xml,
    limit_xml,
    line,
    lines,
    only,
    random_kspace,
    write,
)

from mri_qpan.recon.kspace import Index
from mri_qpan.recon.readers import open_kspace


class TestPlacement:
    def test_full_slice(self, path):
        image = only(write(path, XML, lines(KSPACE)))
        np.testing.assert_array_equal(image.data[:, 0], KSPACE)
        assert image.mask.all()
        assert image.recon_shape == (1, NY, NX)
        assert image.geometry.fov == (NX, NY, 1)
        assert image.noise_covariance is None
        assert image.calib is None

    def test_mask_is_what_was_acquired(self, path):
        image = only(write(path, XML, lines(KSPACE, rows=(0, 3, 4))))
        assert image.mask[0].all(axis=1).tolist() == [True, False, False, True, True, False]
        assert not image.data[:, ~image.mask].any()

    def test_limits_move_the_centre(self, path):
        xml = header_xml((NX, NY, 1), limits=limit_xml("kspace_encoding_step_1", 4, 1))
        image = only(write(path, xml, lines(KSPACE, rows=(0, 1, 2))))
        np.testing.assert_array_equal(image.data[:, 0, 2:5], KSPACE[:, :3])
        assert image.mask[0].any(axis=1).tolist() == [False, False, True, True, True, False]

    def test_odd_matrix(self, path):
        kspace = random_kspace(1, 5, 7)
        image = only(write(path, header_xml((7, 5, 1)), lines(kspace)))
        np.testing.assert_array_equal(image.data[:, 0], kspace)

    def test_asymmetric_echo_stays_unsampled(self, path):
        image = only(write(path, XML, lines(KSPACE[:, :, 3:], center=1)))
        np.testing.assert_array_equal(image.data[:, 0, :, 3:], KSPACE[:, :, 3:])
        assert not image.mask[..., :3].any()
        assert image.mask[..., 3:].all()

    def test_discarded_samples_are_not_acquired(self, path):
        image = only(write(path, XML, lines(KSPACE, pre=2, post=1)))
        np.testing.assert_array_equal(image.data[:, 0, :, 2:7], KSPACE[:, :, 2:7])
        assert image.mask[0, 0].tolist() == [False] * 2 + [True] * 5 + [False]

    def test_reverse_with_discarded_samples(self, path):
        reverse = lines(KSPACE[:, :, ::-1], flags=[ismrmrd.ACQ_IS_REVERSE], pre=1, post=2)
        image = only(write(path, XML, reverse))
        np.testing.assert_array_equal(image.data[:, 0, :, 2:7], KSPACE[:, :, 2:7])
        assert image.mask[0, 0].tolist() == [False] * 2 + [True] * 5 + [False]

    def test_reverse_asymmetric_echo(self, path):
        image = only(write(path, XML, lines(KSPACE[:, :, :2:-1], flags=[ismrmrd.ACQ_IS_REVERSE], center=1)))
        np.testing.assert_array_equal(image.data[:, 0, :, 3:], KSPACE[:, :, 3:])
        assert not image.mask[..., :3].any()

    def test_slab(self, path):
        volume = random_kspace(2, 4, NY, NX)
        image = only(write(path, header_xml((NX, NY, 4)), lines(volume)))
        np.testing.assert_array_equal(image.data, volume)
        assert image.recon_shape == (4, NY, NX)

    def test_averages_average_per_sample(self, path):
        second = lines(2 * KSPACE[:, :, :], rows=(2, 3), average=1)
        image = only(write(path, XML, lines(KSPACE) + second))
        np.testing.assert_allclose(image.data[:, 0, 2:4], 1.5 * KSPACE[:, 2:4], rtol=1e-6)
        np.testing.assert_array_equal(image.data[:, 0, 4], KSPACE[:, 4])

    @pytest.mark.parametrize("counter", ["slice", "repetition", "contrast", "phase", "set"])
    def test_counters_make_images(self, path, counter):
        acquisitions = lines(3 * KSPACE, **{counter: 2}) + lines(KSPACE, **{counter: 0})
        stream = open_kspace(write(path, XML, acquisitions))
        assert len(stream) == 2
        images = list(stream)
        assert [i.index for i in images] == stream.indices == [Index(**{counter: 0}), Index(**{counter: 2})]
        np.testing.assert_array_equal(images[1].data, 3 * images[0].data)

    def test_segments_join(self, path):
        image = only(
            write(path, XML, lines(KSPACE, rows=(0, 2, 4)) + lines(KSPACE, rows=(1, 3, 5), segment=1))
        )
        assert image.mask.all()

    def test_order_is_by_index(self, path):
        acquisitions = [a for s in (1, 0) for r in (1, 0) for a in lines(KSPACE, slice=s, repetition=r)]
        indices = [image.index for image in open_kspace(write(path, XML, acquisitions))]
        assert indices == sorted(indices)

    @few()
    @given(
        seed=st.integers(0, 2**31),
        reverse=st.lists(st.booleans(), min_size=NY, max_size=NY),
        flags=st.lists(st.sampled_from([1, 5, 7, 8, 13, 14, 17, 25, 57, 64]), min_size=NY, max_size=NY),
        pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        skipped=st.sampled_from([[], [23], [24], [26], [27], [28], [29], [30], [31]]),
    )
    def test_order_flags_and_padding_change_nothing(
        self, tmp_path_factory, seed, reverse, flags, pad, skipped
    ):
        pre, post = pad
        padded = np.pad(KSPACE, ((0, 0), (0, 0), pad), constant_values=99)
        acquisitions = [
            line(
                padded[:, y, ::-1] if reverse[y] else padded[:, y],
                ky=y,
                center=NX // 2 + pre,
                pre=post if reverse[y] else pre,
                post=pre if reverse[y] else post,
                flags=[flags[y], *([ismrmrd.ACQ_IS_REVERSE] if reverse[y] else [])],
            )
            for y in range(NY)
        ]
        acquisitions += [line(KSPACE[:, 0], ky=999, flags=[f]) for f in skipped]
        order = np.random.default_rng(seed).permutation(len(acquisitions))
        path = tmp_path_factory.mktemp("scan") / "scan.h5"
        image = only(write(path, XML, [acquisitions[i] for i in order]))
        np.testing.assert_array_equal(image.data[:, 0], KSPACE)
        assert image.mask.all()

    def test_oversampling_is_kept_for_prepare(self, path):
        wide = random_kspace(2, NY, 2 * NX)
        xml = header_xml((2 * NX, NY, 1), (NX, NY, 1))
        image = only(write(path, xml, lines(wide)))
        assert image.data.shape == (2, 1, NY, 2 * NX)
        assert image.recon_shape == (1, NY, NX)
        assert image.geometry.fov == (NX, NY, 1)

    def test_interpolating_recon_space_is_left_to_viewers(self, path):
        xml = header_xml((NX, NY, 1), (2 * NX, 2 * NY, 1), recon_fov=(NX, NY, 1))
        image = only(write(path, xml, lines(KSPACE)))
        assert image.recon_shape == (1, NY, NX)
        assert image.geometry.fov == (NX, NY, 1)
        assert any("uninterpolated" in note for note in image.notes)

    def test_oversampling_goes_where_the_rest_is_interpolated_to_the_encoded_matrix(self, path):
        wide = random_kspace(2, NY, 2 * NX)
        xml = header_xml((2 * NX, NY, 1), (2 * NX, 2 * NY, 1), recon_fov=(NX, NY, 1))
        image = only(write(path, xml, lines(wide)))
        assert image.recon_shape == (1, NY, NX)
        assert image.geometry.fov == (NX, NY, 1)
        assert any(f"asks for {2 * NX} pixels along x" in note for note in image.notes)

    def test_a_slice_is_as_thick_as_recon_space_says(self, path):
        xml = header_xml((NX, NY, 1), fov=(NX, NY, 18), recon_fov=(NX, NY, 5))
        assert only(write(path, xml, lines(KSPACE))).geometry.fov == (NX, NY, 5)

    def test_lines_of_zeros_were_not_measured(self, path):
        masked = KSPACE * (np.arange(NY) % 2 == 0)[:, None]
        image = only(write(path, XML, [*lines(KSPACE, rows=(0, 2)), *lines(masked)]))
        assert image.mask[0].all(axis=1).tolist() == [True, False] * (NY // 2)
        np.testing.assert_allclose(image.data[:, 0], masked, rtol=1e-6)
        assert "3 lines are zero in every channel: taken as not measured" in image.notes

    def test_the_zeros_before_an_asymmetric_echo_were_not_measured(self, path):
        padded = KSPACE.copy()
        padded[..., :3] = 0
        image = only(write(path, XML, [*lines(KSPACE, rows=(0,)), *lines(padded, rows=range(1, NY))]))
        assert image.mask[0, 0].all()
        assert not image.mask[0, 1:, :3].any()
        assert image.mask[0, 1:, 3:].all()
        assert any(
            "of the samples are zero in every channel: taken as not measured" in n for n in image.notes
        )

    def test_samples_of_zeros_within_lines_were_not_measured(self, path):
        seen = np.random.default_rng(5).random((NY, NX)) < 0.5
        seen[:, 0] = True
        both = [*lines(KSPACE * seen), *lines(KSPACE * seen)]
        image = only(write(path, XML, both))
        assert np.array_equal(image.mask[0], seen)
        np.testing.assert_allclose(image.data[:, 0], KSPACE * seen, rtol=1e-6)

    def test_a_rounded_zero_was_measured(self, path):
        wide = random_kspace(2, NY, 40)
        wide[:, 2, 7] = wide[:, 3, 0] = 0
        image = only(write(path, header_xml((40, NY, 1), (40, NY, 1)), lines(wide)))
        assert image.mask.all()
        assert not any("not measured" in note for note in image.notes)


class TestCalibrationAndNoise:
    def test_separate_calibration_lines(self, path):
        calib = lines(5 * KSPACE, rows=(2, 3, 4), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        image = only(write(path, XML, calib + lines(KSPACE, rows=(0, 2, 4))))
        assert image.mask[0].any(axis=1).tolist() == [True, False, True, False, True, False]
        np.testing.assert_array_equal(image.data[:, 0, 2], KSPACE[:, 2])
        assert image.calib_mask[0].any(axis=1).tolist() == [False, False, True, True, True, False]
        np.testing.assert_array_equal(image.calib[:, 0, 2:5], 5 * KSPACE[:, 2:5])

    def test_calibration_and_imaging_lines_are_both(self, path):
        both = lines(KSPACE, rows=(2,), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING])
        calib = lines(KSPACE, rows=(3,), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        image = only(write(path, XML, lines(KSPACE, rows=(0, 4)) + both + calib))
        assert image.mask[0].any(axis=1).tolist() == [True, False, True, False, True, False]
        assert image.calib_mask[0].any(axis=1).tolist() == [False, False, True, True, False, False]

    def test_calibration_inside_the_image_alone(self, path):
        both = lines(KSPACE, rows=(2, 3), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING])
        image = only(write(path, XML, lines(KSPACE, rows=(0, 4)) + both))
        assert image.calib is None
        assert image.mask[0].any(axis=1).sum() == 4

    def test_both_flags_mean_both(self, path):
        flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
        assert only(write(path, XML, lines(KSPACE, flags=flags))).mask.all()

    def test_one_reference_scan_serves_all_repetitions(self, path):
        calib = lines(5 * KSPACE, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        images = list(
            open_kspace(write(path, XML, calib + lines(KSPACE, repetition=0) + lines(KSPACE, repetition=3)))
        )
        np.testing.assert_array_equal(images[0].calib, images[1].calib)

    def test_flagged_imaging_lines_of_later_repetitions_are_no_region(self, path):
        both = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
        between = lines(KSPACE, rows=(1, 3), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        series = [
            lines(factor * KSPACE, rows=(0, 2, 4), flags=both, repetition=r) for r, factor in ((0, 1), (1, 2))
        ]
        first, second = open_kspace(write(path, XML, [*between, *series[0], *series[1]]))
        np.testing.assert_array_equal(second.calib, first.calib)
        np.testing.assert_array_equal(first.calib[:, 0, :5], KSPACE[:, :5])
        np.testing.assert_array_equal(second.data[:, 0, ::2], 2 * KSPACE[:, ::2])

    def test_a_region_of_ones_own_is_preferred(self, path):
        both = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
        scan = lines(5 * KSPACE, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        own = lines(KSPACE, rows=(2, 3, 4), flags=both, repetition=1)
        (image,) = open_kspace(write(path, XML, [*scan, *lines(KSPACE, rows=(0,), repetition=1), *own]))
        np.testing.assert_array_equal(image.calib[:, 0, 2:5], KSPACE[:, 2:5])

    def test_calibration_of_another_slice_is_not_used(self, path):
        calib = lines(5 * KSPACE, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], slice=1)
        image = only(write(path, XML, calib + lines(KSPACE)))
        assert image.calib is None
        assert any("not used" in note for note in image.notes)

    @pytest.mark.parametrize(
        ("dwell", "bandwidth", "factor"), [(10, None, 1), (5, None, 2), (20, 0.8, 0.625)]
    )
    def test_noise_covariance(self, path, dwell, bandwidth, factor):
        scan = random_kspace(2, 4000, seed=5)
        scan[1] = 0.5 * scan[0] + 2 * scan[1]
        noise = line(scan, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT], center=0, dwell=10)
        system = (
            ""
            if bandwidth is None
            else f"<relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>"
        )
        xml = header_xml((NX, NY, 1), system=system)
        image = only(write(path, xml, [noise, *lines(KSPACE, dwell=dwell)]))
        expected = factor * (scan @ scan.conj().T) / 4000
        np.testing.assert_allclose(image.noise_covariance, expected, rtol=1e-4)
        np.testing.assert_allclose(image.noise_covariance, factor * np.array([[2, 1], [1, 8.5]]), atol=1.5)

    def test_averaging_lowers_the_noise(self, path):
        noise = line(random_kspace(2, 500), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        one = only(write(path, XML, [noise, *lines(KSPACE)]))
        two = only(write(path.with_name("2.h5"), XML, [noise, *lines(KSPACE), *lines(KSPACE, average=1)]))
        np.testing.assert_allclose(one.noise_covariance, 2 * two.noise_covariance, rtol=1e-5)

    def test_missing_dwell_times_are_said(self, path):
        noise = line(random_kspace(2, 500), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT], dwell=0)
        assert any("dwell" in note for note in only(write(path, XML, [noise, *lines(KSPACE)])).notes)


class TestGeometryAndStamp:
    def test_from_the_line_nearest_the_centre(self, path):
        acquisitions = lines(KSPACE)
        for y, acquisition in enumerate(acquisitions):
            acquisition.acquisition_time_stamp = 100 + y
            acquisition.position[2] = y
        image = only(write(path, XML, acquisitions))
        assert image.stamp.acquisition_time_stamp == 100 + NY // 2
        assert image.geometry.position == (0, 0, NY // 2)

    def test_oblique_directions(self, path):
        c, s = np.cos(0.3), np.sin(0.3)
        directions = ((c, s, 0), (-s, c, 0), (0, 0, 1))
        image = only(write(path, XML, lines(KSPACE, directions=directions, position=(1, 2, 3))))
        np.testing.assert_allclose(image.geometry.read_dir, (c, s, 0), atol=1e-6)
        assert image.geometry.position == (1, 2, 3)
        assert not any("directions" in note for note in image.notes)

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_one_missing_direction_follows_from_the_others(self, path, missing):
        c, s = np.cos(0.3), np.sin(0.3)
        directions = [(c, s, 0), (0, 0, -1), (-s, c, 0)]
        given = [(0, 0, 0) if axis == missing else direction for axis, direction in enumerate(directions)]
        image = only(write(path, XML, lines(KSPACE, directions=given)))
        found = image.geometry.read_dir, image.geometry.phase_dir, image.geometry.slice_dir
        np.testing.assert_allclose(found, directions, atol=1e-6)
        name = ("read", "phase", "slice")[missing]
        assert any(f"give no {name} direction" in note for note in image.notes)

    def test_two_missing_directions_are_not_guessed(self, path):
        image = only(write(path, XML, lines(KSPACE, directions=((0, 1, 0), (0, 0, 0), (0, 0, 0)))))
        assert image.geometry.read_dir == (1, 0, 0)
        assert any("no usable directions" in note for note in image.notes)

    @pytest.mark.parametrize("vector", [(0, 1, 0), (np.nan, 0, 0), (1, 1, 1)])
    def test_unusable_directions(self, path, vector):
        image = only(write(path, XML, lines(KSPACE, directions=(vector, (0, 1, 0), (0, 0, 1)))))
        assert image.geometry.read_dir == (1, 0, 0)
        assert any("directions" in note for note in image.notes)

    def test_unusable_position(self, path):
        image = only(write(path, XML, lines(KSPACE, position=(np.nan, 0, 0))))
        assert image.geometry.position == (0, 0, 0)
        assert any("position" in note for note in image.notes)

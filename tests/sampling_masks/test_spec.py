import pytest

from mri_qpan.sampling_masks import MaskError, parse_spec, ratio_from_acceleration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lines:0.25", ("lines", 0.25, 0)),
        ("lines:25%", ("lines", 0.25, 0)),
        ("lines:4x", ("lines", 0.25, 0)),
        ("poisson:12.5%:7", ("poisson", 0.125, 7)),
        (" radial : 1x : 0 ", ("radial", 1.0, 0)),
    ],
)
def test_reads(text, expected):
    assert parse_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lines", "not KIND:RATIO"),
        ("lines:0.25:1:2", "not KIND:RATIO"),
        ("line:0.25", "unknown kind of mask 'line'"),
        ("lines:25", "did you mean 25% or 25x"),
        ("lines:", "0.25, 25% or 4x"),
        ("lines:%", "0.25, 25% or 4x"),
        ("lines:0.5x", "at least 1x"),
        ("lines:nanx", "at least 1x"),
        ("lines:infx", "above 0"),
        ("lines:nan", "above 0"),
        ("lines:-0.2", "above 0"),
        ("lines:101%", "at most at 1"),
        ("lines:0.25:x", "seed"),
        ("lines:0.25:-1", "seed"),
        ("lines:0.25:", "seed"),
    ],
)
def test_says_what_is_wrong(text, message):
    with pytest.raises(MaskError, match=message):
        parse_spec(text)


def test_ratio_from_acceleration():
    assert ratio_from_acceleration(4) == 0.25

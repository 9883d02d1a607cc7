import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sigpy as sp
import sigpy.mri

from mri_qpan import bart, metrics
from mri_qpan.benchmark import machine, peers, report
from mri_qpan.benchmark.case import Case, magnitude
from mri_qpan.benchmark.figures import comparison
from mri_qpan.benchmark.peers import Method, Shot
from mri_qpan.benchmark.real import compare, psnr_with_floor
from mri_qpan.benchmark.tuning import tune
from mri_qpan.errors import InputError, ReconError
from mri_qpan.sampling_masks import make_mask, mask_hash
from mri_qpan.solvers import ZeroFilled

ALL = [*peers.classical(threads=1), *peers.own_solvers()]


def make_case(group: str = "head", spec: str = "random2d:0.4", seed: int = 0, scale: float = 40.0) -> Case:
    rng = np.random.default_rng(seed)
    image = scale * np.abs(sp.shepp_logan((40, 36))).astype(np.float32)
    mps = sp.mri.birdcage_maps((3, 40, 36)).astype(np.complex64)
    mps /= np.sqrt((abs(mps) ** 2).sum(0))
    full = sp.fft(mps * image, axes=(-2, -1))
    noise = rng.standard_normal(full.shape) + 1j * rng.standard_normal(full.shape)
    kind, ratio = spec.split(":")
    mask = make_mask(kind, image.shape, float(ratio), calib=12)
    kspace = ((full + 0.02 * scale * noise) * mask).astype(np.complex64)
    return Case(group, group, "0123456789ab", spec, kspace, mask, mps, image)


def with_empty_set(case: Case) -> Case:
    """The same case with a second set of maps that sees nothing."""
    return replace(case, mps=np.stack([case.mps, np.zeros_like(case.mps)]))


def best_method(name: str, optimum: float, classical: bool = True) -> Method:
    """A method whose error grows with the distance of its weight from `optimum`."""

    def run(case: Case, parameters) -> Shot:
        off = 1 + abs(math.log(parameters["lamda"] / optimum))
        return Shot(case.reference + np.float32(off), inner_seconds=0.5)

    return Method(name, run, classical=classical, fixed={"iterations": 3}, start=1e-2)


def constant_method(name: str, error: float, classical: bool = True) -> Method:
    return Method(name, lambda case, _: Shot(case.reference + np.float32(error)), classical=classical)


class TestTune:
    @pytest.mark.parametrize("optimum", [1e-4, 0.003, 0.01, 0.7])
    def test_finds_a_parabolas_top(self, optimum: float) -> None:
        calls: list[float] = []

        def score(lamda: float) -> float:
            calls.append(lamda)
            return 40 - math.log10(lamda / optimum) ** 2

        assert tune(score, 0.01, 12) == pytest.approx(optimum, rel=0.08)
        assert len(calls) == len(set(calls)) <= 12

    def test_finds_a_lopsided_top_closely(self) -> None:
        found = tune(lambda x: -abs(math.log10(x / 0.02)) * (1 if x < 0.02 else 3), 0.001, 10)
        assert 0.01 < found < 0.03

    def test_is_content_with_one_evaluation(self) -> None:
        assert tune(lambda _: 1.0, 0.02, 1) == pytest.approx(0.02)

    def test_a_flat_score_ends(self) -> None:
        assert tune(lambda _: 1.0, 0.02, 6) > 0


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_peer_improves_on_zero_filling_in_the_inputs_units(method: Method) -> None:
    case = make_case()
    choice = {**method.fixed, **method.choices[0], "lamda": method.start}
    image = method.run(case, {k: v for k, v in choice.items() if v is not None}).image
    assert image.shape == case.reference.shape
    assert image.dtype == np.float32
    zero_filled = peers.classical(threads=1)[0].run(case, {}).image
    gain = metrics.psnr(case.reference, image) - metrics.psnr(case.reference, zero_filled)
    assert gain >= (0 if method.name == "zero-filled" else 1)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_an_empty_second_set_of_maps_changes_nothing(method: Method) -> None:
    case = make_case()
    parameters = {**method.fixed, **method.choices[0], "lamda": method.start or 1, "iterations": 25}
    if method.start is None:
        parameters = {}
    one = method.run(case, parameters).image
    two = method.run(with_empty_set(case), parameters).image
    assert one.shape == two.shape
    assert np.linalg.norm(two - one) < 0.02 * np.linalg.norm(one)


def test_magnitude_is_that_of_all_sets_where_coils_see() -> None:
    mps = np.ones((2, 3, 4, 5), np.complex64)
    mps[:, :, 0] = 0
    image = np.stack([np.full((4, 5), 3j), np.full((4, 5), 4)])
    found = magnitude(image, mps)
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1:], 5)
    assert magnitude(image[:1], mps[0]).shape == (4, 5)


def test_peers_do_not_depend_on_units() -> None:
    case = make_case()
    larger = replace(case, kspace=1000 * case.kspace, reference=1000 * case.reference)
    for method in peers.classical(threads=1)[:3]:
        parameters = {**method.fixed, "lamda": 0.01}
        one, other = method.run(case, parameters).image, method.run(larger, parameters).image
        assert np.linalg.norm(other / 1000 - one) < 0.02 * np.linalg.norm(one)


@pytest.mark.skipif(not bart.available(), reason="BART (command `bart`) is not installed")
def test_bart_keeps_its_own_clock() -> None:
    method = next(m for m in peers.classical(threads=1) if m.name == "wavelet (BART pics)")
    shot = method.run(make_case(), {"iterations": 5, "wavelet": "haar", "lamda": 0.01})
    assert shot.inner_seconds is not None
    assert 0 < shot.inner_seconds < 60


def test_a_bart_without_clock_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(arguments, folder: Path, threads: int) -> str:
        bart.write_cfl(folder / "image", np.ones((40, 36)))
        return "done"

    monkeypatch.setattr(bart, "available", lambda: True)
    monkeypatch.setattr(bart, "run", silent)
    method = next(m for m in peers.classical(threads=1) if m.name == "TV (BART pics)")
    with pytest.raises(ReconError, match="Total Time"):
        method.run(make_case(), {**method.fixed, **method.choices[0], "lamda": 0.01})


def test_a_network_gets_what_the_solvers_get() -> None:
    case = make_case()
    image = peers.network("net", ZeroFilled(), bits=3).run(case, {}).image
    np.testing.assert_allclose(image, peers.classical(1)[0].run(case, {}).image, rtol=1e-4, atol=1e-4)


class TestCompare:
    def test_tunes_scores_and_times(self) -> None:
        cases = [make_case(), make_case("knee", seed=1)]
        methods = [constant_method("zero-filled", 5.0), best_method("tuned", 0.03)]
        words: list[str] = []
        compared = compare(cases, methods, rounds=2, evaluations=8, threads=1, progress=words.append)
        assert len(words) == 2 * 2 * (1 + 2)
        for entry, case in zip(compared, cases, strict=True):
            assert entry.case is case
            plain, tuned = entry.outcomes
            assert tuned.parameters["lamda"] == pytest.approx(0.03, rel=0.1)
            assert tuned.parameters["iterations"] == 3
            assert tuned.metrics["psnr"] > plain.metrics["psnr"]
            assert plain.metrics["psnr"] == pytest.approx(20 * math.log10(case.reference.max() / 5))
            assert len(plain.seconds) == 2
            assert plain.inner_seconds == []
            assert tuned.inner_seconds == [0.5, 0.5]

    def test_chooses_the_better_choice(self) -> None:
        def run(case: Case, parameters) -> Shot:
            off = 3 - parameters["kind"] + abs(math.log(parameters["lamda"]))
            return Shot(case.reference + np.float32(off))

        method = Method("m", run, choices=({"kind": 0}, {"kind": 2}, {"kind": 1}), start=0.5)
        (entry,) = compare([make_case()], [method], rounds=0, evaluations=6, threads=1)
        assert entry.outcomes[0].parameters["kind"] == 2

    @pytest.mark.parametrize(
        ("spec", "iterations", "expected"),
        [("random2d:0.4", 3, 0.5), ("random2d:0.4", 4, 0.03), ("lines:0.5", 3, 0.03)],
        ids=["the same", "other iterations", "another mask"],
    )
    def test_takes_parameters_found_before_only_if_they_fit(self, spec, iterations, expected) -> None:
        known = {(make_case(spec=spec).key, "tuned"): {"iterations": iterations, "lamda": 0.5}}
        method = best_method("tuned", 0.03)
        (entry,) = compare([make_case()], [method], rounds=0, evaluations=8, threads=1, tuned=known)
        assert entry.outcomes[0].parameters["lamda"] == pytest.approx(expected, rel=0.1)
        assert entry.outcomes[0].given == (expected == 0.5)

    def test_starts_at_a_weight_found_under_another_mask(self) -> None:
        known = {(make_case(spec="lines:0.5").key, "tuned"): {"iterations": 3, "lamda": 0.5}}
        method = best_method("tuned", 0.03)
        (entry,) = compare([make_case()], [method], rounds=0, evaluations=1, threads=1, tuned=known)
        assert entry.outcomes[0].parameters["lamda"] == 0.5


@pytest.fixture
def results() -> dict:
    cases = [make_case(group, spec) for group in ("head", "knee") for spec in ("random2d:0.4", "lines:0.5")]
    methods = [
        constant_method("zero-filled", 8.0),
        best_method("wavelet", 0.03),
        constant_method("net", 0.5, classical=False),
    ]
    compared = compare(cases, methods, rounds=1, evaluations=6, threads=1)
    settings = {"rounds": 1, "evaluations": 6}
    return report.to_json(compared, methods, command="mri-qpan x", machine={"cores": "2"}, settings=settings)


class TestReport:
    def test_weights_of_earlier_runs_are_told(self, results: dict) -> None:
        def page() -> str:
            return report.to_markdown(results).replace("\n", " ")

        assert "(6 reconstructions a search); a network" in page()
        for case in results["cases"][:3]:
            next(o for o in case["outcomes"] if o["method"] == "wavelet")["given"] = True
        told = "3 of the 4 weights were found by searches of earlier runs, with their coil maps); a network"
        assert f"search; {told}" in page()

    def test_json_holds_everything(self, results: dict) -> None:
        again = json.loads(json.dumps(results, allow_nan=False))
        assert again == results
        assert again["cases"][0]["mask_hash"] == mask_hash(make_case().mask)
        assert again["cases"][0]["matrix"] == [40, 36]

    def test_gain_is_over_the_best_classical(self, results: dict) -> None:
        zero_filled, wavelet, net = report.rows(results)
        assert wavelet.gain == 0
        assert zero_filled.gain == pytest.approx(zero_filled.psnr - wavelet.psnr)
        assert net.gain == pytest.approx(net.psnr - wavelet.psnr)
        assert net.gain > 0
        assert net.gain_each <= net.gain
        assert wavelet.inner_seconds == 0.5
        assert net.inner_seconds is None
        assert not net.classical

    def test_slices_of_a_group_count_as_one(self) -> None:
        cases = [make_case("a"), replace(make_case("a", seed=1), name="a/1"), make_case("b")]

        def run(case: Case, _) -> Shot:
            return Shot(case.reference + np.float32({"a": 1.0, "a/1": 4.0, "b": 2.0}[case.name]))

        methods = [Method("m", run)]
        compared = compare(cases, methods, rounds=0, evaluations=1, threads=1)
        results = report.to_json(compared, methods, command="", machine={}, settings={})
        one, two, three = (entry.outcomes[0].metrics["psnr"] for entry in compared)
        (row,) = report.rows(results)
        assert row.psnr == pytest.approx(((one + two) / 2 + three) / 2)
        assert row.seconds is None

    def test_selections(self, results: dict) -> None:
        assert len(report.rows(results, mask="lines:0.5")) == 3
        assert len(report.rows(results, group="knee")) == 3

    def test_markdown_states_what_matters(self, results: dict) -> None:
        text = report.to_markdown(results)
        hashes = {case["mask_hash"] for case in results["cases"]}
        for words in (
            "mri-qpan x",
            "cores 2",
            "0123456789ab",
            "## head",
            "## lines:0.5",
            "iterations 3",
            *hashes,
        ):
            assert words in text
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in tables)

    def test_tuned_parameters_come_back(self, results: dict, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(results))
        found = report.read_tuned(path)
        case = results["cases"][0]
        assert found[case["key"], "wavelet"] == case["outcomes"][1]["parameters"]

    @pytest.mark.parametrize("text", ["", "[]", '{"cases": [{}]}', '{"cases": 3}'])
    def test_another_file_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(InputError, match="not the JSON file"):
            report.read_tuned(path)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="No such file"):
            report.read_tuned(tmp_path / "missing.json")


def test_a_fitted_noise_floor_is_nobodys_merit() -> None:
    """An image without the noise that its reference has gets the floor of a Rayleigh distribution's power."""
    rng = np.random.default_rng(0)
    clean = np.zeros((64, 64), np.float32)
    clean[16:48, 16:48] = 1
    noise = 0.05 * rng.standard_normal((2, 64, 64))
    reference = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    best = max(metrics.psnr(reference, np.hypot(clean, floor)) for floor in np.linspace(0, 0.2, 401))
    assert psnr_with_floor(reference, clean) == pytest.approx(best, abs=0.01)
    assert best > metrics.psnr(reference, clean) + 1
    assert psnr_with_floor(reference, 2 * reference) == metrics.psnr(reference, 2 * reference)  # none helps


def test_machine_is_described() -> None:
    words = machine.describe(threads=3)
    assert words["threads a method"] == "3"
    assert words["processor"]
    assert {"torch", "sigpy", "Python"} <= set(words)


def test_comparison_draws_every_panel() -> None:
    case = make_case()
    perfect = case.reference.copy()
    sheet = comparison(case.reference, [("perfect", perfect), ("off", perfect + 4)])
    height, width = case.reference.shape
    assert sheet.width == 3 * width
    pixels = np.asarray(sheet)
    errors = pixels[-height:]
    assert errors[:, width : 2 * width].max() == 0
    assert errors[:, 2 * width :].min() > 0

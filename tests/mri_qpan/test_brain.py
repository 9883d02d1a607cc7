"""The published experiment's protocol, against figures measured elsewhere."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mri_qpan.benchmark import brain, charts
from mri_qpan.cli.main import run
from mri_qpan.errors import InputError, OptionError
from mri_qpan.networks import NetworkConfig, build
from mri_qpan.recon.cases import read_masks, read_pictures
from mri_qpan.sampling_masks import make_mask, save_mask

ZERO_FILLED = {20: 30.41, 30: 33.01, 40: 35.14, 50: 37.07}
"""Measured by others on the 50 images (../shared/TARGETS.md)."""


@pytest.fixture
def folders(tmp_path):
    """Three images and two masks of the published kind."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index in range(3):
        smooth = np.kron(rng.random((8, 8)), np.ones((4, 4)))
        Image.fromarray((255 * smooth).astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
    for percent in (20, 50):
        mask = make_mask("radial", (32, 32), percent / 100)
        save_mask(tmp_path / "masks" / f"mask_{percent}.mat", mask)
    return tmp_path


def test_zero_filling_gives_the_figures_known_for_the_fifty_images(shared_data):
    pictures = read_pictures(shared_data / "brain50")
    masks = read_masks(shared_data / "masks", "20,30,40,50", (256, 256))
    results = brain.compare(pictures, masks, [brain.zero_filled()], threads=1)
    assert len(results["images"]) == 50
    results |= {"machine": {}, "command": ""}
    assert "| PAN+, published | 38.90 | 41.02 | 42.71 | 44.29 |" in brain.to_markdown(results)
    results["images"].pop()
    assert "published |" not in brain.to_markdown(results)
    for result in results["results"]:
        assert result["psnr"] == pytest.approx(ZERO_FILLED[result["percent"]], abs=0.006)
        low, high = result["psnr_interval"]
        assert low < result["psnr"] < high


def test_a_perfect_method_has_no_error_and_values_are_clipped():
    image = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    assert brain.score(image, image)["psnr"] == np.inf
    assert brain.score(np.round(image), np.round(image) * 3 - 1)["psnr"] == np.inf
    off = brain.score(0 * image + 0.5, 0 * image + 0.6)
    assert off["psnr"] == pytest.approx(20.0, abs=1e-5)


def test_the_interval_covers_the_mean_as_the_normal_law_has_it():
    values = np.random.default_rng(1).normal(40, 2, 400)
    low, high = brain.bootstrap(values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.03)


def test_contenders_get_the_same_samples_real_or_complex(folders):
    pictures = read_pictures(folders / "images")
    masks = read_masks(folders / "masks", "20,50", (32, 32))
    given = {}

    def note(name):
        def contender(adjoint, normal):
            given[name] = adjoint
            assert torch.allclose(normal(adjoint), normal(normal(adjoint)).to(adjoint.dtype), atol=0.5)
            return adjoint

        return contender

    contenders = [brain.Contender("real", note("real")), brain.Contender("complex", note("complex"), False)]
    brain.compare(pictures, masks, contenders, threads=1)
    assert given["complex"].is_complex()
    assert torch.allclose(given["complex"].real, given["real"], atol=1e-5)


def trained(name, ratios):
    network = build(NetworkConfig(channels=1, layers=1, filters=4))
    training = {"recipe": name, "steps": 10, "planned_steps": 40, "steps_before": 0, "init": None}
    network.name, network.card, network.sha256 = name, {"training": {**training, "ratios": ratios}}, 64 * "0"
    return network


def test_models_of_one_ratio_make_one_row(folders):
    """Each is run at its own ratio alone, and what has no model stays empty."""
    pictures = read_pictures(folders / "images")
    masks = read_masks(folders / "masks", "20,50", (32, 32))
    ours = trained("net-50", [0.5, 0.5])
    loaded = [(trained("net", [0.18, 0.52]), 100), (ours, 10), (trained("net-30", [0.3, 0.3]), 20)]
    contenders = brain.contenders(loaded)
    assert [(c.name, c.size) for c in contenders] == [("net", 100), ("net, a model a ratio", 30)]
    results = brain.compare(pictures, masks, contenders, threads=1)
    found = {(r["contender"], r["percent"]): r["images"] for r in results["results"]}
    assert set(found) == {("net", 20), ("net", 50), ("net, a model a ratio", 50)}
    alone = brain.Contender("alone", ours)
    again = brain.reconstruct(alone, pictures[0].image, masks[50], 50)[0]
    assert found["net, a model a ratio", 50][0]["psnr"] == brain.score(pictures[0].image, again)["psnr"]
    results |= {"command": "", "machine": {}}
    row = next(r for r in brain.to_markdown(results).splitlines() if r.startswith("| net, a model"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == ""
    assert cells[-3] == "30"
    assert "50 %: 10 (undertrained: 10 of 40 planned)" in cells[-2]
    charts.charts(results, {})
    sheet = brain.example(pictures, masks, contenders, results)
    assert sheet.width == 2 * 32  # nothing of the model that has no 20 %


def test_models_of_one_name_are_told_apart():
    first, second, other = (trained(name, [0.18, 0.52]) for name in ("net", "net", "other"))
    second.sha256 = 64 * "a"
    named = [c.name for c in brain.contenders([(first, 1), (second, 1), (other, 1)])]
    assert named == ["net 000000", "net aaaaaa", "other"]
    with pytest.raises(OptionError, match="named twice"):
        brain.contenders([(first, 1), (first, 1)])


def test_a_complex_model_of_one_ratio_stands_alone():
    network = trained("net-20", [0.2, 0.2])
    network.config = NetworkConfig(channels=2, layers=1, filters=4)
    assert [c.name for c in brain.contenders([(network, 1)])] == ["net-20"]


def test_the_command_writes_table_and_values(folders, capsys, monkeypatch):
    images, masks, out = (str(folders / name) for name in ("images", "masks", "out"))
    command = ["mri-qpan", "benchmark", "brain", images, "--masks", masks, "--ratios", "20,50", "-o", out]
    monkeypatch.setattr("sys.argv", [*command, "--methods", "qpan+-1bit", "--figures", f"{out}/figures"])
    with pytest.raises(SystemExit) as stop:
        run()
    assert not stop.value.code
    results = json.loads((folders / "out" / "brain.json").read_text())
    assert [m["percent"] for m in results["masks"]] == [20, 50]
    assert {c["name"] for c in results["contenders"]} == {"zero-filled", "qpan+-1bit"}
    text = (folders / "out" / "brain.md").read_text()
    assert ", published |" not in text
    assert "These are not the published images and masks" in text
    assert "zero-filled" in capsys.readouterr().out
    trained = next(c for c in results["contenders"] if c["name"] == "qpan+-1bit")["training"]
    assert trained["steps"] > 0
    for chart in ("psnr-bars", "psnr-ratio", "psnr-bytes"):
        with Image.open(folders / "out" / "figures" / f"{chart}.png") as image:
            assert np.asarray(image).std() > 0
    with Image.open(folders / "out" / "figures" / "brain-case.png") as sheet:
        assert sheet.width == 3 * 32  # the truth and two contenders


def test_charts_show_the_figures():
    results = {
        "masks": [{"percent": 20}, {"percent": 50}],
        "contenders": [{"name": "a", "bytes": 1000}, {"name": "b", "bytes": None}],
        "results": [
            {"contender": name, "percent": percent, "psnr": psnr, "psnr_interval": [psnr - 1, psnr + 2]}
            for name, percent, psnr in [("a", 20, 30.0), ("a", 50, 40.0), ("b", 20, 31.0), ("b", 50, 41.0)]
        ],
    }
    drawn = charts.charts(results, {"them": {20: 35.0}})
    widths = [[bar.get_width() for bar in panel.patches] for panel in drawn["psnr-bars"].axes]
    assert widths == [[30.0, 31.0, 35.0], [40.0, 41.0]]
    lines = {line.get_label(): line.get_ydata().tolist() for line in drawn["psnr-ratio"].axes[0].lines}
    assert lines == {"a": [30.0, 40.0], "b": [31.0, 41.0], "them, published": [35.0]}
    sizes = [list(line.get_xdata()) for line in drawn["psnr-bytes"].axes[0].lines]
    assert sizes == [[], [1000], [1000], [], []]


def test_precisions_of_a_network_make_one_line():
    families = {
        "brain-pan+": ["brain-pan+", "brain-q-pan+-3bit", "brain-q-pan+-1bit"],
        "brain-pan++": ["brain-pan++", "brain-q-pan++-3bit"],
        "qpan+": ["qpan+-fp", "qpan+-2bit"],
        "mine": ["mine"],
    }
    for family, names in families.items():
        assert {charts._family(name) for name in names} == {family}


def test_an_early_end_of_training_is_said():
    early = {"recipe": "a", "steps": 10, "planned_steps": 40, "steps_before": 5, "init": "a 1234"}
    early["own_steps_before"] = 5
    assert brain._steps(early) == "15 (undertrained: 15 of 40 planned)"
    assert brain._steps({**early, "steps": 35}) == "40"
    started = {**early, "own_steps_before": 2}
    assert brain._steps({**started, "steps": 35}) == (
        "40 (3 of them another model's, that it came from; undertrained: 37 of 40 planned)"
    )
    early["own_steps_before"] = 0
    other = brain._steps({**early, "steps": 35, "init": "b 1234"})
    assert other == "40 (from b; undertrained: 35 of 40 planned)"
    assert brain._steps({**early, "steps": 40, "init": "b 1234"}) == "45 (from b)"
    alone = {**early, "steps_before": 0, "own_steps_before": 0, "init": None}
    assert brain._steps(alone) == "10 (undertrained: 10 of 40 planned)"
    assert brain._steps(dict.fromkeys(alone)) == ""  # a model of someone else's, whose card says nothing
    assert brain._steps(alone | {"planned_steps": None}) == "10"


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ("20,x", "'x' is no whole number"),
        ("²", "no whole number"),
        ("33", "no such file"),
        ("20", "its shape is"),
    ],
)
def test_wrong_masks_are_said(folders, ratios, words):
    shape = (16, 16) if ratios == "20" else (32, 32)
    with pytest.raises(InputError, match=words):
        read_masks(folders / "masks", ratios, shape)


def test_wrong_images_are_said(folders):
    with pytest.raises(InputError, match="no such folder"):
        read_pictures(folders / "nowhere")
    odd = folders / "images" / "z.png"
    Image.new("L", (8, 8), 9).save(odd)
    with pytest.raises(InputError, match="differ in size"):
        read_pictures(folders / "images")
    # 12 bits in 16 would give a PSNR far too high.
    Image.fromarray(np.full((32, 32), 4095, np.uint16)).save(odd)
    with pytest.raises(InputError, match="not an 8-bit grey image"):
        read_pictures(folders / "images")
    for shape, value in (((32, 32), 0), ((6, 32), 9)):
        Image.new("L", shape, value).save(odd)
        with pytest.raises(InputError, match="has no SSIM or PSNR"):
            read_pictures(folders / "images")


def test_damaged_images_are_said(folders, monkeypatch):
    odd = folders / "images" / "z.png"
    Image.new("L", (32, 32), 9).save(odd)
    whole = odd.read_bytes()
    odd.write_bytes(whole.replace(b"IDAT", b"I\xffAT"))
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_pictures(folders / "images")
    odd.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_pictures(folders / "images")

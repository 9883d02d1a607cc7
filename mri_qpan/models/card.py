"""Model cards in words, written from a model file's header."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from mri_qpan.models import store
from mri_qpan.networks import ADMMConfig, Config

CREDITS = {
    "t1_studyforrest": "studyforrest.org T1-weighted head, defaced, one volunteer, 3 T (PDDL, public domain)",
    "adi": "ADI MEMPRAGE T1 and FSE T2 head volumes (Apache-2.0)",
    "cc0_rorden": "Rorden's T1 and T2 head volumes, skull-stripped (CC0)",
    "cardiac_admmnet": "the 100 short-axis hearts of ADMM-Net's chest set (MIT)",
    "ixi_pd": "PD-weighted axial heads, about one a subject, from the IXI data set (CC BY-SA 3.0)",
}
"""Who made the training data, and its terms."""


def describe(path: Path) -> str:
    """Return the card of the model at `path` as Markdown.

    Raises
    ------
    ModelError
        If the file is missing, damaged or not a model of this package.
    """
    model = store.load(path)
    config, card = model.config, model.card
    weights = "full-precision (float32)" if config.bits is None else f"{config.bits}-bit"
    images = "complex images, any number of coils"
    if config.channels == 1:
        images = "real images in [0, 1], as the published experiment has them (`mri-qpan benchmark brain`)"
    sections = [
        f"# {model.name}",
        f"An unfolded {_kind(config)} of {config.layers} layers and {config.filters} filters with {weights} "
        f"weights, for {images}. {_layers(config)} "
        f"{path.stat().st_size:,} bytes, SHA-256 `{model.sha256}`.",
        "It sees only A^H y and x -> A^H A x, never the mask or the coils. Use it for research; it is not a "
        "medical device, and an image that it makes can lack or invent fine detail.",
        "## Training",
        _training(card["training"]),
        "## Data",
        "\n".join(f"- {name}: {CREDITS.get(name, 'see its source')}" for name in card["data"]),
        "## Figures",
        _figures(card["figures"], card["training"].get("validation", [])),
        "## Licence",
        str(card["licence"]) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def _kind(config: Config) -> str:
    if isinstance(config, ADMMConfig):
        return {"admm-net": "ADMM-Net", "admm-csnet": "ADMM-CSNet"}[config.layer]
    if config.penalties == ("l1",):
        return "ISTA-Net+" if config.layer == "pan+" else "ISTA-Net"
    return f"{config.layer.upper()} network ({', '.join(config.penalties)})"


def _layers(config: Config) -> str:
    if isinstance(config, ADMMConfig):
        steps = f"takes {config.solve} conjugate-gradient steps"
        if config.layer == "admm-net":
            steps = f"divides in k-space with one coil, and {steps} otherwise"
        return f"Every reconstruction {steps}."
    data = "begins with a gradient step towards the data"
    if config.consistency:
        data = f"ends with {config.consistency} conjugate-gradient steps towards the data"
    words = f"Every layer {data}" + (" and hands its features to the next." if config.carry else ".")
    if config.exact:
        words += " The measured samples are put back as they are at the end."
    if config.floor:
        words += " Magnitudes have the noise floor that the fully sampled image would have."
    return words


def _training(training: dict[str, Any]) -> str:
    start = ""
    if training.get("init"):
        earlier = training.get("steps_before", 0)
        minutes = training.get("minutes_before", 0)
        start = f", from the weights of {training['init']} after {earlier} steps ({minutes} minutes) in all"
    return (
        f"Recipe `{training.get('recipe', 'unknown')}` of mri-qpan {training.get('version', 'unknown')}: "
        f"{training.get('steps', 'unknown')} steps of {training.get('planned_steps', 'unknown')} planned, "
        f"{training.get('minutes', 'unknown')} minutes on {training.get('machine', 'unknown')}{start}."
        + _range(training)
        + (f" Note: {training['note'].rstrip('.')}." if "note" in training else "")
    )


def _range(training: dict[str, Any]) -> str:
    if "ratios" not in training:
        return ""
    noise = training["largest_noise"]
    words = f"with noise up to {noise:g} of the image's maximum" if noise else "without noise"
    if "matrices" in training:
        words += f", matrices of {', '.join(f'{y} x {x}' for y, x in training['matrices'])}"
    if training.get("spokes"):
        numbers = ", ".join(map(str, training["spokes"]))
        where = f"on pseudo-radial masks of {numbers} spokes alone"
    else:
        low, high = training["ratios"]
        where = f"at {low:.0%} to {high:.0%} of the samples"
    text = f" Trained {where}, {words}."
    if "seen" not in training:
        return text
    ranges = ", ".join(f"{name} {least:g} to {most:g}" for name, (least, most) in training["seen"].items())
    return f"{text} Statistics of its measurements (`mri_qpan.likeness`): {ranges}."


def _figures(figures: dict[str, Any], groups: list[str]) -> str:
    rows = [
        f"- {part}: " + ", ".join(f"{name} {value}" for name, value in values.items() if isfinite(value))
        for part, values in figures.items()
    ]
    of = f" ({', '.join(groups)})" if groups else ""
    return (
        "\n".join(rows)
        + f"\n\nPSNR in dB on magnitudes of simulated measurements of images kept from training{of}."
    )

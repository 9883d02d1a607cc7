"""Recipes: those that ship, those like another, and what is refused."""

import dataclasses

import pytest
from small_trainings import RECIPE, load

from mri_qpan.errors import InputError
from mri_qpan.sampling_masks import ratio_of, spokes
from mri_qpan.training import recipe


def test_a_recipe_like_one_with_a_start_can_begin_at_random(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nlike = "brain-pan+-2r"\ninit = ""')
    assert recipe.load("brain-pan+-2r").init == "brain-pan+"
    assert recipe.load(str(tmp_path / "a.toml")).init is None


@pytest.mark.parametrize(
    "line",
    ["noise = 0.9", "enlarge = 0.5", "noise = -0.1", "enlarge = 3.0", "turned = 1.5", "extracted = -1"],
)
def test_impossible_noise_and_size_are_refused(tmp_path, line):
    text = RECIPE.format(steps=1, init="published = true\n" + line, bits="")
    (tmp_path / "a.toml").write_text(text.replace("channels = 2", "channels = 1"))
    with pytest.raises(InputError, match=r"noise goes from 0 to 0\.5|a share, from 0 to 1"):
        recipe.load(str(tmp_path / "a.toml"))


def test_noise_in_images_is_the_published_experiments(tmp_path):
    (tmp_path / "a.toml").write_text(RECIPE.format(steps=1, init="noise = 0.02", bits=""))
    with pytest.raises(InputError, match="published experiment's"):
        recipe.load(str(tmp_path / "a.toml"))


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_load(name):
    plan = recipe.load(name)
    assert plan.name == name
    assert plan.init is None or plan.init in recipe.shipped()
    # Sets whose terms do not allow weights that ship stay out of every recipe.
    assert not set(plan.groups) & {"siat31", "knee_refinegan"}
    low, high = plan.ratios
    for number in plan.spokes:
        for size in plan.sizes:
            assert low - 0.005 <= ratio_of(spokes(size, number)) <= high + 0.005


def test_a_recipe_is_like_another_but_for_what_it_says(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nlike = "brain-pan+"\nsteps = 7\n[network]\npenalties = ["l1", "mcp"]\n')
    mine, base = recipe.load(str(path)), recipe.load("brain-pan+")
    network = dataclasses.replace(base.network, penalties=("l1", "mcp"))
    assert mine == dataclasses.replace(base, name="mine", steps=7, network=network)
    path.write_text('name = "mine"\nlike = "nobody"\n')
    with pytest.raises(InputError, match="nobody"):
        recipe.load(str(path))


@pytest.mark.parametrize("change", ["steps = 6", "system", "layers = 2", "name"])
def test_broken_recipes_are_refused(tmp_path, change):
    load(tmp_path)
    text = (tmp_path / "tiny.toml").read_text().replace(change, "nonsense = 1 #" + change)
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(InputError, match="recipe"):
        recipe.load(str(tmp_path / "tiny.toml"))
    with pytest.raises(InputError, match="choose from"):
        recipe.load("qpan++")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shares = [1, 2, 3, 4]", "one above zero for each of groups"),
        ("shares = [0]", "one above zero for each of groups"),
        ('validation = ["disc"]', "a group that is trained on"),
    ],
)
def test_a_recipe_that_contradicts_itself(tmp_path, line, words):
    path = tmp_path / "tiny.toml"
    path.write_text(line + "\n" + RECIPE.format(steps=6, init="", bits=""))
    with pytest.raises(InputError, match=words):
        recipe.load(str(path))


@pytest.mark.parametrize(
    "line",
    [
        "steps = 0",
        "steps = 1e4",
        'steps = "6"',
        "steps = true",
        "warm_up = 0",
        "pixels = 0",
        "seed = -1",
        "constrained = -1",
        "learning_rate = 0",
        "learning_rate = nan",
        'learning_rate = "fast"',
        "ratios = [0.6, 0.3]",
        "ratios = [0, 0.3]",
        "ratios = [0.3]",
        "sizes = []",
        "sizes = [[24]]",
        "sizes = [[24, 8]]",
        "sizes = [[24.5, 20]]",
        "supervision = 1.5",
        "constraint = -1",
        "distillation = 2",
        "spokes = [0]",
        "groups = []",
        "groups = [1]",
        'groups = ["disc", "disc"]',
        'groups = "disc"',
        'published = "no"',
        'name = "a/b"',
        'name = ""',
        'name = ".hidden"',
        "name = 3",
    ],
)
def test_impossible_values_are_named(tmp_path, line):
    key = line.partition(" ")[0]
    text = RECIPE.format(steps=6, init="", bits="")
    kept = [old for old in text.splitlines() if not old.startswith(f"{key} =")]
    (tmp_path / "a.toml").write_text(line + "\n" + "\n".join(kept))
    with pytest.raises(InputError, match=rf"a\.toml: .*{key}"):
        recipe.load(str(tmp_path / "a.toml"))

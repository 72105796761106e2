"""Recipes: every mistake is one line that names key, value and place; the ones shipped are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.recipe import RecipeError, load_recipe
from recdistill.recipe import Recipe

SHIPPED = sorted(Path("recipes").glob("*.toml"))


def write(folder: Path, text: str, name: str = "r.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    load_recipe(Recipe, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name = "x"\n[data]\n[teacher]\nnum_layer = 4\n',
            r"r.toml:4: unknown recipe key 'teacher.num_layer'; did you mean 'teacher.num_layers'",
        ),
        (
            'name = "x"\n[data]\n[teacher]\nnum_layers = -1\n',
            r"r.toml:4: teacher.num_layers = -1: .*greater than or equal to 0",
        ),
        ('name = "x"\n[data]\n[student]\ndropout = "0.1"\n', r"r.toml:4: student.dropout = '0.1': .*valid number"),
        ('name = "x"\n', "lacks the key 'data'"),
        (
            'name = "x"\n[data]\n[distill.objectives.forward_k]\nweight = 1\n',
            "no objective is named 'forward_k'; known: forward_kl",
        ),
        (
            'name = "x"\n[data]\n[distill.objectives.forward_kl]\nwieght = 1.0\n',
            r"r.toml:4: unknown recipe key 'distill.objectives.forward_kl.wieght'; did you mean .*forward_kl.weight",
        ),
        (
            'name = "x"\n[data]\n[regularisers.history_contrasts]\nweight = 1\n',
            "no regulariser is named 'history_contrasts'; known: history_contrast, text_alignment",
        ),
        (
            'name = "x"\n[data]\n[regularisers.text_alignment]\ntemprature = 1.0\n',
            r"r.toml:4: unknown recipe key 'regularisers.text_alignment.temprature'; did you mean .*alignment.temperature",
        ),
        (
            'name = "x"\n[data]\n[distill.objectives.rrd]\nweight = 0.5\nnum_interesting = 0\n',
            r"r.toml:5, .*: distill.objectives.rrd.num_interesting = 0: .*greater than or equal to 1",
        ),
        ("name = \n", "not valid TOML"),
        ('name = "a/b"\n[data]\n', "name = 'a/b'"),
        ('name = "x"\nbase = 3\n[data]\n', "base = 3: write the path of another recipe"),
        ('name = "x"\nbase = "."\n[data]\n', "cannot be read: Is a directory"),
        ('name = "x"\n[data]\n[student.optim]\nclip_norm = inf\n', r"r.toml:4: student.optim.clip_norm = inf: .*finite"),
        ('name = "x"\n[data]\n[student]\ndropout = nan\n', r"r.toml:4: student.dropout = nan: .*finite"),
        (
            'name = "x"\n[data]\n[gate.budgets]\nlatency_p50 = 0.95\n',
            r"r.toml:4: gate.budgets.latency_p50 = 0.95: .*a ratio above 1 is needed, or 0 for what is not gated",
        ),
        ('name = "x"\nx = ' + "[" * 5000, "not valid TOML"),
        (
            'name = "x"\n[data]\n[student]\nhidden_size = 10\nnum_heads = 4\n',
            r"r.toml:4, .*r.toml:5: student.hidden_size = 10 is not a multiple of student.num_heads = 4",
        ),
        (
            'name = "x"\n[data]\n[teacher]\nitems = "text"\n[distill.objectives.minilm]\nweight = 1.0\n',
            r"r.toml:4, .*the objective minilm needs teacher.items = 'soft'",
        ),
        (
            'name = "x"\n[data]\n[distill]\nlabel_weight = 0.0\n[distill.objectives]\nforward_kl = { weight = 0.0 }\n',
            "the student would learn nothing",
        ),
        (
            'name = "x"\n[data]\n[student]\nhidden_size = 64\n[distill.objectives.minilm]\nrelation_heads = 5\n',
            r"minilm.relation_heads = 5 does not divide student.hidden_size = 64",
        ),
        (
            'name = "x"\n[data]\n[student]\nnum_layers = 1\n[export]\nfirst_layer_table = true\n',
            r"r.toml:6, .*r.toml:4: export.first_layer_table looks up what the first of several layers computes",
        ),
        ('name = "x"\n[data]\n[targets]\nmembers = {teacher = 0}\n', r"r.toml:4: targets.members = .*nobody teaches"),
        (
            'name = "x"\n[data]\n[distill]\nensemble_control = true\n',
            r"r.toml:4: distill.ensemble_control averages the seeds of control-text, and seeds = \[0\] names one",
        ),
        (
            'name = "x"\n[data]\n[teacher]\nitem_init = "control-text"\nitem_size = 32\n',
            r"r.toml:5, .*r.toml:4: teacher.item_init = 'control-text' needs teacher.item_size = 32 to equal .*= 64",
        ),
        (
            'name = "x"\n[data]\n[targets]\nmembers = { item-encoder = 1.0 }\n',
            r"r.toml:4: targets.members names item-encoder, which a recipe without the section item_encoder has not",
        ),
        ('name = "x"\n[data]\n[targets]\nmembers = { tutor = 1.0 }\n', r"r.toml:4: targets.members.* nobody is named 'tutor'"),
        (
            'name = "x"\n[data]\n[targets]\nmembers = { view-a = 1.0 }\n',
            r"r.toml:4: targets.members names view-a, and the recipe has no \[views.a\]",
        ),
        (
            'name = "x"\n[data]\n[views.a]\nlayer = [8]\n',
            r"r.toml:4: unknown recipe key 'views.a.layer'; did you mean 'views.a.layers'",
        ),
        ('name = "x"\n[data]\n[text]\nencoder = "words"\n', r"r.toml:4: text.encoder = 'words' is for views"),
        ('name = "x"\n[data]\n[views.a]\nlayers = [0]\n', r"r.toml:4: views.a.layers.* from 1 on"),
        (
            'name = "x"\n[data]\n[targets]\nmembers = { ease-text = 1.0, teacher = 1.0 }\n[distill.objectives.hidden]\n',
            r"r.toml:4, .*r.toml:5: an objective learns from states \(hidden\) .* ease-text has none; name another one first",
        ),
        ('name = "x"\n[data]\n[views."../a"]\nlayers = [8]\n', r"views.../a = .*should match pattern"),
        ('name = "x"\n[data]\n[views.Early]\nlayers = [8]\n', r"views.Early = .*should match pattern"),
        (
            'name = "x"\n[data]\n[teacher]\nitem_init = "control-tuned"\nitem_size = 64\n',
            r"r.toml:4: teacher.item_init names control-tuned, which a recipe without the section item_encoder has not",
        ),
        ('name = "x"\n[data]\n[text]\nlayers = [4, 4]\n', r"r.toml:4: text.layers = .*each once"),
        ('name = "x"\n[data]\n[benchmark]\nk = 50\n', r"r.toml:4: benchmark.k = 50 asks for more items than .*export.k = 20"),
        ('name = "x"\nseeds = [1, 1]\n[data]\n', r"r.toml:2: seeds = \[1, 1\] names a seed twice"),
        ('name = "x"\nseeds = [-1]\n[data]\n', r"r.toml:2: seeds.0 = -1: .*greater than or equal to 0"),
        ('name = "x"\n[data]\noptions = { k_core = 5 }\n', r"r.toml:3: unknown recipe key 'data.options.k_core'"),
        (
            'name = "x"\n[data]\nimporter = "table"\n[data.options]\ncolunms = { user_id = "u" }\n',
            r"r.toml:5: unknown recipe key 'data.options.colunms'; did you mean 'data.options.columns'",
        ),
        (
            'name = "x"\n[data]\nimporter = "table"\noptions = { columns = { usr_id = "u" } }\n',
            r"r.toml:4: data.options.columns.usr_id = 'usr_id': .*'user_id', 'item_id', 'timestamp'",
        ),
        (
            'name = "x"\n[data]\nimporter = "table"\noptions = { columns = { user_id = "u", item_id = "u" } }\n',
            r"r.toml:4: data.options.columns = .*names a column of the table twice",
        ),
        ('name = "x"\n[data]\nimporter = "amazon"\n', r"r.toml.*: the recipe lacks the key 'data.options.metadata'"),
        (
            'name = "x"\n[data]\nimporter = "amazon"\noptions = { metadata = "m", k_core = 0 }\n',
            r"r.toml:4: data.options.k_core = 0: .*greater than or equal to 1",
        ),
        (
            'name = "x"\n[data]\n[text]\nprompt = "{titel}"\n',
            r"r.toml:4: text.prompt = '\{titel\}': .*names titel; items.parquet may have: item_id, title",
        ),
        (
            'name = "x"\n[data]\n[gate]\ngroups = 9\nmax_groups = 3\n',
            r"r.toml:5, .*r.toml:4: gate.max_groups = 3 is less than gate.groups = 9",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(Recipe, write(tmp_path, text))


def test_base_is_overridden_key_by_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        'name = "base"\nseeds = [1]\n[data]\nsource = "ml-100k"\n[student]\nhidden_size = 32\ndropout = 0.5\n',
        "base.toml",
    )
    recipe = load_recipe(Recipe, write(tmp_path, 'base = "base.toml"\nname = "own"\n[student]\nhidden_size = 16\n'))
    assert (recipe.name, recipe.seeds, recipe.data.source) == ("own", [1], "ml-100k")
    assert (recipe.student.hidden_size, recipe.student.dropout) == (16, 0.5)


def test_one_key_of_a_part_leaves_its_other_defaults(tmp_path: Path) -> None:
    """Those of the section that it is a part of, and not those of all training runs."""
    text = 'name = "x"\n[data]\n[teacher.optim]\nlearning_rate = 0.5\n[item_encoder]\noptim = { epochs = 3 }\n'
    recipe = load_recipe(Recipe, write(tmp_path, text), ["student.optim.epochs=2"])
    usual = load_recipe(Recipe, write(tmp_path, 'name = "x"\n[data]\n[item_encoder]\n'))
    assert recipe.item_encoder and usual.item_encoder
    for own, other, changed in (
        (recipe.teacher.optim, usual.teacher.optim, {"learning_rate": 0.5}),
        (recipe.item_encoder.optim, usual.item_encoder.optim, {"epochs": 3}),
        (recipe.student.optim, usual.student.optim, {"epochs": 2}),
    ):
        assert own == other.model_copy(update=changed) != other
    assert usual.teacher.optim.batch_size == 32 != usual.student.optim.batch_size
    with pytest.raises(RecipeError, match=r"unknown recipe key 'teacher\.optim\.epoch'"):
        load_recipe(Recipe, write(tmp_path, text), ["teacher.optim.epoch=2"])


def test_a_folder_is_the_same_llm_however_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[data]\n')
    names = [
        load_recipe(Recipe, path, [f"teacher.llm={name}"]).teacher.llm for name in ("models/a", "models/a/", "./models//a")
    ]
    assert names == ["models/a"] * 3
    assert load_recipe(Recipe, path, ["teacher.llm=Qwen/Qwen3-0.6B"]).teacher.llm == "Qwen/Qwen3-0.6B"


def test_the_lesson_is_what_is_left_of_a_recipe_and_its_bases(tmp_path: Path) -> None:
    objective, member = "objectives = { forward_kl = { weight = 1.0 } }", "members = { teacher = 2.0 }"
    write(tmp_path, f'name = "x"\n[data]\n[distill]\n{objective}\n[targets]\n{member}\n', "base.toml")
    objective, member = "objectives = { rrd = { weight = 0.05 } }", "members = { control-text = 1.0 }"
    text = (
        f'base = "base.toml"\n[distill]\nlabel_weight = 0.2\n{objective}\n[regularisers.text_alignment]\n[targets]\n{member}\n'
    )
    own = write(tmp_path, text)
    assert load_recipe(Recipe, own).lesson == (
        "taught by teacher 2, control-text 1; learns label 0.2, forward_kl 1, rrd 0.05; beside it text_alignment 0.1"
    )
    fewer = [
        "distill.objectives.forward_kl.weight=0.0",
        "targets.members.teacher=0.0",
        "regularisers.text_alignment.weight=0.0",
    ]
    assert load_recipe(Recipe, own, fewer).lesson == "taught by control-text 1; learns label 0.2, rrd 0.05"


def test_two_recipes_that_train_the_same_say_the_same_of_it(tmp_path: Path) -> None:
    """Defaults are written out, and what has no weight is left out: else a new default would pass for the old one."""
    path = write(tmp_path, 'name = "x"\n[data]\n')

    def of(*keys: str) -> str:
        return load_recipe(Recipe, path, list(keys)).of_training

    same = {
        "distill.objectives={forward_kl = {}}",
        "distill.objectives={forward_kl = {weight = 1.0}, rrd = {weight = 0.0}}",
        "regularisers={text_alignment = {weight = 0.0, temperature = 0.2}}",
        "targets.members={teacher = 1.0, control-text = 0.0}",
        "export.k=20",
    }
    assert {of(key) for key in same} == {of()}
    others = [
        "distill.objectives={rrd = {}}",
        "regularisers={text_alignment = {}}",
        "targets.members={teacher = 2.0}",
        "ease.l2=1.0",
    ]
    assert len({of(), *map(of, others)}) == 1 + len(others)
    assert load_recipe(Recipe, path, others).distill.objectives["rrd"] == {
        "weight": 0.05,
        "num_interesting": 20,
        "num_uninteresting": 100,
        "rank_temperature": 20.0,
    }


def test_a_view_that_teaches_nobody_is_known(tmp_path: Path) -> None:
    text = 'name = "x"\n[data]\n[views.a]\nlayers = [8]\n[views.b]\nlayers = [4]\n[targets]\nmembers = { view-b = 1.0 }\n'
    assert load_recipe(Recipe, write(tmp_path, text)).idle_views == ["a"]


def test_circular_base(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(Recipe, write(tmp_path, 'base = "r.toml"\nname = "x"\n[data]\n'))


def test_set_overrides_last(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[data]\n[student]\nhidden_size = 32\n')
    recipe = load_recipe(Recipe, path, ["student.hidden_size=16", "teacher.llm=Qwen/Qwen3-0.6B", "seeds=[1, 2]"])
    assert (recipe.student.hidden_size, recipe.teacher.llm, recipe.seeds) == (16, "Qwen/Qwen3-0.6B", [1, 2])
    with pytest.raises(RecipeError, match=r"--set student.hiden=1: unknown recipe key"):
        load_recipe(Recipe, path, ["student.hiden=1"])
    with pytest.raises(RecipeError, match=r"section.key=value"):
        load_recipe(Recipe, path, ["nonsense"])


def test_states_are_asked_of_the_first_member_only(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[data]\n[teacher]\nitems = "text"\n[distill.objectives.minilm]\n')
    with pytest.raises(RecipeError, match="minilm needs"):
        load_recipe(Recipe, path)
    assert load_recipe(Recipe, path, ["targets.members={control-text = 1.0, teacher = 1.0}"]).relation_heads

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import REPOSITORY

from mstag import config


def write(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_shipped_config_is_read_and_named_after_its_file(path: Path) -> None:
    assert config.load_config(path).dataset.name == path.stem


def test_every_field_has_a_default_and_a_doc_string() -> None:
    tree = ast.parse(Path(config.__file__).read_text())
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if cls.name == "Config":
            continue
        body = cls.body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                name = f"{cls.name}.{ast.unparse(statement.target)}"
                assert statement.value is not None, f"{name} has no default"
                is_text = isinstance(following, ast.Expr) and isinstance(
                    following.value, ast.Constant
                )
                assert is_text, f"{name} has no doc string"


def test_a_minimal_config_names_a_table_and_nothing_else(tmp_path: Path) -> None:
    text = '[dataset]\nname = "mine"\nkind = "table"\ntable = "t.csv"\n'
    settings = config.load_config(write(tmp_path, text))
    assert settings.features.num_frames == 628
    assert settings.train == config.TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trian]\nepochs = 1", ["[trian]", "'train'"]),
        ("[train]\nepoch = 1", ["train.epoch", "'epochs'"]),
        ("[train]\nepochs = 'many'", ["train.epochs", "'many'", "whole number"]),
        ("[train]\nepochs = true", ["train.epochs", "whole number"]),
        ("[train]\nepochs = 0", ["train.epochs", "at least 1"]),
        ("[model]\nchunk_frames = -1", ["model.chunk_frames", "at least 0"]),
        ("[train]\nlearning_rate = nan", ["train.learning_rate", "number"]),
        ("[train]\nlearning_rate = 0.0", ["train.learning_rate", "above 0"]),
        ("[train]\nprecision = 'fp61'", ["train.precision", "fp61", "'fp16'"]),
        ("[train]\naccumulate_steps = 0", ["train.accumulate_steps", "at least 1"]),
        ("[train]\nlr_scaling = 'squared'", ["train.lr_scaling", "squared", "sqrt"]),
        ("[train]\nema_decay = 1.0", ["train.ema_decay", "below 1", "0.999"]),
        ("[train]\nema_decay = -0.1", ["train.ema_decay", "at least 0"]),
        ("[train]\nlabel_smoothing = 0.6", ["train.label_smoothing", "between 0.0 and 0.5"]),
        ("[train]\npositive_weight = 2", ["train.positive_weight", "between 0.0 and 1.0"]),
        ("[train]\nmax_bad_steps = -1", ["train.max_bad_steps", "at least 0"]),
        ("[train]\nearly_stop_epochs = -1", ["train.early_stop_epochs", "at least 0"]),
        ("[dataset]\nsplit = 'artists'", ["dataset.split", "'artist'"]),
        ("[dataset]\nsplit_sizes = [0.5, 0.5]", ["dataset.split_sizes", "3 numbers"]),
        ("[dataset]\nsplit_sizes = [0.5, 0.5, 0.5]", ["dataset.split_sizes", "add up to 1"]),
        ("[dataset]\nkind = 'table'", ["dataset.table", "table ="]),
        ("[dataset]\nname = 'a/b'", ["dataset.name", "slashes"]),
        ("[shards]\nmax_skipped = 2", ["shards.max_skipped", "between"]),
        ("train = 3", ["[train]"]),
        ("[train", ["not valid TOML"]),
    ],
)
def test_a_bad_setting_is_named_with_what_to_do(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        config.load_config(write(tmp_path, text))
    for word in ["a.toml", *words]:
        assert word in str(caught.value)


def test_a_missing_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml: no such file; name a TOML file such as"):
        config.load_config(tmp_path / "none.toml")
    there = write(tmp_path, "")
    with pytest.raises(ValueError, match=rf"none\.toml: no such file; there are {there}$"):
        config.load_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        config.load_config(tmp_path)


def test_overrides_are_toml_values_or_plain_strings(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nepochs = 9")
    overrides = ("train.epochs=3", "train.learning_rate=1", "dataset.name=mine", "train.seed = 7")
    settings = config.load_config(path, overrides)
    assert (settings.train.epochs, settings.train.seed) == (3, 7)
    assert settings.train.learning_rate == 1.0 and settings.dataset.name == "mine"


@pytest.mark.parametrize("bad", ["epochs=3", "train.epochs", "train.=3", "=3"])
def test_an_override_without_section_key_and_value_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match=r"section\.key=value"):
        config.load_config(write(tmp_path, ""), (bad,))


@given(
    name=st.text(
        st.characters(exclude_characters="/\\\0\n", exclude_categories=["Cs", "Cc"]), min_size=1
    ),
    rate=st.floats(1e-9, 9.0),
    seed=st.integers(0, 2**62),
)
def test_a_resolved_config_reads_back_as_itself(name: str, rate: float, seed: int) -> None:
    import tomllib

    settings = config.Config(
        dataset=config.DatasetConfig(name=name),
        train=config.TrainConfig(learning_rate=rate, seed=seed),
    )
    assert config.from_tables(tomllib.loads(config.to_toml(settings))) == settings
    assert config.from_tables(config.to_tables(settings)) == settings


def test_a_bad_override_is_blamed_on_set_and_not_on_the_file(tmp_path: Path) -> None:
    good, bad = write(tmp_path, "[train]\nepochs = 9"), ("train.epoch=3",)
    with pytest.raises(ValueError, match=r"^--set: unknown setting train\.epoch.*'epochs'"):
        config.load_config(good, bad)
    with pytest.raises(ValueError, match=r"^config .*a\.toml: unknown setting train\.seeed"):
        config.load_config(write(tmp_path, "[train]\nseeed = 9"), ("train.epochs=3",))


def test_the_difference_of_two_configs_is_named_setting_by_setting() -> None:
    old = config.to_tables(config.Config())
    new = config.to_tables(config.Config(train=config.TrainConfig(epochs=7)))
    assert config.difference(old, new) == ["train.epochs: 100 -> 7"]
    assert config.difference(old, old) == []


def test_digests_see_every_feature_setting_and_the_order_of_tags() -> None:
    plain = config.FeatureConfig()
    digests = {config.features_digest(plain)}
    for field in dataclasses.fields(plain):
        value = getattr(plain, field.name)
        other = "unknown" if field.name == "recipe" else value * 2
        changed = dataclasses.replace(plain, **{field.name: other})
        digests.add(config.features_digest(changed))
    assert len(digests) == 1 + len(dataclasses.fields(plain))
    assert config.tags_digest(["a", "b"]) != config.tags_digest(["b", "a"])

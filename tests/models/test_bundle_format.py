"""Bundles of every age: read for ever, with the scores they had; newer ones are refused."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import make_bundle_fixture
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tagger import make_bundle

from mstag.config import FeatureConfig, ModelConfig, digest
from mstag.models import bundle_format
from mstag.models.bundle import load_bundle
from mstag.tagging.tagger import Tagger

ARCHIVES = sorted((Path(__file__).parent / "bundles").glob("*.zip"))

SETTINGS = {
    "features": ["sample_rate_hz", "n_fft", "hop_length", "n_mels", "recipe", "num_frames"],
    "model": ["name", "hidden_units", "dropout", "batchnorm_momentum", "chunk_frames"],
}
"""Of format 2. If you add one: raise FORMAT_VERSION, write the upgrade that says what older
bundles meant by not having it, and commit a bundle of the new format (make_bundle_fixture.py)."""


def test_new_settings_make_a_new_format() -> None:
    assert bundle_format.FORMAT_VERSION == 2
    for section, cls in (("features", FeatureConfig), ("model", ModelConfig)):
        assert [field.name for field in dataclasses.fields(cls)] == SETTINGS[section]
    assert sorted(bundle_format.UPGRADES) == list(range(1, bundle_format.FORMAT_VERSION))


def test_a_bundle_of_every_format_is_kept() -> None:
    versions = set()
    for archive in ARCHIVES:
        with zipfile.ZipFile(archive) as files:
            versions.add(json.loads(files.read("tagger.json"))["format_version"])
    assert versions == set(range(1, bundle_format.FORMAT_VERSION + 1))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_bundles_of_old_score_as_they_did(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as files:
        files.extractall(tmp_path)
    golden = json.loads((tmp_path / "golden.json").read_text())
    tagger = Tagger.load(tmp_path, "cpu")
    assert tagger.tag_names == make_bundle_fixture.TAGS
    assert tagger.bundle.features.recipe == "log-mel"
    scores = tagger.scores(make_bundle_fixture.waveform(), make_bundle_fixture.RATE_HZ)
    assert np.ptp(golden["scores"]) > 0.1
    # Rounding to float16 may fall the other way where a kernel adds in another order.
    np.testing.assert_allclose(scores, golden["scores"], atol=2e-4)


def edit(folder: Path, **changes: dict[str, Any] | str | int) -> None:
    """Changes sections as another mstag might have written them, digests included."""
    path = folder / "tagger.json"
    tagger = json.loads(path.read_text())
    for name, change in changes.items():
        tagger[name] = {**tagger[name], **change} if isinstance(change, dict) else change
    tagger["features_digest"] = digest(tagger["features"])
    path.write_text(json.dumps(tagger))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 3}, "format 3 is newer than this mstag reads"),
        ({"features": {"window": "hann"}}, r"features\.window is a setting that this mstag"),
        ({"model": {"depth": 3}}, r"model\.depth is a setting that this mstag"),
        ({"features": {"recipe": "cqt"}}, "unknown value features.recipe"),
        ({"model": {"name": "transformer"}}, "no such architecture"),
    ],
)
def test_what_a_newer_mstag_wrote_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    edit(make_bundle(tmp_path), mstag_version="99.1", **changes)
    with pytest.raises(ValueError, match=f"{words}.*99.1.*upgrade mstag") as caught:
        load_bundle(tmp_path)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_missing_is_not_guessed(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    tagger = json.loads((tmp_path / "tagger.json").read_text())
    del tagger["model"]["dropout"]
    (tmp_path / "tagger.json").write_text(json.dumps(tagger))
    with pytest.raises(ValueError, match=r"lacks or garbles 'model\.dropout'"):
        load_bundle(tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ).filter(lambda value: value not in (float("inf"), float("-inf")))
)
def test_the_readable_form_is_json(value: Any) -> None:
    if "Infinity" not in json.dumps(value):
        assert json.loads(bundle_format.to_text({"key": value})) == {"key": value}


def test_a_row_of_a_table_stands_on_a_line() -> None:
    rows = [{"tag": f"tag {i}", "roc_auc": 0.9, "roc_auc_ci": [0.8, 1.0]} for i in range(9)]
    tagger = {"scores": {"test": {"per_tag": rows}}, "thresholds": [i / 7 for i in range(50)]}
    lines = bundle_format.to_text(tagger).splitlines()
    assert sum("roc_auc_ci" in line for line in lines) == 9
    assert len(lines) < 40
    assert max(map(len, lines)) <= bundle_format.LINE_LENGTH

"""A tagger that could not hear is not loaded, and the library's types are told."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from tiny_tagger import make_bundle

import mstag
from mstag.config import FeatureConfig
from mstag.models.bundle import load_bundle
from mstag.tagging.requirements import PACKAGES
from mstag.tagging.tagger import Tagger


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{package} is not installed.*pip install {package}"):
        mstag.load_tagger(tmp_path, "cpu")


def test_a_bundle_whose_recipe_is_unknown_cannot_tag_audio(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    foreign = dataclasses.replace(bundle, features=FeatureConfig(recipe="unknown"))
    with pytest.raises(ValueError, match="spectrograms were made elsewhere"):
        Tagger(foreign, torch.device("cpu"))


def test_the_types_are_shipped() -> None:
    assert (Path(mstag.__file__).parent / "py.typed").exists()

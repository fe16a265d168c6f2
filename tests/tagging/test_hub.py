"""Bundles on a hub: fetched and pushed over real HTTP; what cannot be done is said in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_site import HubSite, hub_site
from tiny_tagger import TAGS, make_bundle, music

import mstag
from mstag.models.bundle import load_bundle
from mstag.tagging import hub
from mstag.tagging.tagger import Tagger


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSite]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with hub_site() as site:
        yield site


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_id_is_fetched_and_only_its_safe_files(
    site: HubSite, bundle: Path, tmp_path: Path
) -> None:
    evil = {"model.py": b"import os", "weights.pkl": b"\x80", "a/tagger.json": b"{}"}
    sha = site.commit("ann/rock", {**content_of(bundle), **evil})
    place: dict[str, Any] = {"cache_dir": tmp_path / "cache", "endpoint": site.url}
    tagger = mstag.load_tagger("ann/rock", "cpu", token="hf_me", **place)
    assert tagger.tag_names == TAGS
    expected = Tagger.load(bundle, "cpu").scores(music(9000), 8000)
    assert (tagger.scores(music(9000), 8000) == expected).all()
    names = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "tagger.json" in names
    assert not names & {"model.py", "weights.pkl", "a"}
    assert {token for _, _, token in site.requests} == {"hf_me"}
    # A later commit is another tagger; the first can still be named, and needs no network.
    site.commit("ann/rock", content_of(make_bundle(tmp_path / "new", seed=1)))
    newer = Tagger.from_pretrained("ann/rock", "cpu", **place)
    assert newer.bundle.digest != tagger.bundle.digest
    for revision in (sha, None):
        site.requests.clear()
        again = mstag.load_tagger("ann/rock", "cpu", revision=revision, **place)
        assert again.bundle.digest == (tagger if revision else newer).bundle.digest
    site.stop()
    offline = mstag.load_tagger("ann/rock", "cpu", **place)
    assert offline.bundle.digest == newer.bundle.digest


def test_pushed_and_fetched_it_is_the_same(site: HubSite, bundle: Path, tmp_path: Path) -> None:
    site.token = "hf_write"
    place: dict[str, Any] = {"token": "hf_write", "endpoint": site.url}
    old = Tagger.load(make_bundle(tmp_path / "old", seed=1), "cpu")
    old.push_to_hub("ann/rock", private=True, **place)
    url = Tagger.load(bundle, "cpu").push_to_hub("ann/rock", message="better", **place)
    sha, files = site.commits["ann/rock"][-1]
    assert url == f"{site.url}/ann/rock/commit/{sha}"
    digest = load_bundle(bundle).digest
    weights = f"weights-{digest[:16]}.safetensors"
    assert set(files) == {".gitattributes", "README.md", "tagger.json", weights}
    assert site.private == {"ann/rock": True}
    assert files[weights] == (bundle / weights).read_bytes()
    fetched = mstag.load_tagger("ann/rock", "cpu", cache_dir=tmp_path / "cache", **place)
    assert fetched.bundle.digest == digest
    assert fetched.thresholds == Tagger.load(bundle, "cpu").thresholds


def test_a_path_that_exists_wins(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_hub", lambda _: pytest.fail("asked the hub"))
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "rock").symlink_to(bundle)
    assert mstag.load_tagger("ann/rock", "cpu").tag_names == TAGS
    (tmp_path / "ann" / "empty").mkdir()
    with pytest.raises(ValueError, match="not a trained model"):
        mstag.load_tagger("ann/empty")
    for no_id in ("none", "/ann/none", "a/b/c", "../none", "bob/", Path("ann/none")):
        with pytest.raises(ValueError, match="no such folder"):
            hub.find_or_fetch(no_id)


def test_a_wrong_name_beside_other_bundles_is_no_id(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_hub", lambda _: pytest.fail("asked the hub"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rock").symlink_to(bundle)
    with pytest.raises(ValueError, match=r"runs/rok: .*no such folder\); there are runs/rock$"):
        hub.find_or_fetch("runs/rok")


def test_what_is_not_there_is_said_in_a_line(site: HubSite, tmp_path: Path) -> None:
    place: dict[str, Any] = {"cache_dir": tmp_path, "endpoint": site.url}
    site.commit("ann/other", {"config.json": b"{}"})
    for name, revision, words in (
        ("ann/none", None, "no such folder, and from the Hub: there is no ann/none, or it is"),
        ("ann/other", "v9", "has no revision v9"),
        ("ann/other", None, "is no tagger that mstag trained"),
        ("ann/a--b", None, "not a valid id"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            hub.find_or_fetch(name, revision=revision, **place)
        assert "\n" not in str(caught.value)


def test_no_network_no_package_no_right(
    site: HubSite, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = Tagger.load(bundle, "cpu")
    site.token = "hf_write"
    with pytest.raises(ValueError, match=r"ann/rock: to the Hub: .*(token|failed)") as caught:
        tagger.push_to_hub("ann/rock", token="hf_read", endpoint=site.url)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="must look like user/name"):
        tagger.push_to_hub("rock")
    site.stop()
    with pytest.raises(ValueError, match="the server cannot be reached and it was not fetched"):
        hub.find_or_fetch("ann/rock", cache_dir=tmp_path, endpoint=site.url)
    with pytest.raises(ValueError, match=r"ann/rock: to the Hub: failed \("):
        tagger.push_to_hub("ann/rock", token="hf_write", endpoint=site.url)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (hub.find_or_fetch, tagger.push_to_hub):
        with pytest.raises(ValueError, match=r"pip install 'mstag\[hub\]'"):
            call("ann/rock")

"""Embeddings: what the last layer hears, of waveforms and files, at any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tagger import FEATURES, LONGER, TAGS, WINDOW_SAMPLES, make_bundle, make_wav, music

from mstag.models import embedding_size
from mstag.tagging.tagger import Tagger

RATE_HZ = FEATURES.sample_rate_hz


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


def test_the_tags_are_read_from_them(tagger: Tagger) -> None:
    waveform = music(round(11.6 * WINDOW_SAMPLES))
    over_time = tagger.embeddings_over_time(waveform, RATE_HZ)
    assert over_time.shape == (12, 8) == (12, embedding_size(tagger.bundle.model))
    assert over_time.min() >= 0
    with torch.inference_mode():
        read = torch.sigmoid(tagger.bundle.model.classify(torch.from_numpy(over_time)))
    scores = tagger.scores_over_time(waveform, RATE_HZ)
    np.testing.assert_allclose(read.numpy(), scores, atol=1e-6)
    mean = tagger.embeddings(waveform, RATE_HZ)
    np.testing.assert_array_equal(mean, over_time.mean(axis=0))
    assert mean.dtype == over_time.dtype == np.float32


def test_chunks_are_rows(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, features=LONGER, chunk_frames=64)
    tagger = Tagger.load(bundle, "cpu")
    waveform = music(2 * LONGER.num_frames * LONGER.hop_length)
    over_time = tagger.embeddings_over_time(waveform, RATE_HZ)
    assert len(over_time) == len(tagger.scores_over_time(waveform, RATE_HZ)) == 6


def test_a_file_is_its_waveform(tagger: Tagger, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a.wav", 2.7)
    expected = tagger.embeddings(music(round(2.7 * WINDOW_SAMPLES)), RATE_HZ)
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_allclose(tagger.embeddings(source), expected, atol=1e-5)
    assert tagger.embeddings_over_time(path).shape == (3, 8)


def test_refusals(tagger: Tagger, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without its sample_rate_hz"):
        tagger.embeddings(music(9000))
    with pytest.raises(ValueError, match="must be mono"):
        tagger.embeddings(np.zeros((2, 9000), np.float32), RATE_HZ)
    with pytest.raises(ValueError, match="not finite numbers"):
        tagger.embeddings(np.full(9000, 1e30, np.float32), RATE_HZ)
    (tmp_path / "a.mp3").write_text("text")
    with pytest.raises(ValueError, match="cannot be decoded"):
        tagger.embeddings(tmp_path / "a.mp3")


def test_a_batch_of_files_keeps_its_order_and_survives_a_bad_one(
    tagger: Tagger, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{i}.wav", 1 + i / 2, seed=i) for i in range(4)]
    assert tagger.tag_batch(paths) == [tagger.tag(path) for path in paths]
    assert tagger.tag_batch([]) == []
    bad = tmp_path / "bad.mp3"
    bad.write_text("text")
    with pytest.raises(ValueError, match=r"bad\.mp3: .*decoded"):
        tagger.tag_batch([paths[0], bad])
    with pytest.raises(ValueError, match="must be raise or none"):
        tagger.tag_batch(paths, on_error="skip")  # type: ignore[call-overload]
    found = tagger.tag_batch([str(bad), str(paths[0]), "none.wav"], on_error="none")
    assert found[0] is found[2] is None
    assert found[1] is not None
    assert {tag for tag, _ in found[1]} == set(TAGS)

"""Networks of others, written from their descriptions: published sizes and shapes."""

from __future__ import annotations

import math

import pytest
import torch

from mstag.config import ModelConfig, load_config
from mstag.models import build_model, classify, embed, embedding_size, frames_at_once, head_of
from mstag.models.musicnn import Musicnn
from mstag.models.short_chunk_res import FLOOR, MIN_FRAMES, ShortChunkRes

PUBLISHED = {
    # (bands, frames), hidden units, weights in millions as Won et al. 2020 count them
    "short_chunk_res": ((128, 231), 512, 12.1),
    "musicnn": ((96, 187), 200, 0.79),
}


def published(name: str, num_tags: int = 50) -> torch.nn.Module:
    shape, hidden_units, _ = PUBLISHED[name]
    torch.manual_seed(0)
    settings = ModelConfig(name=name, hidden_units=hidden_units, dropout=0.5)
    return build_model(settings, *shape, num_tags)


def norm(channels: int) -> int:
    return 2 * channels


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_weights_as_published(name: str) -> None:
    found = sum(weights.numel() for weights in published(name).parameters())
    assert found / 1e6 == pytest.approx(PUBLISHED[name][2], rel=5e-3)


def test_weights_of_short_chunk_res_by_hand() -> None:
    def block(i: int, o: int) -> int:
        return 2 * (9 * i * o + o) + (9 * o * o + o) + 3 * norm(o)

    blocks = block(1, 128) + block(128, 128) + block(128, 256) + 3 * block(256, 256)
    classifier = (512 * 512 + 512) + norm(512) + (512 * 50 + 50)
    expected = norm(1) + blocks + block(256, 512) + classifier
    assert sum(p.numel() for p in published("short_chunk_res").parameters()) == expected


def test_weights_of_musicnn_by_hand() -> None:
    tall = sum(204 * 7 * bands + 204 + norm(204) for bands in (38, 67))
    long = sum(51 * frames + 51 + norm(51) for frames in (128, 64, 32))
    front = 2 * 204 + 3 * 51
    middle = (7 * front * 64 + 64 + norm(64)) + 2 * (7 * 64 * 64 + 64 + norm(64))
    wide = 2 * (front + 3 * 64)
    assert (front, wide) == (561, 1506), "as published"
    classifier = norm(wide) + (wide * 200 + 200) + norm(200) + (200 * 50 + 50)
    found = sum(p.numel() for p in published("musicnn").parameters())
    assert found == norm(1) + tall + long + middle + classifier


def test_seven_halvings_leave_one_band_and_two_frames() -> None:
    model = published("short_chunk_res").eval()
    assert isinstance(model, ShortChunkRes)
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, 1, 128, 231))
    frames = [116, 58, 29, 15, 8, 4, 2]
    bands = [64, 32, 16, 8, 4, 2, 1]
    channels = [128, 128, 256, 256, 256, 256, 512]
    assert sizes == list(zip(channels, bands, frames, strict=True))


def test_of_the_smallest_spectrograms_the_last_block_sees_two_columns() -> None:
    settings = ModelConfig(name="short_chunk_res", hidden_units=8)
    model = build_model(settings, 64, MIN_FRAMES, 3).eval()
    assert isinstance(model, ShortChunkRes)
    seen = []
    model.blocks[-1].register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    with torch.no_grad():
        model(torch.zeros(1, 1, 64, MIN_FRAMES))
    assert seen == [(1, 2)]


def test_musicnn_keeps_the_frames_to_the_end() -> None:
    model = published("musicnn").eval()
    assert isinstance(model, Musicnn)
    sizes = []
    for part in (*model.front, *model.middle):
        part.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, 1, 96, 187))
    assert sizes == [(204, 187)] * 2 + [(51, 187)] * 3 + [(64, 187)] * 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_is_its_two_parts(name: str) -> None:
    model, (bands, frames) = published(name, num_tags=7).eval(), PUBLISHED[name][0]
    assert frames_at_once(model) == frames
    with torch.no_grad():
        mel = 3 * torch.randn(2, 1, bands, frames)
        features = embed(model, mel)
        assert features.shape == (2, embedding_size(model)) and (features >= 0).all()
        assert torch.equal(classify(model, features), model(mel))
    (head,) = head_of(model)
    assert model.get_submodule(head).weight.shape == (7, embedding_size(model))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_learns(name: str) -> None:
    model, (bands, frames) = published(name, num_tags=3), PUBLISHED[name][0]
    model(torch.randn(3, 1, bands, frames)).square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias in front of BatchNorm cannot matter; rounding gives most of them some gradient.
    assert [key for key in idle if not key.endswith("bias")] == []


def test_silence_below_the_floor_sounds_alike_to_short_chunk_res() -> None:
    model = published("short_chunk_res").eval()
    with torch.no_grad():
        scores = [model(torch.full((1, 1, 128, 231), level)) for level in (FLOOR, -46.05)]
    assert torch.equal(*scores)


def test_musicnn_hears_log10_of_1_plus_10000_times_the_power() -> None:
    model = published("musicnn").eval()
    heard = []
    model.input_norm.register_forward_pre_hook(lambda _, x: heard.append(x[0]))  # type: ignore[union-attr]
    power = torch.tensor([1e-20, 1e-6, 1e-3, 1.0, 1e4])
    with torch.no_grad():
        model(power.log()[:, None, None, None].expand(5, 1, 96, 187))
    assert torch.allclose(heard[0][:, 0, 0, 0], torch.log10(1 + 10_000 * power), atol=1e-6)


@pytest.mark.parametrize("frames_in", ["features.num_frames", "model.chunk_frames"])
def test_spectrograms_that_are_too_small_are_refused(frames_in: str) -> None:
    chunk = 40 if frames_in.startswith("model") else 0
    settings = ModelConfig(name="short_chunk_res", chunk_frames=chunk)
    with pytest.raises(ValueError, match=rf"128 bands x 40 frames.*{frames_in} >= 65"):
        build_model(settings, 128, 100 if chunk else 40, 50)
    with pytest.raises(ValueError, match=r"of 2 bands x 187 frames.*features.n_mels >= 3"):
        build_model(ModelConfig(name="musicnn"), 2, 187, 50)


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_configs_are_theirs(name: str) -> None:
    from shared_data import REPOSITORY

    settings = load_config(REPOSITORY / "configs" / f"mtt-{name.replace('_', '-')}.toml")
    features, model = settings.features, settings.model
    assert ((features.n_mels, model.chunk_frames), model.hidden_units) == PUBLISHED[name][:2]
    assert (features.sample_rate_hz, features.n_fft, features.hop_length) == (16_000, 512, 256)
    assert features.num_frames * features.frame_s == pytest.approx(29.0, abs=0.1)
    assert (model.name, model.dropout) == (name, 0.5)
    assert math.isclose(model.batchnorm_momentum, 0.1)

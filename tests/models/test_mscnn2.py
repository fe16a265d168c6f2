"""mscnn2: what it hears and does not hear, its sizes, its parts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mstag.config import ModelConfig
from mstag.data.features import SILENCE
from mstag.models import build_model, classify, embed, embedding_size, head_of, mscnn2
from mstag.models.mscnn2 import DESIGN, MultiScaleRes

BANDS, FRAMES = 32, 64


def build(num_tags: int = 7, bands: int = BANDS, frames: int = FRAMES) -> MultiScaleRes:
    torch.manual_seed(0)
    settings = ModelConfig(name="mscnn2", hidden_units=32, dropout=0.4, batchnorm_momentum=0.1)
    model = build_model(settings, bands, frames, num_tags)
    assert isinstance(model, MultiScaleRes)
    return model


def spectrograms(num_clips: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(num_clips, 1, BANDS, FRAMES, generator=generator) - 8


def test_a_louder_recording_sounds_the_same() -> None:
    model, x = build().eval(), spectrograms()
    with torch.no_grad():
        assert torch.allclose(model(x), model(x + 5.0), atol=1e-4)


def test_what_is_far_below_the_music_sounds_alike() -> None:
    model, x = build().eval(), spectrograms()
    noise = torch.where(x < -8.0, -30.0, x + 10)
    silence = torch.where(x < -8.0, -46.0, x + 10)
    with torch.no_grad():
        assert torch.allclose(model.level(noise), model.level(silence), atol=1e-4)
        assert not torch.allclose(model.level(noise), model.level(x + 10), atol=1e-2)


def test_the_bend_is_its_formula() -> None:
    x = spectrograms(1)
    power = x.double().exp()
    assert DESIGN.knee is not None
    expected = torch.log1p(power / power.mean() * math.exp(DESIGN.knee))
    assert torch.allclose(build().level(x).double(), expected, atol=1e-5)


def test_a_silent_clip_is_no_exception() -> None:
    model = build().eval()
    with torch.no_grad():
        assert model(torch.full((1, 1, BANDS, FRAMES), SILENCE)).isfinite().all()


def equalised(x: torch.Tensor) -> torch.Tensor:
    """The same music with every band louder or quieter, as of another room."""
    curve = torch.linspace(-2.0, 2.0, BANDS).sin() * 2
    return x + curve[None, None, :, None]


def courses_of(model: MultiScaleRes, x: torch.Tensor) -> torch.Tensor:
    """What the first layer sees beside the spectrogram."""
    seen = []
    hook = model.views[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        model.hear(x)
    hook.remove()
    return seen[0][:, 1:]


def test_a_bands_course_is_its_formula() -> None:
    y, sounds = spectrograms().double(), torch.ones(3, 1, 1, FRAMES, dtype=torch.bool)
    mean, variance = y.mean(dim=3, keepdim=True), y.var(dim=3, correction=0, keepdim=True)
    expected = (y - mean) / (variance + mscnn2.LEAST_VARIANCE).sqrt()
    assert torch.allclose(mscnn2.courses(y, sounds), expected)


def test_bands_courses_are_those_of_the_room_next_door(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the knee, which sees what is 26 dB below the loudest bands otherwise.
    monkeypatch.setattr(mscnn2, "DESIGN", dataclasses.replace(DESIGN, knee=None))
    model, x = build().eval(), spectrograms()
    x.clamp_(min=-16.0)  # equalised, nothing falls below what is taken for silence
    assert torch.allclose(courses_of(model, x), courses_of(model, equalised(x)), atol=1e-4)
    assert not torch.allclose(model.level(x), model.level(equalised(x)), atol=1e-1)


def test_bands_courses_are_not_changed_by_silence_behind() -> None:
    model, x = build().eval(), spectrograms(2)
    padded = torch.cat([x, torch.full((2, 1, BANDS, 40), SILENCE)], dim=3)
    found = courses_of(model, padded)
    assert not found[..., FRAMES:].any()
    # The chunk's level is another, by what the silent frames take from its mean.
    assert torch.allclose(found[..., :FRAMES], courses_of(model, x), atol=0.2)
    with_hiss = torch.cat([x, torch.full((2, 1, BANDS, 40), -14.0)], dim=3)
    difference = courses_of(model, with_hiss)[..., :FRAMES] - courses_of(model, x)
    assert difference.abs().max() > 0.5


def test_every_block_has_its_own_scale_and_two_are_heard() -> None:
    model = build().eval()
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        heard = model.hear(spectrograms(1))
    assert sizes == [(width, 4 >> n, 8 >> n) for n, width in enumerate(DESIGN.widths)]
    assert sizes[-1][1:] == (1, 2)
    assert heard.shape == (1, 2 * sum(DESIGN.widths[-2:]))


def test_a_network_is_its_two_parts() -> None:
    model, x = build().eval(), spectrograms(2)
    with torch.no_grad():
        features = embed(model, x)
        assert features.shape == (2, embedding_size(model)) == (2, 32)
        assert torch.equal(classify(model, features), model(x))
    assert head_of(model) == (f"classifier.{len(model.classifier) - 1}",)


def test_every_weight_learns() -> None:
    model, x = build(num_tags=3), spectrograms(4)
    rate = 0.1
    for _ in range(2):  # in the first step, blocks are still their short ways
        model.zero_grad()
        model(x).square().sum().backward()
        idle = [name for name, w in model.named_parameters() if w.grad is None or not w.grad.any()]
        with torch.no_grad():
            for weights in model.parameters():
                weights -= rate * weights.grad  # type: ignore[operator]
    assert idle == []


def test_spectrograms_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"31 bands x 64 frames.*features.n_mels >= 32"):
        build(bands=31)
    with pytest.raises(ValueError, match=r"features.num_frames >= 64"):
        build(frames=63)


def test_a_design_without_a_part_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    less = dataclasses.replace(DESIGN, num_heard=1, knee=None, has_courses=False)
    monkeypatch.setattr(mscnn2, "DESIGN", less)
    model, x = build().eval(), spectrograms(1)
    with torch.no_grad():
        assert model.hear(x).shape == (1, 2 * DESIGN.widths[-1])
        assert not torch.allclose(model(x), model(x + 5.0), atol=1e-4)

"""Scores: independent of how clips are batched and of the chunks that the network takes at once,
one per clip, the model left as it was."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mstag.config import ModelConfig
from mstag.models import ARCHITECTURES, build_model
from mstag.models.predict import (
    Predictions,
    average_per_clip,
    chunk_starts,
    predict,
    score_windows,
)


def clips(num_clips: int, num_frames: int = 64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "mel": torch.randn(num_clips, 1, 16, num_frames, generator=generator).half(),
        "tags": torch.randint(0, 2, (num_clips, 3), generator=generator, dtype=torch.uint8),
        "mask": torch.randint(0, 2, (num_clips, 3), generator=generator, dtype=torch.uint8),
        "id": [f"clip {i}" for i in range(num_clips)],
    }


def batches(whole: dict[str, Any], sizes: list[int]) -> list[dict[str, Any]]:
    ends = np.cumsum(sizes)
    return [
        {key: value[end - size : end] for key, value in whole.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(hidden_units=8), 16, 64, 3).train()


def test_scores_do_not_depend_on_batches(model: nn.Module) -> None:
    whole = clips(10)
    one = predict(model, batches(whole, [10]), "cpu")
    many = predict(model, batches(whole, [1, 4, 0, 5, 0]), "cpu")
    assert one.ids == many.ids == whole["id"]
    np.testing.assert_allclose(one.scores, many.scores, rtol=0, atol=1e-6)
    assert one.scores.dtype == np.float32 and 0 < one.scores.min() < one.scores.max() < 1
    for got in (one, many):
        assert np.array_equal(got.labels, whole["tags"]) and got.labels.dtype == np.uint8
        assert np.array_equal(got.mask, whole["mask"])


def test_the_model_comes_back_as_it_was(model: nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predict(model, batches(clips(4), [2, 2]), "cpu")
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    predict(model.eval(), batches(clips(4), [4]), "cpu")
    assert not model.training
    with pytest.raises(KeyError):
        predict(model.train(), [{"mel": torch.zeros(1, 1, 16, 64)}], "cpu")
    assert model.training


def test_scores_in_float32_whatever_surrounds_them(model: nn.Module) -> None:
    whole = clips(4)
    plain = predict(model, [whole], "cpu").scores
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(predict(model, [whole], "cpu").scores, plain)


def test_reused_buffers_and_missing_masks(model: nn.Module) -> None:
    whole = clips(6)
    del whole["mask"]

    def reusing() -> Any:
        buffer = {key: whole[key][:3].clone() for key in ("mel", "tags")}
        for start in (0, 3):
            for key, tensor in buffer.items():
                tensor.copy_(whole[key][start : start + 3])
            yield {**buffer, "id": whole["id"][start : start + 3]}

    got = predict(model, reusing(), "cpu")
    assert got.mask is None
    assert np.array_equal(got.labels, whole["tags"])
    expected = predict(model, [whole], "cpu").scores
    np.testing.assert_allclose(got.scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_ask_the_device_for_nothing(name: str) -> None:
    """Meta tensors have no values to be asked for, and do not mix with those of the CPU."""
    settings = ModelConfig(name=name, hidden_units=8, chunk_frames=160)
    model = build_model(settings, 128, 256, 3).to("meta")
    torch.autograd.backward(model(torch.randn(2, 1, 128, 160, device="meta")).sum())
    num_scored = 0

    def count() -> None:
        nonlocal num_scored
        num_scored += 1

    whole = clips(4, 256) | {"mel": torch.randn(4, 1, 128, 256).half()}
    parts = batches(whole, [2, 2])
    on_device = [p | {key: p[key].to("meta") for key in ("mel", "tags", "mask")} for p in parts]
    with pytest.raises(NotImplementedError, match="no data"):  # at the end, when all are scored
        predict(model, on_device, "meta", between_batches=count)
    assert num_scored == 2


def test_nothing_to_score(model: nn.Module) -> None:
    assert predict(model, [], "cpu").scores.shape == (0, 0)
    empty = predict(model, batches(clips(1), [0]), "cpu")
    assert empty.scores.shape == empty.labels.shape == (0, 3)
    assert average_per_clip(empty).ids == []


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_chunks_cover_a_window_and_no_more(one: int, other: int) -> None:
    chunk_frames, num_frames = sorted((one, other))
    starts = np.array(chunk_starts(num_frames, chunk_frames))
    assert len(starts) == math.ceil(num_frames / chunk_frames)
    assert starts[0] == 0 and starts[-1] == num_frames - chunk_frames
    steps = np.diff(starts)
    assert steps.max(initial=1) <= chunk_frames, "a frame between two chunks is heard by neither"
    assert np.ptp(steps) <= 1 if len(steps) else chunk_frames == num_frames


def test_chunks_of_the_2017_window() -> None:
    assert chunk_starts(628, 628) == (0,)
    assert chunk_starts(628, 157) == (0, 157, 314, 471)
    # 8 s: three steps of 152 frames, so that neighbours share 20.
    assert chunk_starts(628, 172) == (0, 152, 304, 456)
    assert chunk_starts(628, 627) == (0, 1)


class Recording(nn.Module):
    """A network that notes what it is given: a logit per band, the mean over frames."""

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x_B1MT: Tensor) -> Tensor:
        self.shapes.append(tuple(x_B1MT.shape))
        return x_B1MT[:, 0].mean(dim=2)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_scores_are_means_over_chunks_in_the_memory_of_whole_windows(
    num_clips: int, one: int, other: int
) -> None:
    chunk_frames, num_frames = sorted((one, other))
    model = Recording(chunk_frames)
    mel = torch.randn(num_clips, 1, 3, num_frames, generator=torch.Generator().manual_seed(one))
    by_hand = [
        [
            torch.sigmoid(clip[0, :, start : start + chunk_frames].mean(dim=1))
            for start in chunk_starts(num_frames, chunk_frames)
        ]
        for clip in mel
    ]
    expected = torch.stack([torch.stack(scores).mean(dim=0) for scores in by_hand])
    torch.testing.assert_close(score_windows(model, mel), expected, rtol=0, atol=1e-6)
    assert all(shape[1:] == (1, 3, chunk_frames) for shape in model.shapes)
    assert max(shape[0] * chunk_frames for shape in model.shapes) <= num_clips * num_frames
    assert len(model.shapes) == 1 + (num_frames % chunk_frames > 0)


def test_a_chunked_network_scores_clips_by_the_mean_over_their_chunks() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden_units=8, chunk_frames=64), 16, 150, 3).train()
    whole = clips(5, num_frames=150)
    got = predict(model, batches(whole, [3, 0, 2]), "cpu")
    model.eval()
    with torch.inference_mode():
        chunks = [whole["mel"][..., s : s + 64].float() for s in (0, 43, 86)]
        by_hand = sum(torch.sigmoid(model(chunk)) for chunk in chunks) / 3
    np.testing.assert_allclose(got.scores, by_hand, rtol=0, atol=1e-6)
    assert got.ids == whole["id"]


def test_a_chunk_as_long_as_the_window_is_the_window(model: nn.Module) -> None:
    torch.manual_seed(0)
    chunked = build_model(ModelConfig(hidden_units=8, chunk_frames=64), 16, 64, 3)
    whole = clips(4)
    scores = predict(model, [whole], "cpu").scores
    assert np.array_equal(predict(chunked, [whole], "cpu").scores, scores)
    with torch.inference_mode():
        mel = whole["mel"].float().to(memory_format=torch.channels_last)
        assert np.array_equal(torch.sigmoid(model.eval()(mel)), scores)


def test_something_else_is_done_before_each_batch() -> None:
    model = Recording(64).train()
    seen: list[int] = []
    parts = batches(clips(7), [2, 0, 4, 1])
    for part in parts:
        part["tags"] = torch.zeros(len(part["id"]), 16, dtype=torch.uint8)
    predict(model, parts, "cpu", between_batches=lambda: seen.append(len(model.shapes)))
    assert seen == [0, 1, 1, 2], "before each one, the empty one too"

    def stop() -> None:
        if len(model.shapes) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predict(model, parts, "cpu", between_batches=stop)
    assert len(model.shapes) == 4 and model.training


def test_windows_of_a_clip_are_averaged_in_order_of_appearance() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=np.uint8)
    scores = np.array([[0.9, 0.1], [0.5, 0.6], [0.3, 0.1], [0.6, 0.4]], dtype=np.float32)
    got = average_per_clip(Predictions(["z", "a", "z", "z"], scores, labels, labels))
    assert got.ids == ["z", "a"]
    np.testing.assert_allclose(got.scores, [[0.6, 0.2], [0.5, 0.6]], atol=1e-7)
    assert got.scores.dtype == np.float32
    assert np.array_equal(got.labels, labels[:2]) and np.array_equal(got.mask, labels[:2])
    once = Predictions(["b", "a", "d", "c"], scores, labels)
    assert np.array_equal(average_per_clip(once).scores, scores)


def test_windows_that_disagree_about_their_clip_are_refused() -> None:
    labels = np.array([[1], [1], [0]], dtype=np.uint8)
    scores = np.zeros((3, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="clip b: its windows have different labels"):
        average_per_clip(Predictions(["a", "b", "b"], scores, labels))

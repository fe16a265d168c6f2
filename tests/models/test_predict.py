"""Scores: independent of how clips are batched, one per clip, the model left as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mstag.config import ModelConfig
from mstag.models import build_model
from mstag.models.predict import Predictions, average_per_clip, predict


def clips(num_clips: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "mel": torch.randn(num_clips, 1, 16, 64, generator=generator).half(),
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


def test_nothing_to_score(model: nn.Module) -> None:
    assert predict(model, [], "cpu").scores.shape == (0, 0)
    empty = predict(model, batches(clips(1), [0]), "cpu")
    assert empty.scores.shape == empty.labels.shape == (0, 3)
    assert average_per_clip(empty).ids == []


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

"""The network: its layers and sizes against numbers worked out by hand, its first state."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models import build_model, classify, embed, embedding_size, frames_at_once
from mstag.models.mscnn import ConvBlock, MultiScaleCnn

# The recipe of 2017: 128 bands x 628 frames, 50 tags. Weights + biases of each layer.
FINE = (50 * 1 * 3 * 7 + 50) + (100 * 50 * 3 * 5 + 100) + (70 * 100 * 3 * 3 + 70)
MIDDLE = (100 * 1 * 3 * 5 + 100) + (70 * 100 * 3 * 3 + 70)
COARSE = 70 * 1 * 3 * 3 + 70
JOINT = (70 * 210 * 3 * 3 + 70) + (70 * 70 * 3 * 3 + 70)
CLASSIFIER = 2 * 5040 + (5040 * 500 + 500) + (500 * 50 + 50)

SHAPES = {
    "fine.0": (50, 64, 157),
    "fine.1": (100, 32, 39),
    "fine.2": (70, 16, 19),
    "middle.0": (100, 32, 39),
    "middle.1": (70, 16, 19),
    "coarse": (70, 16, 19),
    "joint.0": (70, 16, 19),
    "joint.1": (70, 8, 9),
    "classifier.0": (5040,),
    "classifier.3": (500,),
    "classifier.5": (50,),
}


def small_model(**settings: float) -> MultiScaleCnn:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden_units=8, **settings), 16, 64, 3)  # type: ignore[arg-type]
    assert isinstance(model, MultiScaleCnn)
    return model


def test_parameters_and_shapes_of_the_recipe() -> None:
    model = build_model(ModelConfig(), 128, 628, 50)
    assert sum(p.numel() for p in model.parameters()) == 2_936_810
    assert FINE + MIDDLE + COARSE + JOINT + CLASSIFIER == 2_936_810
    seen = {}
    for name, module in model.named_modules():
        if name in SHAPES:
            module.register_forward_hook(
                lambda _, __, y, name=name: seen.update({name: tuple(y.shape[1:])})
            )
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 1, 128, 628)).shape == (1, 50)
    assert seen == SHAPES


def test_first_state_is_the_recipes() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(batchnorm_momentum=0.25, dropout=0.5), 128, 628, 50)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None and not module.bias.any()
            weight = module.weight
            area = weight[0, 0].numel() if weight.ndim == 4 else 1
            fan_in, fan_out = weight.shape[1] * area, weight.shape[0] * area
            expected = math.sqrt(2 / (fan_in + fan_out))
            # Four standard errors of a standard deviation, for the layer's number of weights.
            assert abs(weight.std() / expected - 1) < 4 / math.sqrt(2 * weight.numel())
        if isinstance(module, nn.BatchNorm1d):
            assert (module.eps, module.momentum) == (1e-3, 0.25)
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5


def test_initial_weights_come_from_the_global_seed() -> None:
    one, other = small_model().state_dict(), small_model().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("n_mels", "num_frames", "num_tags"), [(16, 64, 1), (47, 200, 7)])
def test_any_size_and_number_of_tags(n_mels: int, num_frames: int, num_tags: int) -> None:
    model = build_model(ModelConfig(), n_mels, num_frames, num_tags)
    assert model(torch.randn(2, 1, n_mels, num_frames)).shape == (2, num_tags)


@pytest.mark.parametrize(("n_mels", "num_frames"), [(15, 64), (16, 63)])
def test_too_small_a_spectrogram_is_refused_with_the_least_size(
    n_mels: int, num_frames: int
) -> None:
    with pytest.raises(ValueError, match=r"features.n_mels >= 16 and features.num_frames >= 64"):
        build_model(ModelConfig(), n_mels, num_frames, 3)


def test_a_network_for_chunks_takes_those_at_once() -> None:
    for chunk_frames, expected in ((0, 628), (628, 628), (172, 172), (64, 64)):
        model = build_model(ModelConfig(chunk_frames=chunk_frames, hidden_units=8), 16, 628, 3)
        assert frames_at_once(model) == expected
        assert model.eval()(torch.zeros(1, 1, 16, expected)).shape == (1, 3)


def test_chunks_that_cannot_be_are_refused_by_their_setting() -> None:
    with pytest.raises(
        ValueError, match=r"model\.chunk_frames = 629: .* features.num_frames = 628"
    ):
        build_model(ModelConfig(chunk_frames=629), 128, 628, 3)
    with pytest.raises(ValueError, match=r"128 bands x 63 frames.* model\.chunk_frames >= 64"):
        build_model(ModelConfig(chunk_frames=63), 128, 628, 3)


def test_a_network_says_how_many_frames_it_takes() -> None:
    with pytest.raises(AssertionError, match="wrapper"):
        frames_at_once(nn.Sequential(small_model()))


def test_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'mscnn'"):
        build_model(ModelConfig(name="mscn"), 16, 64, 3)
    with pytest.raises(ValueError, match="known: mscnn"):
        build_model(ModelConfig(name="transformer"), 16, 64, 3)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_pooling_first_equals_relu_first(with_gradients: bool) -> None:
    torch.manual_seed(0)
    block = ConvBlock(3, 5, (3, 5), (2, 4)).double()
    # Whole numbers: many ties within a pooling window, and zeros where ReLU has its corner;
    # windows that are wholly below zero, partly, and not at all.
    block.conv.weight.data = torch.randint(-1, 2, block.conv.weight.shape).double()
    block.conv.bias.data = torch.tensor([-12.0, -8, -6, -3, 0]).double()
    x = torch.randint(-1, 2, (2, 3, 8, 17)).double().requires_grad_(with_gradients)
    ours = block(x)
    full = functional.conv2d(x, block.conv.weight, block.conv.bias, padding=(1, 2))
    recipe = functional.max_pool2d(functional.relu(full), (2, 4))
    assert torch.equal(ours, recipe) and 0.2 < (ours == 0).double().mean() < 0.8
    if with_gradients:
        leaves = [x, block.conv.weight, block.conv.bias]
        weights = torch.randint(1, 4, ours.shape).double()
        for mine, theirs in zip(
            torch.autograd.grad((ours * weights).sum(), leaves),
            torch.autograd.grad((recipe * weights).sum(), leaves),
            strict=True,
        ):
            assert torch.equal(mine, theirs)


def test_learns_to_tell_two_clips_apart() -> None:
    model = small_model(dropout=0.0).train()
    x, y = torch.randn(2, 1, 16, 64), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    # By hand: the first torch.optim optimizer of a process imports the compiler, for seconds.
    for _ in range(30):
        loss = functional.binary_cross_entropy_with_logits(model(x), y)
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            parameter.data -= 0.1 * gradient
    assert ((model(x) > 0) == y.bool()).all()


def test_it_is_two_parts_in_a_row() -> None:
    model = small_model().eval()
    x_B1MT = torch.randn(2, 1, 16, 64)
    with torch.inference_mode():
        features_BF = embed(model, x_B1MT)
        assert features_BF.shape == (2, embedding_size(model)) == (2, 8)
        assert features_BF.min() == 0
        assert torch.equal(classify(model, features_BF), model(x_B1MT))

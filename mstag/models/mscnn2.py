"""mscnn2: several scales seen at once, fused early and late.

The idea is that of 2017, what carries it out is not. One layer looks at the spectrogram through
kernels of several shapes (tall and short for attacks, flat and long for tones, square for
textures); residual blocks of small kernels follow, each at half the resolution of the one before;
and the classifier hears what the last two of them have found, on average and at its strongest.
It is told neither how loud a recording is nor what lies far below the music, and sees beside the
spectrogram another one in which every band is measured by its own course over time: what a room,
a microphone or an equaliser does to a band is the same in every frame. Its configs feed it chunks
of 21.9 s. What its parts are worth: docs/accuracy.md.

Shape suffixes: B clips of the batch, C channels, M mel bands, T frames, F features, L tags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models.network import Network, require_size

Kernel = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Sizes and choices; what the ablations of bench/accuracy.py change, one at a time."""

    kernels: tuple[Kernel, ...] = ((9, 3), (3, 9), (5, 5))
    """Bands and frames of the first layer's kernels: attacks, tones, textures."""
    kernel_channels: tuple[int, ...] = (24, 24, 16)
    """How many kernels there are of each shape."""
    widths: tuple[int, ...] = (96, 192, 384)
    """Channels of the residual blocks, each of which sees half the bands and frames of what is in
    front of it."""
    num_heard: int = 2
    """How many of the blocks, the last ones, the classifier hears."""
    knee: float | None = 6.0
    """How far below a chunk's mean power (in nepers: 6 is 26 dB) quiet and silent become one."""
    has_courses: bool = True
    """Whether the first layer sees :func:`courses` too."""


DESIGN = Design()
FIRST_STRIDE, FIRST_POOL = 2, 2
QUIETEST = -20.0
"""In nepers: a frame that has nothing louder is silent, and without a knee cells end there. It is
-87 dB; pieces that are too short are filled up with -200 dB."""
LEAST_VARIANCE = 0.01
"""Of a band's course, where that of all cells of all clips is 1: so that next to nothing is not
blown up."""
MIN_BANDS, MIN_FRAMES = 32, 64
"""So that after five halvings (two at the first layer, one at each block) a band and two frames are
left. Of a single one torch 2.11 gives wrong gradients in bf16 on CPUs."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, at half the resolution, beside a way that is as short as can be.

    Args:
        num_in: channels in.
        num_out: channels out.
        momentum: of BatchNorm.
    """

    def __init__(self, num_in: int, num_out: int, momentum: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(num_out, momentum=momentum)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(num_out, momentum=momentum)
        self.beside: nn.Module = nn.Identity()
        if num_in != num_out:
            self.beside = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, bias=False),
                nn.BatchNorm2d(num_out, momentum=momentum),
            )
        # The block starts as its short way alone, which is quicker to train (Goyal et al. 2017).
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x_BCMT: Tensor) -> Tensor:
        """(B, num_in, M, T) -> (B, num_out, M // 2, T // 2)."""
        x_BCMT = functional.max_pool2d(x_BCMT, 2)
        y_BCMT = functional.relu(self.first_norm(self.first(x_BCMT)), inplace=True)
        y_BCMT = self.second_norm(self.second(y_BCMT))
        return functional.relu(y_BCMT + self.beside(x_BCMT), inplace=True)


class MultiScaleRes(Network):
    """Log-mel spectrograms x_B1MT -> logits y_BL.

    Args:
        config: the width of the hidden layer (256 in the configs that come with it), dropout in
            front of it (0.4; half as much behind it), BatchNorm's momentum (0.1).
        n_mels: M, at least 32.
        num_frames: T, at least 64; kept as the attribute of this name.
        num_tags: L.

    Raises:
        ValueError: the spectrogram is too small for five halvings.
    """

    def __init__(self, config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> None:
        super().__init__(num_frames)
        smallest = MIN_BANDS, MIN_FRAMES
        require_size(config, n_mels, num_frames, smallest, "it halves them five times")
        design, momentum = DESIGN, config.batchnorm_momentum
        self.knee, self.num_heard = design.knee, design.num_heard
        self.has_courses = design.has_courses
        # Nothing to learn in it: the convolutions behind it then spare the gradient of their
        # input, a tenth of a training step.
        self.input_norm = nn.BatchNorm2d(1, momentum=momentum, affine=False)
        num_seen = 2 if design.has_courses else 1
        self.views = nn.ModuleList(
            nn.Conv2d(num_seen, count, (m, t), FIRST_STRIDE, (m // 2, t // 2), bias=False)
            for (m, t), count in zip(design.kernels, design.kernel_channels, strict=True)
        )
        num_first = sum(design.kernel_channels)
        self.views_norm = nn.BatchNorm2d(num_first, momentum=momentum)
        ways = zip((num_first, *design.widths), design.widths, strict=False)
        self.blocks = nn.ModuleList(
            ResidualBlock(num_in, num_out, momentum) for num_in, num_out in ways
        )
        num_features = 2 * sum(design.widths[-design.num_heard :])
        self.end_with(
            nn.BatchNorm1d(num_features, momentum=momentum),
            nn.Dropout(config.dropout),
            nn.Linear(num_features, config.hidden_units),
            nn.BatchNorm1d(config.hidden_units, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(config.dropout / 2),
            nn.Linear(config.hidden_units, num_tags),
        )

    def hear(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the classifier's first layer takes, y_BF."""
        y_B1MT = self.input_norm(self.level(x_B1MT))
        if self.has_courses:
            sounds_B11T = x_B1MT.amax(dim=2, keepdim=True) > QUIETEST
            y_B1MT = torch.cat([y_B1MT, courses(y_B1MT, sounds_B11T)], dim=1)
        # Pooling in front leaves BatchNorm and ReLU a quarter of the work, and scored better.
        views = [functional.max_pool2d(view(y_B1MT), FIRST_POOL) for view in self.views]
        y_BCMT = functional.relu(self.views_norm(torch.cat(views, dim=1)), inplace=True)
        heard = []
        for block in self.blocks:
            y_BCMT = block(y_BCMT)
            heard.append(y_BCMT)
        heard = heard[-self.num_heard :]
        # In bf16, a mean over thousands of cells would be rounded to 3 digits.
        means = [y_BCMT.mean(dim=(2, 3), dtype=torch.float32) for y_BCMT in heard]
        return torch.cat([*means, *(y_BCMT.amax(dim=(2, 3)) for y_BCMT in heard)], dim=1)

    def level(self, x_B1MT: Tensor) -> Tensor:
        """Takes a chunk's loudness away and bends what is far below it towards one value.

        With p the power of a cell over the mean power of the chunk's cells, log(1 + p e^knee): a
        level or a noise floor tells how a recording was made, and not what is played.
        """
        if self.knee is None:
            return x_B1MT.clamp_min(QUIETEST)
        num_cells = x_B1MT.shape[2] * x_B1MT.shape[3]
        mean_B111 = torch.logsumexp(x_B1MT, dim=(1, 2, 3), keepdim=True) - math.log(num_cells)
        return functional.softplus(x_B1MT - mean_B111 + self.knee)


def courses(x_B1MT: Tensor, sounds_B11T: Tensor) -> Tensor:
    """Each band's course over time: less its mean, over its standard deviation.

    Frame for frame the same, what a room, a microphone or an equaliser does to a band is gone.
    Normalising bands one by one carries over to other devices (Kim et al. 2022, Domain
    Generalization with Relaxed Instance Frequency-wise Normalization); they mix the outcome
    with what went in, here the first layer gets both.

    Args:
        x_B1MT: leveled spectrograms.
        sounds_B11T: which frames count; the others, silent ones, get 0.
    """
    # Without casts, which exported programs would tie to the device that they were made on.
    num_B111 = sounds_B11T.sum(dim=3, keepdim=True).clamp_min(1)
    mean_B1M1 = torch.where(sounds_B11T, x_B1MT, 0.0).sum(dim=3, keepdim=True) / num_B111
    x_B1MT = torch.where(sounds_B11T, x_B1MT - mean_B1M1, 0.0)
    variance_B1M1 = x_B1MT.square().sum(dim=3, keepdim=True) / num_B111
    return x_B1MT * torch.rsqrt(variance_B1M1 + LEAST_VARIANCE)

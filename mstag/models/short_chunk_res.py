"""Short-chunk CNN with residual connections: small kernels all the way, on 3.69 s of music.

After Won, Ferraro, Bogdanov and Serra, "Evaluation of CNN-based automatic music tagging models",
Sound and Music Computing Conference 2020 (12.1 million weights; 0.9129 ROC-AUC, 0.4614 PR-AUC on
MagnaTagATune). Written from its description. Its input is 16 kHz, an FFT of 512, a hop of 256, 128
mel bands and 231 frames; the mel scale here is Slaney's, there it was HTK's.

Shape suffixes: B clips of the batch, C channels, M mel bands, T frames, H hidden units, L tags.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models.network import Network, require_size

CHANNELS = (128, 128, 256, 256, 256, 256, 512)
"""Of the blocks, each of which halves bands and frames."""
MIN_BANDS, MIN_FRAMES = 64, 65
"""Below, the last blocks would have little but padding to look at. From 65 frames on the last one
sees two columns: of a single one torch 2.11 gives wrong gradients in bf16 on CPUs."""
FLOOR = math.log(1e-10)
"""Of the log power: what decibels with torchaudio's default floor see."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside one that keeps the scale; all of them halve the size.

    Args:
        num_in: channels in.
        num_out: channels out.
        momentum: of BatchNorm.
    """

    def __init__(self, num_in: int, num_out: int, momentum: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1)
        self.first_norm = nn.BatchNorm2d(num_out, momentum=momentum)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(num_out, momentum=momentum)
        self.beside = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1)
        self.beside_norm = nn.BatchNorm2d(num_out, momentum=momentum)

    def forward(self, x_BCMT: Tensor) -> Tensor:
        """(B, num_in, M, T) -> (B, num_out, ceil(M / 2), ceil(T / 2))."""
        y_BCMT = functional.relu(self.first_norm(self.first(x_BCMT)))
        y_BCMT = self.second_norm(self.second(y_BCMT))
        return functional.relu(y_BCMT + self.beside_norm(self.beside(x_BCMT)))


class ShortChunkRes(Network):
    """Log-mel spectrograms x_B1MT -> logits y_BL.

    Args:
        config: the width of the hidden layer (published: 512), dropout (0.5), BatchNorm's
            momentum.
        n_mels: M, at least 64 (published: 128).
        num_frames: T, at least 64 (published: 231); kept as the attribute of this name.
        num_tags: L.

    Raises:
        ValueError: the spectrogram is too small for seven halvings.
    """

    def __init__(self, config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> None:
        super().__init__(num_frames)
        smallest = MIN_BANDS, MIN_FRAMES
        require_size(config, n_mels, num_frames, smallest, "it halves them seven times")
        momentum = config.batchnorm_momentum
        self.input_norm = nn.BatchNorm2d(1, momentum=momentum)
        ways = zip((1, *CHANNELS), CHANNELS, strict=False)
        self.blocks = nn.Sequential(*(ResidualBlock(i, o, momentum) for i, o in ways))
        self.end_with(
            nn.Linear(CHANNELS[-1], config.hidden_units),
            nn.BatchNorm1d(config.hidden_units, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_units, num_tags),
        )

    def hear(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the classifier's first layer takes."""
        y_BCMT = self.blocks(self.input_norm(x_B1MT.clamp_min(FLOOR)))
        return torch.amax(y_BCMT, dim=(2, 3))

"""The multi-scale convolutional network of 2017: a spectrogram at three resolutions at once.

Shape suffixes: B clips of the batch, C channels, M mel bands, T frames, F flattened features,
H hidden units, L tags (one logit each).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models import cpu_conv
from mstag.models.network import Network, require_size

# Four poolings lie between the input and the classifier: 2 * 2 * 2 * 2 mel bands and
# 4 * 4 * 2 * 2 frames become one cell.
BANDS_PER_CELL = 16
FRAMES_PER_CELL = 64


class ConvBlock(nn.Module):
    """Convolution that keeps the size, max-pooling where asked for, ReLU."""

    def __init__(
        self, num_in: int, num_out: int, kernel: tuple[int, int], pool: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.pool = pool
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(num_in, num_out, kernel, padding=padding)

    def forward(self, x_BCMT: Tensor) -> Tensor:
        """(B, num_in, M, T) -> (B, num_out, pooled M, pooled T)."""
        y_BCMT = self._convolve_and_pool(x_BCMT)
        # The recipe applies ReLU before it pools. The two commute exactly, in value and in
        # gradient; this order leaves ReLU an eighth of the work and of the memory.
        return functional.relu(y_BCMT, inplace=True)

    def _convolve_and_pool(self, x_BCMT: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        if cpu_conv.pays_off(x_BCMT, weight, self.pool):
            return cpu_conv.conv_pool(x_BCMT, weight, bias, self.pool)
        y_BCMT: Tensor = self.conv(x_BCMT)
        return functional.max_pool2d(y_BCMT, self.pool) if self.pool else y_BCMT


class MultiScaleCnn(Network):
    """Log-mel spectrograms x_B1MT -> logits y_BL.

    Args:
        config: the width of the hidden layer, dropout, BatchNorm's momentum.
        n_mels: M, at least 16.
        num_frames: T, at least 64; kept as the attribute of this name. The width of the
            classifier's first layer follows from it.
        num_tags: L.

    Raises:
        ValueError: the spectrogram is too small for four poolings.
    """

    def __init__(self, config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> None:
        super().__init__(num_frames)
        smallest = BANDS_PER_CELL, FRAMES_PER_CELL
        require_size(config, n_mels, num_frames, smallest, "its poolings would leave nothing")
        self.fine = nn.Sequential(
            ConvBlock(1, 50, (3, 7), (2, 4)),
            ConvBlock(50, 100, (3, 5), (2, 4)),
            ConvBlock(100, 70, (3, 3), (2, 2)),
        )
        self.middle = nn.Sequential(
            ConvBlock(1, 100, (3, 5), (2, 4)),
            ConvBlock(100, 70, (3, 3), (2, 2)),
        )
        self.coarse = ConvBlock(1, 70, (3, 3), (2, 2))
        self.joint = nn.Sequential(
            ConvBlock(3 * 70, 70, (3, 3), None),
            ConvBlock(70, 70, (3, 3), (2, 2)),
        )
        num_features = 70 * (n_mels // BANDS_PER_CELL) * (num_frames // FRAMES_PER_CELL)
        self.end_with(
            nn.Flatten(),
            nn.BatchNorm1d(num_features, eps=1e-3, momentum=config.batchnorm_momentum),
            nn.Dropout(config.dropout),
            nn.Linear(num_features, config.hidden_units),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden_units, num_tags),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def hear(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the classifier's first layer takes."""
        half_B1MT = functional.avg_pool2d(x_B1MT, (2, 4))
        quarter_B1MT = functional.max_pool2d(half_B1MT, (2, 4))
        scales = [self.fine(x_B1MT), self.middle(half_B1MT), self.coarse(quarter_B1MT)]
        y_BCMT: Tensor = self.joint(torch.cat(scales, dim=1))
        return y_BCMT

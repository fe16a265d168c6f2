"""musicnn: kernels shaped after music, tall ones for timbre and long ones for rhythm.

After Pons and Serra, "musicnn: pre-trained convolutional neural networks for music audio
tagging", 2019, and Pons et al., "End-to-end learning for music audio tagging at scale", ISMIR
2018 (0.79 million weights as counted by Won et al. 2020; 0.9067 ROC-AUC, 0.3831 PR-AUC on all
clips of MagnaTagATune). Written from their descriptions. Its input is 16 kHz, an FFT of 512, a
hop of 256, 96 mel bands, log10(1 + 10000 x) of the power, and 187 frames (3 s).

Shape suffixes: B clips of the batch, C channels, M mel bands, T frames, H hidden units, L tags.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mstag.config import ModelConfig
from mstag.models.network import Network, require_size

TIMBRAL_CHANNELS, TIMBRAL_FRAMES, TIMBRAL_SHARES = 204, 7, (0.4, 0.7)
"""Of the tall kernels: how many, how long, how much of the bands each sees."""
TEMPORAL_CHANNELS, TEMPORAL_FRAMES = 51, (128, 64, 32)
"""Of the long kernels, which see one band: how many, how long."""
MIDDLE_CHANNELS, MIDDLE_FRAMES, NUM_MIDDLE = 64, 7, 3
MIN_BANDS = 3
"""So that the smaller tall kernel sees one band at least."""
GAIN = math.log(10_000)


class FrontEnd(nn.Module):
    """One kernel along bands or frames, then the loudest band of each frame.

    Args:
        num_out: channels out.
        kernel: bands and frames.
        momentum: of BatchNorm.
    """

    def __init__(self, num_out: int, kernel: tuple[int, int], momentum: float) -> None:
        super().__init__()
        # As many frames come out as went in, of kernels with an even number of them too.
        self.margin = ((kernel[1] - 1) // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(1, num_out, kernel)
        self.norm = nn.BatchNorm2d(num_out, momentum=momentum)

    def forward(self, x_B1MT: Tensor) -> Tensor:
        """(B, 1, M, T) -> (B, num_out, T)."""
        y_BCMT = functional.relu(self.conv(functional.pad(x_B1MT, self.margin)))
        return torch.amax(self.norm(y_BCMT), dim=2)


class Middle(nn.Module):
    """A convolution along time that keeps the length.

    Args:
        num_in: channels in; as many as out: then what comes in is added.
        momentum: of BatchNorm.
    """

    def __init__(self, num_in: int, momentum: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(num_in, MIDDLE_CHANNELS, MIDDLE_FRAMES, padding=MIDDLE_FRAMES // 2)
        self.norm = nn.BatchNorm1d(MIDDLE_CHANNELS, momentum=momentum)
        self.adds = num_in == MIDDLE_CHANNELS

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, num_in, T) -> (B, MIDDLE_CHANNELS, T)."""
        y_BCT: Tensor = self.norm(functional.relu(self.conv(x_BCT)))
        return y_BCT + x_BCT if self.adds else y_BCT


class Musicnn(Network):
    """Log-mel spectrograms x_B1MT -> logits y_BL.

    Args:
        config: the width of the hidden layer (published: 200), dropout (0.5), BatchNorm's
            momentum.
        n_mels: M, at least 3 (published: 96).
        num_frames: T (published: 187); kept as the attribute of this name.
        num_tags: L.

    Raises:
        ValueError: the spectrogram has too few bands.
    """

    def __init__(self, config: ModelConfig, n_mels: int, num_frames: int, num_tags: int) -> None:
        super().__init__(num_frames)
        require_size(config, n_mels, num_frames, (MIN_BANDS, 1), "its kernels see shares of them")
        momentum = config.batchnorm_momentum
        self.input_norm = nn.BatchNorm2d(1, momentum=momentum)
        tall = [(int(share * n_mels), TIMBRAL_FRAMES) for share in TIMBRAL_SHARES]
        long = [(1, num_frames) for num_frames in TEMPORAL_FRAMES]
        self.front = nn.ModuleList(
            [FrontEnd(TIMBRAL_CHANNELS, kernel, momentum) for kernel in tall]
            + [FrontEnd(TEMPORAL_CHANNELS, kernel, momentum) for kernel in long]
        )
        num_front = TIMBRAL_CHANNELS * len(tall) + TEMPORAL_CHANNELS * len(long)
        ways = [num_front, *[MIDDLE_CHANNELS] * (NUM_MIDDLE - 1)]
        self.middle = nn.ModuleList(Middle(num_in, momentum) for num_in in ways)
        num_features = 2 * (num_front + MIDDLE_CHANNELS * NUM_MIDDLE)
        self.end_with(
            nn.BatchNorm1d(num_features, momentum=momentum),
            nn.Dropout(config.dropout),
            nn.Linear(num_features, config.hidden_units),
            nn.BatchNorm1d(config.hidden_units, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_units, num_tags),
        )

    def hear(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the classifier's first layer takes."""
        # log(1 + 10000 exp(x)), in base 10, and never too large for exp.
        compressed_B1MT = functional.softplus(x_B1MT + GAIN) / math.log(10)
        normed_B1MT = self.input_norm(compressed_B1MT)
        layers_BCT = [torch.cat([front(normed_B1MT) for front in self.front], dim=1)]
        for middle in self.middle:
            layers_BCT.append(middle(layers_BCT[-1]))
        y_BCT = torch.cat(layers_BCT, dim=1)
        return torch.cat([torch.amax(y_BCT, dim=2), torch.mean(y_BCT, dim=2)], dim=1)

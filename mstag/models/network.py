"""What every architecture is: a part that hears, and a classifier whose last layer gives the tags.

Shape suffixes: B clips of the batch, M mel bands, T frames, H hidden units, L tags.
"""

from __future__ import annotations

from torch import Tensor, nn

from mstag.config import ModelConfig


class Network(nn.Module):
    """Log-mel spectrograms x_B1MT -> logits y_BL.

    An architecture fills in :meth:`hear` and ends its ``__init__`` with :meth:`end_with`.

    Attributes:
        num_frames: T.
        embedding_size: H, the width of what the last layer hears.
        classifier: turns what :meth:`hear` gives into logits.
        head: name of the one module that depends on the tags, its last layer.
    """

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames

    def end_with(self, *classifier: nn.Module) -> None:
        """Takes the layers of the classifier, of which the last one is linear."""
        last = classifier[-1]
        assert isinstance(last, nn.Linear)
        self.classifier = nn.Sequential(*classifier)
        self.embedding_size = last.in_features
        self.head = (f"classifier.{len(classifier) - 1}",)

    def hear(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the classifier's first layer takes."""
        raise NotImplementedError

    def forward(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> logits (B, num_tags)."""
        return self.classify(self.embed(x_B1MT))

    def embed(self, x_B1MT: Tensor) -> Tensor:
        """Log-mel spectrograms -> what the last layer hears, y_BH."""
        y = self.hear(x_B1MT)
        for layer in list(self.classifier)[:-1]:
            y = layer(y)
        return y

    def classify(self, y_BH: Tensor) -> Tensor:
        """What :meth:`embed` gave -> logits (B, num_tags)."""
        y_BL: Tensor = self.classifier[-1](y_BH)
        return y_BL


def require_size(
    config: ModelConfig, n_mels: int, num_frames: int, at_least: tuple[int, int], why: str
) -> None:
    """Refuses spectrograms with fewer bands and frames than an architecture needs.

    Raises:
        ValueError: says what to set.
    """
    min_bands, min_frames = at_least
    if n_mels >= min_bands and num_frames >= min_frames:
        return
    frames = "model.chunk_frames" if config.chunk_frames else "features.num_frames"
    raise ValueError(
        f"model {config.name} cannot take spectrograms of {n_mels} bands x {num_frames} frames: "
        f"{why}; set features.n_mels >= {min_bands} and {frames} >= {min_frames}"
    )

"""The loss: binary cross-entropy over every label that is known, of the whole global batch.

For a logit z with label y in [0, 1] (mixtures lie between), smoothing s and the tag's positive
weight w, with log-sigmoids as torch computes them, stably:

    y' = y (1 - s) + s / 2
    l(z, y') = -(w y' log sigmoid(z) + (1 - y') log(1 - sigmoid(z)))
    loss = sum of l over the known labels / number of known labels

A batch may come in parts, one per rank, each in pieces. DDP averages the ranks' gradients, so
every rank divides the sum over each piece by the mean number of labels that a rank knows: the
gradients of all pieces of all ranks then add up to that of the whole batch, masks or not.

Shape suffixes: B clips, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mstag.runtime import Ranks

MAX_POSITIVE_WEIGHT = 100.0
"""A tag with a handful of positives would else drown the others in noise."""


def positive_weights(
    positives: Sequence[int], clips: Sequence[int] | int, power: float
) -> Tensor | None:
    """Weights (negatives / positives) ** power of the tags' positives, at most 100.

    Args:
        positives: clips of the training split that bear each tag.
        clips: clips of it whose label is known, per tag or, where all are, for all tags.
        power: ``train.positive_weight``; 0: no weights, None; 1: both sides weigh the same.

    Returns:
        K weights, float32, or None. A tag without positives or negatives gets what one clip
        would give it: the loss never uses the former, and the latter is learnt anyway.
    """
    if power == 0:
        return None
    positives_K = torch.tensor(positives, dtype=torch.float64)
    negatives_K = torch.as_tensor(clips, dtype=torch.float64) - positives_K
    ratio_K = negatives_K.clamp(min=1) / positives_K.clamp(min=1)
    return (ratio_K**power).clamp(max=MAX_POSITIVE_WEIGHT).float()


def mean_num_known(y_BK: Tensor, known_BK: Tensor | None, ranks: Ranks) -> Tensor | int:
    """How many labels a rank knows in its part of the batch, the mean over the ranks.

    Args:
        y_BK: the rank's labels.
        known_BK: 1 where a label is known; None: all are, and the ranks' parts are alike.
        ranks: all of them must call it where there are masks.
    """
    if known_BK is None:
        return y_BK.numel()
    num_known = known_BK.sum()
    if ranks.world_size > 1:
        torch.distributed.all_reduce(num_known)
        num_known = num_known / ranks.world_size
    return num_known.clamp(min=1e-9)


def summed_loss(
    logits_BK: Tensor,
    y_BK: Tensor,
    known_BK: Tensor | None,
    *,
    label_smoothing: float = 0.0,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """The formula's sum over the known labels, for a part of the batch or a piece of one."""
    if label_smoothing:
        y_BK = y_BK * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(
        logits_BK, y_BK, known_BK, reduction="sum", pos_weight=positive_weights
    )


def masked_loss(
    logits_BK: Tensor,
    y_BK: Tensor,
    known_BK: Tensor | None,
    ranks: Ranks,
    *,
    label_smoothing: float = 0.0,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """The loss of a rank's part in one piece; its mean over the ranks is the batch's loss.

    Args:
        logits_BK: what the network says, float32.
        y_BK: labels from 0 to 1, float32.
        known_BK: 1.0 where a label is known, else 0.0; None: all are.
        ranks: of this process.
        label_smoothing: s, 0 to 0.5.
        positive_weights: w, K of them; None: 1.
    """
    total = summed_loss(
        logits_BK,
        y_BK,
        known_BK,
        label_smoothing=label_smoothing,
        positive_weights=positive_weights,
    )
    return total / mean_num_known(y_BK, known_BK, ranks)

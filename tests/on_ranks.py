"""What test_train.py starts under torchrun: train.py, then eval.py, in the same processes.

    torchrun ... on_ranks.py FOLDER

FOLDER is of tiny_run.make_config. One start for both, because importing torch takes seconds.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import tiny_run
import torch

import train
from mstag import console, runtime
from mstag.training.loss import masked_loss


def main(folder: Path) -> None:
    """Trains FOLDER/ranks, scores it again with another batch size, fails on rank 0 alone."""
    stop_ranks = runtime.stop_ranks
    # A process can join the group once: the rendezvous remembers its first address.
    runtime.stop_ranks = lambda: None
    train.main(tiny_run.arguments(folder, "ranks", "wandb.mode=offline"), standalone_mode=False)
    tiny_run.load_eval().main(
        [
            *(str(folder / "ranks" / "best"), "--shards", str(folder / "shards")),
            *("--json", str(folder / "again.json"), "--batch-size", "1"),
        ],
        standalone_mode=False,
    )
    ranks = runtime.read_ranks()
    check_partial_labels(ranks)
    try:
        runtime.on_first_rank(fail, ranks)
    except (ValueError, SystemExit) as end:
        print(f"rank {ranks.rank} ended with {end!r}", flush=True)
    stop_ranks()
    console.end_process(0)


def check_partial_labels(ranks: runtime.Ranks) -> None:
    """The ranks' losses, averaged as DDP averages gradients, are the loss of the whole batch."""
    logits, y = torch.linspace(-3, 3, 12).reshape(4, 3), torch.arange(12).reshape(4, 3) % 2.0
    known = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    own = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    loss = masked_loss(logits[own], y[own], known[own], ranks)
    mean = sum(float(part) for part in runtime.gather_over_ranks(loss, ranks)) / 2
    assert math.isclose(mean, float(masked_loss(logits, y, known, runtime.Ranks())), rel_tol=1e-6)


def fail() -> None:
    """What only rank 0 is asked to do."""
    raise ValueError("no space")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

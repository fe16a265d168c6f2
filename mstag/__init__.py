"""mstag, the Multi-Scale Music Tagger."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from mstag.tagging.tagger import Tagger


def load_tagger(bundle: str | Path, device: str = "auto") -> Tagger:
    """Loads a trained tagger from a bundle folder (see :class:`mstag.tagging.tagger.Tagger`)."""
    from mstag.tagging.tagger import Tagger

    return Tagger.load(bundle, device=device)

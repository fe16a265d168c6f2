"""mstag, the Multi-Scale Music Tagger."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from mstag.tagging.tagger import Tagger


def load_tagger(
    bundle: str | Path,
    device: str = "auto",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Tagger:
    """Loads a trained tagger::

        tagger = mstag.load_tagger("runs/demo")
        tagger.tag("song.mp3")                           # [("guitar", 0.93), ...], highest first
        tagger.tag_batch(["a.mp3", "b.flac"])            # one such list a file
        tagger.scores(waveform, sample_rate_hz)          # (num_tags,), 0 to 1
        tagger.embeddings("song.mp3")                    # (num_features,)
        tagger.push_to_hub("user/name")

    Args:
        bundle: a folder that exists (a bundle or a run), or else an id such as user/name on the
            Hugging Face Hub (extra ``hub``).
        device: auto, cpu or cuda.
        revision: a branch, tag or commit on the Hub.
        cache_dir: where the Hub's files are kept.
        token: for what is private there.
        endpoint: another server than the Hub.

    Raises:
        ValueError: no such tagger, a damaged one, no such device, no network, or a package that
            is missing.
    """
    from mstag.tagging.tagger import Tagger

    return Tagger.from_pretrained(
        bundle, device, revision=revision, cache_dir=cache_dir, token=token, endpoint=endpoint
    )

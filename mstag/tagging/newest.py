"""Which trained tagger is meant when none is named."""

from __future__ import annotations

from pathlib import Path


def newest_bundle(runs: Path) -> Path:
    """The bundle in ``runs/*/best`` that was written last.

    Raises:
        ValueError: there is none.
    """
    found = sorted(
        (path.stat().st_mtime_ns, path.parent) for path in runs.glob("*/best/tagger.json")
    )
    if not found:
        raise ValueError(
            f"no trained tagger in {runs}/*/best: train one (`make train`), "
            "or name one with --model"
        )
    return found[-1][1]

"""Where real data lies beside the repository, on machines that have it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MTT = REPOSITORY.parent / "shared" / "data" / "mtt"
CLIP = "e/joram-moments_of_clarity-08-solipsism-59-88.mp3"

needs_mtt = pytest.mark.skipif(
    not MTT.is_dir(), reason="MagnaTagATune's tables are not in ../shared/data/mtt"
)


def unpack_mtt_tables(folder: Path) -> Path:
    """The real tables, uncompressed, with the one real clip beside them, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("annotations_final.csv", "clip_info_final.csv"):
        (folder / name).write_bytes(gzip.decompress((MTT / f"{name}.gz").read_bytes()))
    (folder / "e").mkdir(exist_ok=True)
    (folder / CLIP).write_bytes((MTT / CLIP).read_bytes())
    return folder

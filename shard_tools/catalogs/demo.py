"""The demo dataset: real music made on the spot, in the layout of MagnaTagATune.

What is made and how: see ``shard_tools.demo``. Once made, the folder is read by the
MagnaTagATune catalogue like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mstag.runtime import available_cores


def make_demo(
    data_dir: Path,
    *,
    num_clips: int | None = None,
    seed: int = 0,
    variant: str = "small",
    soundfonts: Sequence[str] = (),
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Makes the demo dataset in a folder, or what is missing of it; does nothing when it is whole.

    The first N clips are the same for every ``num_clips`` of at least N, and for every
    number of workers. Costs about 0.4 CPU-seconds (large and stranger: 0.5) and 120 kB a clip.

    Args:
        data_dir: the dataset's folder; made when absent.
        num_clips: how many clips of 29 s, at least 1; None: the variant's own number.
        seed: another seed, other music; at least 0.
        variant: small, large, stranger or scout; see ``shard_tools.demo.recipe``.
        soundfonts: .sf2 files for the stranger and scout sets; empty: what their Debian packages
            installed.
        num_workers: processes; None: one per processor that this one may use.
        progress: show a bar on stderr when it takes longer than two seconds.

    Raises:
        ValueError: a setting is out of range, the folder holds something else, the packages
            of the extra ``demo`` are not installed, or there is no soundfont for a foreign set.
        ChildProcessError: a worker died.
    """
    from shard_tools.demo import make, recipe
    from shard_tools.demo.soundfonts import find_foreign

    kind = recipe.RECIPES[variant]
    num_clips = kind.num_clips if num_clips is None else num_clips
    for name, value, least in (("num_clips", num_clips, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"demo dataset: {name} is {value}; it must be at least {least}")
    request = make.Request(seed=seed, num_clips=num_clips, recipe=variant)
    if make.is_complete(data_dir, request):
        if kind.is_foreign and soundfonts:
            named = replace(request, soundfonts=find_foreign(soundfonts, kind.package))
            make.check_soundfonts(data_dir, named)
        return
    make.check_packages()
    if kind.is_foreign:
        request = replace(request, soundfonts=find_foreign(soundfonts, kind.package))
    make.make(data_dir, request, num_workers or available_cores(), progress)

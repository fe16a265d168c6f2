"""Runs -> one HTML page: Score, Loss, Tags, Listen, Speed, Data, Settings.

The same sections as the W&B workspace, for whoever has no account, is offline, or wants to
send a run by mail. Each section has a room of its own (report_*.py): what report_read.py read
goes in, a ``Section`` of mstag.show.page comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mstag import files
from mstag.data.store import Folder, Store
from mstag.show.page import html_page
from mstag.training import report_curves, report_data, report_listen, report_score, report_tags
from mstag.training.report_read import Run, read_runs


def write_report(
    folders: Sequence[Path], out: Path, *, data: Path | None = None, shards: Path | None = None
) -> list[str]:
    """Writes one self-contained page on one or several runs.

    Args:
        folders: the run folders; differences are to the first.
        out: the page, a file that ends in .html; replaced as a whole.
        data: folder of the dataset's audio files, for the clips of Listen; they are copied into
            the page, up to 9 MB of them.
        shards: folder of the shards, for their spectrograms; None: ``shards/DATASET`` where there
            is one.

    Returns:
        What was damaged and is said on the page instead of shown.

    Raises:
        ValueError: a folder is not a run (no metrics.jsonl), its numbers are damaged, or
            ``out``, ``data`` or ``shards`` are not what they should be.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        # A checkpoint named by mistake would be gone.
        raise ValueError(f"--out {out}: the page needs the name of a file that ends in .html")
    if data is not None and not data.is_dir():
        raise ValueError(f"--data {data}: no such folder; name that of the dataset's audio files")
    runs = read_runs(folders)
    files.write_text(out, page(runs, data=data, shards=shards))
    return [f"{run.name}: {words}" for run in runs for words in run.damage]


def page(runs: Sequence[Run], *, data: Path | None = None, shards: Path | None = None) -> str:
    """The page, as :func:`write_report` writes it.

    Raises:
        ValueError: ``shards`` names no finished shards.
    """
    store, why_not = _open_shards(runs[0], shards)
    notes = [] if store else [why_not]
    sections = [
        report_score.score(runs),
        report_curves.loss(runs),
        report_tags.tags(runs),
        report_listen.listen(runs, store, data, notes),
        report_curves.speed(runs),
        report_data.data(runs, store.manifest if store else None, why_not),
        report_data.settings(runs),
    ]
    return html_page(f"mstag: {', '.join(run.name for run in runs)}", sections)


def _open_shards(run: Run, shards: Path | None) -> tuple[Store | None, str]:
    """The shards that belong to a run, or how to name them; those that were named must be there."""
    if shards is not None:
        return Folder(shards), ""
    name = str(run.dataset.get("name") or (run.settings or {}).get("dataset.name", ""))
    place = Path("shards") / name
    # The name comes from a file: it must not lead elsewhere.
    if name and Path(name).name == name and (place / "manifest.json").is_file():
        try:
            return Folder(place), ""
        except ValueError as error:
            return None, f"The shards cannot be used: {error}"
    return None, (
        f"More is shown with the shards at hand (spectrograms, taggrams, sizes): `mstag report RUN "
        f"--shards DIR`, by itself where they are in {place}."
    )

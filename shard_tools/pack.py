"""Clips -> shards: in parallel, atomically, with the same bytes every time.

A pack is one or more parts, each of which packs its share of the shards and leaves a note
of what it did; when all parts are there, ``merge`` puts the manifest on top. One process
on one machine is a pack of one part.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mstag import config
from mstag.data import shards
from mstag.data.clips import Catalogue
from mstag.data.features import require_recipe
from shard_tools import merge, receipts
from shard_tools.engines import Engine, processes
from shard_tools.merge import Header, Part, check_skipped
from shard_tools.output import FolderOutput, Output
from shard_tools.plan import Fingerprint, ShardTask, fingerprints, plan
from shard_tools.receipts import Receipt

NUM_THREADS = 8
"""Files of the output that are asked about at a time: a bucket answers slowly, but many."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pack did.

    Attributes:
        num_packed: shards that had to be packed; 0: all were up to date.
        num_shards: shards of this part.
        manifest: of the whole; None when the pack was one part of several.
        truncated: ids of clips that were used as far as they could be decoded.
    """

    num_packed: int
    num_shards: int
    manifest: shards.Manifest | None
    truncated: list[str]


def pack(
    settings: config.Config,
    catalogue: Catalogue,
    data_dir: Path,
    out: Path | Output,
    *,
    engine: Engine | None = None,
    num_workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Packed:
    """Packs a catalogue, or one part of it.

    Args:
        settings: the experiment's config.
        catalogue: what to pack; every clip has a split.
        data_dir: the folder that the clips' paths are relative to.
        out: the folder of shards, made when missing, or another output.
        engine: who packs; None: processes of this machine.
        num_workers: their number; None: one per core.
        part: (I, N): only the I-th of N parts, I from 0.
        progress: show a bar on stderr.

    Raises:
        ValueError: no clips, more clips skipped than ``shards.max_skipped`` allows (no
            manifest is left then), an unknown recipe, an input that changed meanwhile, or
            another pack is at work in ``out``.
        OSError: the output cannot be written, or a worker died.
    """
    require_recipe(settings.features)
    if not catalogue.clips:
        raise ValueError(f"dataset {catalogue.dataset}: no clips to pack in {data_dir}")
    audio = fingerprints(catalogue, data_dir)
    tasks = plan(settings, catalogue, data_dir, audio)
    header = merge.make_header(settings, catalogue, tasks)
    # Before hours of packing, not after: the audio may not be where it should be.
    check_skipped(_missing(catalogue, audio), header)
    del audio
    number, num_parts = part
    own = tasks[number::num_parts]
    output = FolderOutput(out) if isinstance(out, Path) else out
    with output.lock("" if num_parts == 1 else f"{number}-of-{num_parts}"):
        half_written = None if num_parts == 1 else {task.name for task in own}
        output.clear(half_written)
        kept = _kept(own, output)
        note = merge.make_part(number, num_parts, header, _sums(own, kept))
        if len(kept) == len(own) and (done := _finished(output, header, note, kept)):
            return done
        _require_own(output)
        output.remove(shards.MANIFEST_NAME)
        output.remove(note.place)
        for name in _damaged(kept, output):
            del kept[name]
        todo = [task for task in own if task.name not in kept]
        skipped = [row for receipt in kept.values() for row in receipt.skipped]
        check_skipped(skipped, header)
        try:
            with closing(_run(engine or processes(num_workers), todo, output, progress)) as found:
                for fresh in found:
                    receipts.write(output, fresh)
                    # What the output keeps of every clip need not stay in memory.
                    kept[fresh.entry.name] = replace(fresh, heard={})
                    skipped += fresh.skipped
                    check_skipped(skipped, header)
        finally:
            output.clear(half_written)  # by workers that were killed, or whose machine was lost
        note = replace(note, shards=_sums(own, kept))
        merge.write_part(output, note)
        manifest = None
        if num_parts == 1:
            for stale in merge.parts_beside(output, note):
                output.remove(stale)
            manifest = merge.assemble(output, header, [kept[name] for name in note.shards])
        return _packed(len(todo), kept, manifest)


def _require_own(output: Output) -> None:
    """Refuses to pack over shards of somebody else, which nothing brings back."""
    try:
        manifest = json.loads(output.read_text(shards.MANIFEST_NAME) or "{}")
    except ValueError:
        return
    if isinstance(manifest, dict) and "foreign" in manifest:
        raise ValueError(
            f"{output.name}: holds shards that somebody else wrote (see its "
            f"{shards.MANIFEST_NAME}), which packing might replace; name another folder with --out"
        )


def _sums(own: list[ShardTask], kept: dict[str, Receipt]) -> dict[str, str]:
    """The sha256 of every shard that is packed, by name."""
    names = [task.name for task in own]
    return {name: kept[name].entry.sha256 for name in names if name in kept}


def _packed(num_packed: int, kept: dict[str, Receipt], manifest: shards.Manifest | None) -> Packed:
    truncated = [clip_id for receipt in kept.values() for clip_id in receipt.truncated]
    return Packed(num_packed, len(kept), manifest, truncated)


def _kept(tasks: list[ShardTask], output: Output) -> dict[str, Receipt]:
    """The receipts of shards that need not be packed again."""

    def holds(task: ShardTask) -> Receipt | None:
        receipt = receipts.read(output, task.name)
        if receipt is None or receipt.unreadable or receipt.task != task.digest():
            return None
        whole = not receipt.entry.clips or output.size(task.name) == receipt.entry.bytes
        return receipt if whole else None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = zip(tasks, pool.map(holds, tasks), strict=True)
        return {task.name: receipt for task, receipt in found if receipt}


def _finished(
    output: Output, header: Header, note: Part, kept: dict[str, Receipt]
) -> Packed | None:
    """What there is, if it is what this pack would write again."""
    if merge.read_part(output, note.place) != note:
        return None
    manifest = None
    if note.num_parts == 1:
        manifest = merge.finished(output, header, [kept[name] for name in note.shards])
        if manifest is None:
            return None
    return _packed(0, kept, manifest)


def _damaged(kept: dict[str, Receipt], output: Output) -> list[str]:
    """Shards that are no longer what was packed; they are read whole."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(output.sha256, kept)
        return [
            name
            for (name, receipt), sha256 in zip(kept.items(), found, strict=True)
            if receipt.entry.clips and sha256 != receipt.entry.sha256
        ]


def _run(
    engine: Engine, todo: list[ShardTask], output: Output, progress: bool
) -> Generator[Receipt, None, None]:
    from tqdm import tqdm

    sizes = {task.name: len(task.clips) for task in todo}
    hidden = None if progress else True  # None: shown on a terminal
    with tqdm(
        total=sum(sizes.values()), desc="packing", unit="clip", delay=2, disable=hidden
    ) as bar:
        if todo:
            for receipt in engine(todo, output):
                bar.update(sizes[receipt.entry.name])
                yield receipt


def _missing(catalogue: Catalogue, audio: dict[str, Fingerprint]) -> list[dict[str, str]]:
    return [
        {"id": clip.id, "path": clip.path, "reason": "no such file"}
        for clip in catalogue.clips
        if not audio[clip.path]
    ]

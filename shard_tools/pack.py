"""Clips -> shards: in parallel, atomically, with the same bytes every time.

Clips are put in a fixed random order per split and cut into shards; each shard is one task,
a function of its clips and the settings alone, so the number of workers changes nothing. A
finished shard leaves a receipt under ``.pack/``: the same command, run again, keeps every
shard whose receipt still holds (same clips, same settings, same audio files, same bytes) and
packs the others.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mstag
from mstag import config, files
from mstag.data import shards, splits, tags, tars
from mstag.data.audio import load_audio
from mstag.data.clips import Catalogue, Clip
from mstag.data.features import LogMel, require_recipe, windows

RECEIPTS = ".pack"
RECIPE_VERSION = 2
"""Part of every receipt: raise it when the same input no longer gives the same bytes."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to pack: everything that its bytes depend on, and where they go."""

    name: str
    clips: list[Clip]
    labels: NDArray[np.uint8]
    data_dir: Path
    out_dir: Path
    features: config.FeatureConfig
    long_clips: str

    def digest(self) -> str:
        """Changes whenever the shard would: clips, labels, settings, audio files."""
        clips = [{**dataclasses.asdict(clip), "tags": sorted(clip.tags)} for clip in self.clips]
        audio = [_fingerprint(self.data_dir / clip.path) for clip in self.clips]
        settings = [RECIPE_VERSION, self.long_clips, config.features_digest(self.features)]
        return config.digest([settings, clips, self.labels.tolist(), audio])


@dataclass(frozen=True, slots=True)
class Receipt:
    """What packing one shard gave; stored beside the shards as ``.pack/<shard>.json``."""

    task: str
    entry: shards.FileEntry
    positives: list[int]
    skipped: list[dict[str, str]]


def pack(
    settings: config.Config,
    catalogue: Catalogue,
    data_dir: Path,
    out_dir: Path,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> tuple[shards.Manifest, int]:
    """Packs a catalogue into ``out_dir``.

    Args:
        settings: the experiment's config.
        catalogue: what to pack; every clip has a split.
        data_dir: the folder that the clips' paths are relative to.
        out_dir: the folder of shards; made when missing.
        num_workers: processes; None: one per core.
        progress: show a bar on stderr.

    Returns:
        The manifest and how many shards had to be packed (0: all were up to date).

    Raises:
        ValueError: no clips, more clips skipped than ``shards.max_skipped`` allows (no
            manifest is left then), an unknown recipe, or another pack is at work in
            ``out_dir``.
    """
    require_recipe(settings.features)
    if not catalogue.clips:
        raise ValueError(f"dataset {catalogue.dataset}: no clips to pack in {data_dir}")
    limit = settings.shards.max_skipped
    _check_audio_is_there(catalogue, data_dir, limit)
    tasks = plan(settings, catalogue, data_dir, out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with _only_one_pack(out_dir):
        files.remove_leftovers(out_dir)
        files.remove_leftovers(out_dir / RECEIPTS)
        receipts = {task.name: _read_receipt(task) for task in tasks}
        todo = [task for task in tasks if receipts[task.name] is None]
        if not todo and (manifest := _finished_manifest(settings, catalogue, out_dir, receipts)):
            return manifest, 0
        (out_dir / shards.MANIFEST_NAME).unlink(missing_ok=True)
        for fresh in _run(todo, num_workers or os.cpu_count() or 1, progress):
            receipts[fresh.entry.name] = fresh
            _write_receipt(out_dir, fresh)
        done = [receipt for task in tasks if (receipt := receipts[task.name])]
        check_skipped([s for receipt in done for s in receipt.skipped], catalogue, limit)
        manifest = _make_manifest(settings, catalogue, out_dir, done)
        shards.write_manifest(out_dir, manifest)
        _remove_leftovers(out_dir, {task.name for task in tasks})
        return manifest, len(todo)


def plan(
    settings: config.Config, catalogue: Catalogue, data_dir: Path, out_dir: Path
) -> list[ShardTask]:
    """Cuts a catalogue into shards. Within a split, clips are ordered by a hash of their id,
    so that a shard is a random sample and a removed clip moves few others."""
    size = settings.shards.clips_per_shard
    tasks = []
    for split in shards.SPLITS:
        clips = [clip for clip in catalogue.clips if clip.split == split]
        clips.sort(key=lambda clip: (hashlib.sha256(clip.id.encode()).digest(), clip.id))
        labels = tags.multi_hot(clips, catalogue.tag_names)
        for number, start in enumerate(range(0, len(clips), size)):
            tasks.append(
                ShardTask(
                    name=f"{split}-{number:06d}.tar",
                    clips=clips[start : start + size],
                    labels=labels[start : start + size],
                    data_dir=data_dir,
                    out_dir=out_dir,
                    features=settings.features,
                    long_clips=settings.shards.long_clips,
                )
            )
    return tasks


def pack_shard(task: ShardTask) -> Receipt:
    """Packs one shard; a clip that cannot be decoded is skipped with its reason."""
    import torch

    torch.set_num_threads(1)
    skipped: list[dict[str, str]] = []
    positives = np.zeros(task.labels.shape[1], np.int64)
    samples = list(_samples(task, positives, skipped))
    path = task.out_dir / task.name
    tars.write_shard(path, samples)
    entry = shards.entry_of(path, len(samples))
    return Receipt(task.digest(), entry, positives.tolist(), skipped)


def _samples(
    task: ShardTask, positives: NDArray[np.int64], skipped: list[dict[str, str]]
) -> Iterator[tars.Sample]:
    import torch

    log_mel = _log_mel(task.features)
    prefix = task.name.removesuffix(".tar")
    number = 0
    for clip, label in zip(task.clips, task.labels, strict=True):
        try:
            waveform = load_audio(
                task.data_dir / clip.path,
                task.features.sample_rate_hz,
                start_s=clip.start_s,
                duration_s=clip.duration_s,
            )
        except ValueError as error:
            skipped.append({"id": clip.id, "path": clip.path, "reason": str(error)})
            continue
        mel = log_mel(torch.from_numpy(waveform)).numpy()
        for window in windows(mel, task.features.num_frames, task.long_clips):
            start_s = clip.start_s + window.start_frame * task.features.frame_s
            meta = {
                "id": clip.id,
                "path": clip.path,
                "track": clip.track,
                "artist": clip.artist,
                "album": clip.album,
                "start_s": round(start_s, 6),
            }
            if window.padded_frames:
                meta["padded_frames"] = window.padded_frames
            key = f"{prefix}-{number:05d}"
            number += 1
            positives += label
            yield tars.Sample(key, window.mel.astype(np.float16), label, meta)


@functools.lru_cache(maxsize=1)
def _log_mel(features: config.FeatureConfig) -> LogMel:
    """One per worker: the filters are the same for every shard."""
    return LogMel(features)


def _run(todo: list[ShardTask], num_workers: int, progress: bool) -> Iterator[Receipt]:
    from tqdm import tqdm

    total = sum(len(task.clips) for task in todo)
    hidden = None if progress else True  # None: shown on a terminal
    with tqdm(total=total, desc="packing", unit="clip", delay=2, disable=hidden) as bar:
        for receipt, num_clips in _receipts(todo, min(num_workers, len(todo))):
            bar.update(num_clips)
            yield receipt


def _receipts(todo: list[ShardTask], num_workers: int) -> Iterator[tuple[Receipt, int]]:
    if num_workers <= 1:
        yield from ((pack_shard(task), len(task.clips)) for task in todo)
        return
    # A fork server imports torch once and alone, before any thread starts; plain fork copies
    # the parent's locks, spawn pays seconds of import per worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchaudio.functional", "shard_tools.pack"])
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        futures = {pool.submit(pack_shard, task): len(task.clips) for task in todo}
        try:
            for future in as_completed(futures):
                yield future.result(), futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def check_skipped(skipped: list[dict[str, str]], catalogue: Catalogue, limit: float) -> None:
    """Raises ValueError when a larger share than ``limit`` of the dataset was skipped."""
    total = len(catalogue.clips)
    if len(skipped) > limit * total:
        first = skipped[0]
        raise ValueError(
            f"dataset {catalogue.dataset}: {len(skipped)} of {total} clips cannot be used, more "
            f"than shards.max_skipped = {limit:g} allows; the first: {first['path']}: "
            f"{first['reason']}; mend the files, or raise shards.max_skipped"
        )


def _check_audio_is_there(catalogue: Catalogue, data_dir: Path, limit: float) -> None:
    """Fails before hours of packing, not after, when the audio is not where it should be."""
    missing = [
        {"id": clip.id, "path": clip.path, "reason": "no such file"}
        for clip in catalogue.clips
        if not (data_dir / clip.path).exists()
    ]
    check_skipped(missing, catalogue, limit)


def _fingerprint(path: Path) -> list[int]:
    """Size and modification time, by which a changed audio file is noticed."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def _only_one_pack(out_dir: Path) -> Iterator[None]:
    (out_dir / RECEIPTS).mkdir(exist_ok=True)
    with (out_dir / RECEIPTS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{out_dir}: another pack is at work in this folder; wait for it or stop it"
            ) from None
        yield


def _receipt_path(out_dir: Path, name: str) -> Path:
    return out_dir / RECEIPTS / f"{name}.json"


def _write_receipt(out_dir: Path, receipt: Receipt) -> None:
    text = json.dumps(dataclasses.asdict(receipt), ensure_ascii=False)
    files.write_text(_receipt_path(out_dir, receipt.entry.name), text)


def _read_receipt(task: ShardTask) -> Receipt | None:
    """The receipt of a shard that need not be packed again, else None."""
    path = task.out_dir / task.name
    try:
        content: dict[str, Any] = json.loads(_receipt_path(task.out_dir, task.name).read_text())
        receipt = Receipt(**{**content, "entry": shards.FileEntry(**content["entry"])})
        same = receipt.task == task.digest() and path.stat().st_size == receipt.entry.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if same else None


def _finished_manifest(
    settings: config.Config,
    catalogue: Catalogue,
    out_dir: Path,
    receipts: dict[str, Receipt | None],
) -> shards.Manifest | None:
    """The folder's manifest if it is the one that packing would write again."""
    try:
        manifest = shards.read_manifest(out_dir)
        for split in manifest.splits:
            shards.read_index(out_dir, split, manifest)
            shards.check_shards(out_dir, split, manifest)
    except ValueError:
        return None
    named = {entry.name: entry for split in manifest.splits.values() for entry in split.shards}
    wanted = {r.entry.name: r.entry for r in receipts.values() if r and r.entry.clips}
    same = (
        named == wanted
        and manifest.dataset == catalogue.dataset
        and manifest.tag_names == catalogue.tag_names
        and manifest.split_rule == catalogue.split_rule
        and manifest.features == settings.features
        and manifest.mstag_version == mstag.__version__
    )
    return manifest if same else None


def _make_manifest(
    settings: config.Config, catalogue: Catalogue, out_dir: Path, receipts: list[Receipt]
) -> shards.Manifest:
    """Re-reads every shard: what the manifest vouches for is what is on the disk."""
    by_split: dict[str, shards.Split] = {}
    positives: dict[str, NDArray[np.int64]] = {}
    for split in shards.SPLITS:
        own = [r for r in receipts if r.entry.name.startswith(f"{split}-") and r.entry.clips]
        rows = [_checked_rows(out_dir, r, number) for number, r in enumerate(own)]
        index = np.concatenate(rows) if rows else np.empty(0, tars.INDEX_DTYPE)
        by_split[split] = shards.Split(
            clips=len(index),
            shards=[r.entry for r in own],
            index=shards.write_index(out_dir, split, index),
        )
        zeros = np.zeros(len(catalogue.tags), np.int64)
        positives[split] = sum((np.array(r.positives) for r in own), zeros)
    return shards.Manifest(
        dataset=catalogue.dataset,
        features=settings.features,
        tags=[
            {"tag": tag, "positives": {s: int(positives[s][i]) for s in shards.SPLITS}}
            for i, tag in enumerate(catalogue.tag_names)
        ],
        splits=by_split,
        split_rule=catalogue.split_rule,
        leaks=splits.leak_report(catalogue.clips),
        oracle_roc_auc=splits.oracle_roc_auc(catalogue.clips, catalogue.tag_names),
        skipped=[
            *(dataclasses.asdict(row) for row in catalogue.excluded),
            *(skipped for receipt in receipts for skipped in receipt.skipped),
        ],
        mstag_version=mstag.__version__,
    )


def _checked_rows(out_dir: Path, receipt: Receipt, number: int) -> NDArray[np.void]:
    path = out_dir / receipt.entry.name
    if files.sha256_file(path) != receipt.entry.sha256:
        _receipt_path(out_dir, receipt.entry.name).unlink(missing_ok=True)
        raise ValueError(f"{path}: changed since it was packed; run the same command again")
    rows, _ = tars.scan_shard(path)
    rows["shard"] = number
    return rows


def _remove_leftovers(out_dir: Path, planned: set[str]) -> None:
    """Removes shards of an earlier plan, known by their receipts; touches nothing else."""
    for path in (out_dir / RECEIPTS).glob("*.tar.json"):
        name = path.name.removesuffix(".json")
        if name not in planned:
            (out_dir / name).unlink(missing_ok=True)
            path.unlink()

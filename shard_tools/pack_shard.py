"""One shard: its clips, decoded, turned into windows, and written as they come."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag import config
from mstag.data import tars
from mstag.data.clip_windows import clip_windows, open_stretch
from mstag.data.clips import Clip
from mstag.data.features import LogMel, as_stored
from mstag.data.shards import entry_of
from shard_tools import receipts
from shard_tools.output import Output
from shard_tools.plan import ShardTask, fingerprint
from shard_tools.receipts import Receipt


def pack_shard(task: ShardTask, output: Output) -> Receipt:
    """Packs one shard; a clip that cannot be used is skipped with its reason.

    Spectrograms that an earlier pack left in the shard of the same name are taken from it
    when neither their audio nor the features changed.

    Raises:
        ValueError: an audio file changed or vanished while it was read.
        OSError: the output cannot be written.
    """
    log_mel = _log_mel(task.features)
    heard = {clip.id: task.heard(number) for number, clip in enumerate(task.clips)}
    positives = np.zeros(task.labels.shape[1], np.int64)
    known = None if task.known is None else np.zeros_like(positives)
    skipped: list[dict[str, str]] = []
    truncated: list[str] = []
    path = output.scratch / task.name
    prefix = task.name.removesuffix(".tar")
    with (
        contextlib.closing(_OldShard(task.name, heard, output)) as old,
        tars.open_shard(path) as writer,
    ):
        for number, clip in enumerate(task.clips):
            first = writer.num_samples
            mask = None if task.known is None else task.known[number]
            found = old.samples(clip.id)
            try:
                for mel, what in found or _decoded(task, number, log_mel):
                    meta = _meta(clip, what)
                    key = f"{prefix}-{writer.num_samples:05d}"
                    writer.add(tars.Sample(key, mel, task.labels[number], meta, mask))
            except ValueError as error:
                _require_unchanged(task, number)
                writer.rewind(first)
                skipped.append({"id": clip.id, "path": clip.path, "reason": str(error)})
                continue
            if found is None:
                _require_unchanged(task, number)
            if what.get("truncated"):
                truncated.append(clip.id)
            positives += (writer.num_samples - first) * task.labels[number].astype(np.int64)
            if known is not None and mask is not None:
                known += (writer.num_samples - first) * mask.astype(np.int64)
    entry = entry_of(path, writer.num_samples)
    output.publish(task.name)
    return Receipt(
        task=task.digest(),
        entry=entry,
        rows=writer.rows.tobytes(),
        positives=positives.tolist(),
        known=None if known is None else known.tolist(),
        heard=heard,
        skipped=skipped,
        truncated=truncated,
    )


def _decoded(
    task: ShardTask, number: int, log_mel: LogMel
) -> Iterator[tuple[NDArray[np.float16], dict[str, Any]]]:
    """Windows of one clip, each with what its json says besides the names."""
    clip, features = task.clips[number], task.features
    window_s = features.num_frames * features.frame_s
    with open_stretch(
        task.data_dir / clip.path,
        start_s=clip.start_s,
        duration_s=clip.duration_s,
        centre_s=window_s if task.long_clips == "centre" else None,
    ) as (reader, start_s):
        held = None
        for window in clip_windows(reader, log_mel):
            if held:
                yield held
            what: dict[str, Any] = {
                "start_s": round(start_s + window.start_frame * features.frame_s, 6)
            }
            if window.padded_frames:
                what["padded_frames"] = window.padded_frames
            if reader.truncated:
                what["truncated"] = True
            held = as_stored(window.mel), what
        # Known for certain when the clip's end has been read, which may give no window.
        assert held
        if reader.truncated:
            held[1]["truncated"] = True
        yield held


def _meta(clip: Clip, what: dict[str, Any]) -> dict[str, Any]:
    names = {"path": clip.path, "track": clip.track, "artist": clip.artist, "album": clip.album}
    return {"id": clip.id, **names, **what}


def _require_unchanged(task: ShardTask, number: int) -> None:
    """A disk that was pulled out must not look like a thousand bad clips."""
    path = task.data_dir / task.clips[number].path
    if fingerprint(path) != task.audio[number]:
        raise ValueError(
            f"{path}: changed or vanished while it was packed (is its disk still there?), so "
            "packing stopped; run the same command again: it goes on from here"
        ) from None


class _OldShard:
    """The spectrograms of the shard of the same name that an earlier pack left.

    Args:
        name: of the shard.
        heard: per clip id, what its spectrograms must depend on to be of use.
        output: where the shard lies.
    """

    def __init__(self, name: str, heard: dict[str, str], output: Output) -> None:
        self._handle: int | None = None
        self._rows: dict[str, list[Any]] = {}
        receipt = receipts.read(output, name)
        if receipt is None or output.size(name) != receipt.entry.bytes:
            return
        useful = {clip_id for clip_id, _ in receipt.heard.items() & heard.items()}
        self._handle = output.open(name) if useful else None
        if self._handle is None:
            return
        for row in receipt.index:
            if not self._is_whole(row):
                # Whose window this was cannot be told, so no clip is known to have all of its.
                self._rows.clear()
                return
            clip_id = json.loads(self._read(row, "json"))["id"]
            if clip_id in useful:
                self._rows.setdefault(clip_id, []).append(row)

    def samples(self, clip_id: str) -> list[tuple[NDArray[np.float16], dict[str, Any]]] | None:
        """A clip's windows as :func:`_decoded` gives them; None when they must be made."""
        rows = self._rows.get(clip_id)
        if rows is None:
            return None
        names = {"id", "path", "track", "artist", "album"}
        found = []
        for row in rows:
            mel = np.load(io.BytesIO(self._read(row, "mel")), allow_pickle=False)
            meta = json.loads(self._read(row, "json"))
            found.append((mel, {name: meta[name] for name in meta if name not in names}))
        return found

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def _is_whole(self, row: Any) -> bool:
        import xxhash

        assert self._handle is not None
        stretch = os.pread(self._handle, int(row["bytes"]), int(row["start"]))
        return xxhash.xxh3_64_intdigest(stretch) == int(row["checksum"])

    def _read(self, row: Any, name: str) -> bytes:
        assert self._handle is not None
        at = int(row["start"]) + int(row[f"{name}_at"])
        return os.pread(self._handle, int(row[f"{name}_bytes"]), at)


@functools.lru_cache(maxsize=1)
def _log_mel(features: config.FeatureConfig) -> LogMel:
    """One per worker: the filters are the same for every shard."""
    return LogMel(features)

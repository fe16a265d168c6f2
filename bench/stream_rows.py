"""The ways of reading that bench/stream.py compares: how each is prepared, and its epochs.

    python bench/stream_rows.py ROW FOLDER [--cold] [--min-seconds S]

Run by bench/stream.py, each row in a process of its own; prints clips per second. Every row
reads the same clips in batches of 64 and touches each batch no further. Peers get their own
format, written from the same arrays, and their documented way of shuffling and batching.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mstag.data.shards import Split

BATCH_SIZE = 64
N_MELS, NUM_FRAMES, NUM_TAGS = 128, 628, 50
CLIPS_PER_SHARD = 256
WINDOW = 4

Epoch = Callable[[], int]
"""Reads everything once; returns how many clips that were."""


def make_clip(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip ``number``: a float16 spectrogram and a multi-hot label vector."""
    rng = np.random.default_rng(number)
    mel = rng.standard_normal((N_MELS, NUM_FRAMES), np.float32).astype(np.float16)
    return mel, (rng.random(NUM_TAGS) < 0.1).astype(np.uint8)


# ---- Preparing: each format once --------------------------------------------------------


def prepare(folder: Path, num_clips: int, num_valid: int = 0) -> None:
    """Writes the clips as mstag's shards; webdataset and the raw rows read the same tars.

    With ``num_valid``, some more as the validation split.
    """
    from mstag import config
    from mstag.data import shards

    numbers = {"train": range(num_clips)}
    if num_valid:
        numbers["valid"] = range(num_clips, num_clips + num_valid)
    splits = {}
    positives: list[dict[str, int]] = [{} for _ in range(NUM_TAGS)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for split, clips in numbers.items():
            splits[split], counts = _write_split(folder, split, clips, pool)
            for tag, count in zip(positives, counts.tolist(), strict=True):
                tag[split] = count
    shards.write_manifest(
        folder,
        shards.Manifest(
            dataset="bench",
            features=config.FeatureConfig(n_mels=N_MELS, num_frames=NUM_FRAMES),
            tags=[{"tag": f"tag {i}", "positives": of} for i, of in enumerate(positives)],
            splits=splits,
            split_rule="all",
            leaks={},
            oracle_roc_auc=None,
            skipped=[],
            mstag_version="bench",
        ),
    )


def _write_split(
    folder: Path, split: str, clips: range, pool: ProcessPoolExecutor
) -> tuple[Split, np.ndarray]:
    """The shards of a split; also how many clips have each tag."""
    from mstag.data import shards

    starts = range(clips.start, clips.stop, CLIPS_PER_SHARD)
    parts = [range(start, min(start + CLIPS_PER_SHARD, clips.stop)) for start in starts]
    paths = [folder / f"{split}-{number:06d}.tar" for number in range(len(parts))]
    rows, positives = [], np.zeros(NUM_TAGS, np.int64)
    for number, (own, counts) in enumerate(pool.map(_write_shard, paths, parts)):
        own["shard"] = number
        rows.append(own)
        positives += counts
    entries = [shards.entry_of(*shard) for shard in zip(paths, map(len, parts), strict=True)]
    index = shards.write_index(folder, split, np.concatenate(rows))
    return shards.Split(len(clips), entries, index), positives


def _write_shard(path: Path, clips: range) -> tuple[np.ndarray, np.ndarray]:
    """One of them: the index rows of its samples, and how many have each tag."""
    from mstag.data import tars

    made = [(i, *make_clip(i)) for i in clips]
    split = path.name.partition("-")[0]
    samples = [
        tars.Sample(f"{split}-{i:07d}", mel, tags, {"id": f"clip {i}", "path": f"{i}.mp3"})
        for i, mel, tags in made
    ]
    counts = np.sum([tags for _, _, tags in made], axis=0, dtype=np.int64)
    return tars.write_shard(path, samples), counts


def prepare_litdata(folder: Path, num_clips: int) -> None:
    """Writes litdata's chunks."""
    import litdata

    litdata.optimize(
        fn=_litdata_clip,
        inputs=list(range(num_clips)),
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def _litdata_clip(number: int) -> dict[str, Any]:
    import torch

    # Tensors: arrays would be pickled, which costs litdata half its speed.
    mel, tags = make_clip(number)
    return {"mel": torch.from_numpy(mel), "tags": torch.from_numpy(tags)}


def prepare_mosaicml(folder: Path, num_clips: int) -> None:
    """Writes MosaicML streaming's shards."""
    from streaming import MDSWriter

    columns = {
        "mel": f"ndarray:float16:{N_MELS},{NUM_FRAMES}",
        "tags": f"ndarray:uint8:{NUM_TAGS}",
    }
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for number in range(num_clips):
            mel, tags = make_clip(number)
            writer.write({"mel": mel, "tags": tags})


# ---- Rows: folder -> one epoch ----------------------------------------------------------


def ours(num_workers: int, window: int = 0, device: str | None = None) -> Callable[[Path], Epoch]:
    """mstag's loader: shuffled, every clip's checksum verified, ids and labels included."""

    def start(folder: Path) -> Epoch:
        from mstag.data.stream import ShardLoader

        loader = ShardLoader(
            folder,
            "train",
            batch_size=BATCH_SIZE,
            shuffle=True,
            window=window,
            num_workers=num_workers,
            device=device,
        )

        def epoch() -> int:
            loader.set_epoch(loader.epoch + 1)
            num_clips = sum(len(batch["mel"]) for batch in loader)
            if device is not None:
                import torch

                torch.cuda.synchronize(device)
            return num_clips

        return epoch

    return start


def webdataset(num_workers: int) -> Callable[[Path], Epoch]:
    """The usual pipeline: shuffled shards, a shuffle buffer of 1,000, decode, batch."""

    def start(folder: Path) -> Epoch:
        import webdataset as wds

        urls = sorted(str(path) for path in folder.glob("train-*.tar"))
        dataset = (
            wds.WebDataset(urls, shardshuffle=len(urls))
            .shuffle(1000)
            .decode()
            .to_tuple("mel.npy", "tags.npy", "json")
            .batched(BATCH_SIZE)
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=num_workers)
        return lambda: sum(len(mel) for mel, _, _ in loader)

    return start


def litdata(num_workers: int) -> Callable[[Path], Epoch]:
    """litdata's StreamingDataset and StreamingDataLoader, shuffled."""

    def start(folder: Path) -> Epoch:
        import litdata as ld

        dataset = ld.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=False)
        loader = ld.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=num_workers)
        return lambda: sum(len(batch["mel"]) for batch in loader)

    return start


def mosaicml(num_workers: int) -> Callable[[Path], Epoch]:
    """MosaicML streaming's StreamingDataset in a DataLoader, shuffled."""

    def start(folder: Path) -> Epoch:
        import torch
        from streaming import StreamingDataset

        dataset = StreamingDataset(
            local=str(folder / "mds"), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
        )
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=num_workers
        )
        return lambda: sum(len(batch["mel"]) for batch in loader)

    return start


def in_memory(num_workers: int) -> Callable[[Path], Epoch]:
    """The original's way: all clips in one array, a Dataset and a DataLoader over it."""

    def start(folder: Path) -> Epoch:
        import torch

        from mstag.data.stream import ShardLoader

        loader = ShardLoader(folder, "train", batch_size=BATCH_SIZE, shuffle=False, num_workers=0)
        mel = np.empty((loader.num_clips, 1, N_MELS, NUM_FRAMES), np.float16)
        tags = np.empty((loader.num_clips, NUM_TAGS), np.uint8)
        for batch in loader:
            mel[batch["number"]], tags[batch["number"]] = batch["mel"], batch["tags"]
        dataset = torch.utils.data.TensorDataset(torch.from_numpy(mel), torch.from_numpy(tags))
        batches = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers
        )
        return lambda: sum(len(batch) for batch, _ in batches)

    return start


def raw_read(block_bytes: int) -> Callable[[Path], Epoch]:
    """All bytes of the tars in their order, into one reused buffer; nothing is looked at.

    The buffer starts on a page. Where malloc puts large arrays, 16 bytes behind one, the
    kernel's copy is up to four times as slow on Zen 3 processors (`rep movsb` dislikes a
    target just above its source, modulo 4096): that would flatter us.
    """

    def start(folder: Path) -> Epoch:
        block = mmap.mmap(-1, block_bytes)
        paths = sorted(folder.glob("train-*.tar"))

        def epoch() -> int:
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    while file.readinto(block):
                        pass
            return num_clips_of(folder)

        return epoch

    return start


def memcpy(folder: Path) -> Epoch:
    """Clips copied from one array into batches of another, in random order."""
    num_clips = num_clips_of(folder)
    source = np.ones((num_clips, N_MELS * NUM_FRAMES), np.float16)
    batch = np.ones((BATCH_SIZE, N_MELS * NUM_FRAMES), np.float16)
    order = np.random.default_rng(0).permutation(num_clips)

    def epoch() -> int:
        for start in range(0, num_clips, BATCH_SIZE):
            for row, clip in enumerate(order[start : start + BATCH_SIZE]):
                batch[row] = source[clip]
        return num_clips

    return epoch


def num_clips_of(folder: Path) -> int:
    """How many clips a folder holds."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return int(manifest["splits"]["train"]["clips"])


BATCH_BYTES = BATCH_SIZE * N_MELS * NUM_FRAMES * 2
ROWS: dict[str, Callable[[Path], Epoch]] = {
    "mstag, 2 processes": ours(2),
    "mstag, 4 processes": ours(4),
    "mstag, in the training process": ours(0),
    f"mstag, 2 processes, windows of {WINDOW} shards": ours(2, WINDOW),
    "webdataset, 0 workers": webdataset(0),
    "webdataset, 2 workers": webdataset(2),
    "litdata, 0 workers": litdata(0),
    "litdata, 1 worker": litdata(1),
    "litdata, 2 workers": litdata(2),
    "mosaicml streaming, 1 worker": mosaicml(1),
    "mosaicml streaming, 2 workers": mosaicml(2),
    "in-memory Dataset, 0 workers": in_memory(0),
    "in-memory Dataset, 2 workers": in_memory(2),
    "raw read, into the memory of a batch": raw_read(BATCH_BYTES),
    "raw read, into 256 KiB over and over": raw_read(1 << 18),
    "memcpy": memcpy,
}
ON_A_GPU = {"mstag, 2 processes, to the GPU": ours(2, device="cuda")}
PEERS = ("litdata", "mosaicml")
"""Rows that start so need the bench's own packages."""


def forget(folder: Path) -> None:
    """Drops what the page cache holds of a folder's files (clean pages, so no root needed)."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def clips_per_second(
    start: Callable[[Path], Epoch], folder: Path, min_seconds: float, *, cold: bool
) -> float:
    """Times whole epochs, after one that warms up; cold: a single epoch from the disk."""
    epoch = start(folder)
    if cold:
        forget(folder)
        begin = time.perf_counter()
        return epoch() / (time.perf_counter() - begin)
    epoch()
    begin, clips = time.perf_counter(), 0
    while time.perf_counter() - begin < min_seconds:
        clips += epoch()
    return clips / (time.perf_counter() - begin)


def touch(folder: Path) -> Iterator[int]:
    """Reads all files once, so that a warm row is warm."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield len(path.read_bytes())


def main() -> None:
    """Runs one row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--min-seconds", type=float, default=1.0)
    parser.add_argument("--prepare", type=int, default=0)
    args = parser.parse_args()
    if args.prepare:
        makers: dict[str, Any] = {
            "mstag": prepare,
            "litdata": prepare_litdata,
            "mosaicml": prepare_mosaicml,
        }
        makers[args.row](args.folder, args.prepare)
        return
    start = {**ROWS, **ON_A_GPU}[args.row]
    rate = clips_per_second(start, args.folder, args.min_seconds, cold=args.cold)
    print(json.dumps(rate))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()

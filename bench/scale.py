"""What a million clips cost the loader before the first batch, and whether it grows.

    python bench/scale.py [--clips N]

The clips are small and their shards are names of one file (hard links), so that a million of
them take no disk; index, order, resuming and reading are the real ones. Each size runs in a
process of its own. Writes bench/results/scale-<machine>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from stream import machine

from mstag import config
from mstag.data import shards, tars

CLIPS_PER_SHARD = 256
BATCH_SIZE = 64
RESUME_AT = 0.98
NUM_BATCHES = 3000
FEATURES = config.FeatureConfig(n_mels=8, num_frames=8)


def prepare(folder: Path, num_clips: int) -> None:
    """Writes one shard, its many names, and the index of all."""
    rng = np.random.default_rng(0)
    samples = [
        tars.Sample(
            f"train-{i:06d}",
            rng.standard_normal((8, 8)).astype(np.float16),
            (rng.random(50) < 0.1).astype(np.uint8),
            {"id": f"clip {i}", "path": f"{i}.mp3"},
        )
        for i in range(CLIPS_PER_SHARD)
    ]
    first = folder / "train-000000.tar"
    rows = tars.write_shard(first, samples)
    entry = shards.entry_of(first, CLIPS_PER_SHARD)
    num_shards = num_clips // CLIPS_PER_SHARD
    index = np.tile(rows, num_shards)
    index["shard"] = np.repeat(np.arange(num_shards), CLIPS_PER_SHARD)
    entries = []
    for number in range(num_shards):
        name = f"train-{number:06d}.tar"
        if number:
            os.link(first, folder / name)
        entries.append(shards.FileEntry(name, entry.bytes, entry.sha256, entry.clips))
    split = shards.Split(len(index), entries, shards.write_index(folder, "train", index))
    shards.write_manifest(
        folder,
        shards.Manifest(
            dataset="scale",
            features=FEATURES,
            tags=[{"tag": f"tag {i}", "positives": {}} for i in range(50)],
            splits={"train": split},
            split_rule="all",
            leaks={},
            oracle_roc_auc=None,
            skipped=[],
            mstag_version="bench",
        ),
    )


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(folder: Path) -> dict[str, float]:
    """Loads, orders, resumes and reads, in this process."""
    import torch  # noqa: F401 (its memory is not the loader's)

    from mstag.data.stream import ShardLoader

    before = resident_mb()
    start = time.perf_counter()
    loader = ShardLoader(folder, "train", batch_size=BATCH_SIZE, shuffle=True)
    loaded = time.perf_counter()
    resident = resident_mb() - before
    plan = loader.plan()
    planned = time.perf_counter()
    state = loader.state_dict()
    state["clips"] = int(RESUME_AT * len(loader)) * BATCH_SIZE
    del plan
    resumed = time.perf_counter()
    loader.load_state_dict(state)
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    batches.close()
    loader.set_epoch(1)
    for number, _batch in enumerate(loader):
        if number == 100:
            early = resident_mb()
        if number == min(NUM_BATCHES, len(loader) - 1):
            break
    return {
        "clips": loader.num_clips,
        "load_s": loaded - start,
        "load_mb": resident,
        "order_s": planned - loaded,
        "first_batch_after_resuming_s": first - resumed,
        "growth_mb": resident_mb() - early,
    }


def as_table(results: list[dict[str, float]]) -> str:
    """A Markdown table."""
    lines = [
        "| clips | load | memory | order of an epoch | first batch, resumed at 98% | growth |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['clips']:,.0f} | {r['load_s']:.2f} s | {r['load_mb']:.0f} MB | {r['order_s']:.2f} s "
        f"| {r['first_batch_after_resuming_s']:.2f} s | {r['growth_mb']:.1f} MB |"
        for r in results
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures three sizes and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    results = []
    for num_clips in (args.clips // 100, args.clips // 10, args.clips):
        with tempfile.TemporaryDirectory(prefix="mstag-scale-") as name:
            prepare(Path(name), num_clips)
            command = [sys.executable, __file__, "--measure", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    path = Path(__file__).resolve().parent / "results" / f"scale-{machine()}.json"
    command = f"python bench/scale.py --clips {args.clips}"
    path.write_text(json.dumps({"command": command, "rows": results}, indent=1) + "\n")
    text = f"{as_table(results)}\n\n`{command}`, {machine()}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

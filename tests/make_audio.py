"""Small collections of real audio files with their catalogue, for tests of packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

from mstag import config
from mstag.data.clips import Catalogue, Clip, TagCount

SETTINGS = config.Config(
    features=config.FeatureConfig(n_fft=256, hop_length=128, n_mels=16, num_frames=40),
    shards=config.ShardsConfig(clips_per_shard=4, max_skipped=0.1),
)
TAGS = ["low", "high"]


def make_audio(folder: Path, num_clips: int) -> Catalogue:
    """Tones, low or high, as wav files, with their catalogue."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(num_clips):
        tag = TAGS[number % 2]
        hz = 300 + 10 * number if tag == "low" else 3000 + 10 * number
        samples = 0.3 * np.sin(2 * np.pi * hz * np.arange(6000) / 11025)
        sf.write(folder / f"{number}.wav", samples, 11025)
        split = ("train", "train", "valid", "test")[number % 4]
        clips.append(
            Clip(f"c{number}", f"{number}.wav", frozenset([tag]), artist=f"a{number}", split=split)
        )
    return Catalogue("tones", [TagCount(t, num_clips // 2) for t in TAGS], clips, "by hand", [])


def contents(folder: Path) -> dict[str, bytes]:
    """The finished files of a folder of shards."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def table_dataset(folder: Path, num_clips: int, *, clips_per_shard: int = 4) -> Path:
    """The same tones beside a table; returns a config for the real commands."""
    catalogue = make_audio(folder / "data", num_clips)
    lines = ["path,tags,artist,split"]
    lines += [f"{c.path},{'|'.join(c.tags)},{c.artist},{c.split}" for c in catalogue.clips]
    (folder / "data" / "tracks.csv").write_text("\n".join(lines) + "\n")
    settings = folder / "tones.toml"
    settings.write_text(
        '[dataset]\nname = "tones"\nkind = "table"\ntable = "tracks.csv"\n'
        "[features]\nn_fft = 256\nhop_length = 128\nn_mels = 16\nnum_frames = 40\n"
        f"[shards]\nclips_per_shard = {clips_per_shard}\nmax_skipped = 0.1\n"
    )
    return settings

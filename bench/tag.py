"""How fast are songs tagged, against the bare work that cannot be left out?

    python bench/tag.py [--rounds N] [--songs N] [--model BUNDLE]

Songs of three minutes (44.1 kHz stereo mp3, 128 kbit/s: clips of the demo set, one behind the
other) go through each bare stage, all songs through one stage before the next begins, every
stage on all cores: decoding (soundfile, from memory, one song a thread), features (mean of
the channels, resampling, log-mel; one song a thread), and the network (one thread a core with
a window at a time, or all of torch's threads with a song at a time: the faster one counts).
Then the same songs go through what `mstag tag` does, from the files' names to every tag's
score. A round goes through all of these, so that whatever slows the machine for a while slows
all of them; a ratio is the median over the rounds of the ratio within a round. The
same for clips of 29 s as they are. Then processes: torch imported, `mstag tag` of one
second of sound, `mstag --help`. Writes bench/results/tag-<machine>.json and .md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SONG_S = 180
SONG_HZ = 44_100
KBIT_S = 128
TARGET = 1.3
STARTUP_TARGET_S = 0.5
STAGES = ("decoding", "features", "network")
WHOLE = "mstag tag"


def make_songs(folder: Path, num_songs: int) -> list[Path]:
    """Songs of the demo set's clips, encoded as people's music is."""
    import lameenc
    import soundfile
    import soxr

    clips = demo_clips()
    made = []
    for number in range(num_songs):
        pieces, total = [], 0
        while total < SONG_S * SONG_HZ:
            clip = clips[(number * 7 + len(pieces)) % len(clips)]
            samples, rate_hz = soundfile.read(clip, dtype="float32")
            pieces.append(soxr.resample(samples, rate_hz, SONG_HZ))
            total += len(pieces[-1])
        left = np.concatenate(pieces)[: SONG_S * SONG_HZ]
        # The other channel hears it a little later and softer: two channels cost what two cost.
        both = np.stack([left, 0.8 * np.roll(left, 200)], axis=1)
        coder = lameenc.Encoder()
        coder.silence()
        coder.set_in_sample_rate(SONG_HZ)
        coder.set_channels(2)
        coder.set_bit_rate(KBIT_S)
        coder.set_quality(7)
        pcm = (both.clip(-1, 1) * 32767).astype("<i2").tobytes()
        path = folder / f"song-{number:02d}.mp3"
        path.write_bytes(bytes(coder.encode(pcm) + coder.flush()))
        made.append(path)
    return made


def demo_clips() -> list[Path]:
    """The demo set's files."""
    clips = sorted((HERE.parent / "data" / "demo").glob("?/*.mp3"))
    if not clips:
        sys.exit("no demo set in data/demo: make it with `make shards`")
    return clips


class Bench:
    """Songs, and what of each stage the next one needs, in memory."""

    def __init__(self, paths: list[Path], model: Path) -> None:
        from mstag.runtime import available_cores
        from mstag.tagging.tagger import Tagger

        self.paths = paths
        self.cores = available_cores()
        self.tagger = Tagger.load(model, "cpu")
        self.pool = ThreadPoolExecutor(self.cores)
        self.contents = [path.read_bytes() for path in paths]
        self.decoded = [self._decode(content) for content in self.contents]
        self.windows = [self._features(*decoded) for decoded in self.decoded]

    def round(self) -> dict[str, tuple[float, float]]:
        """Of each stage and of the whole: seconds, and seconds of processors."""
        from mstag.runtime import one_thread

        found: dict[str, tuple[float, float]] = {}
        with one_thread():
            found["decoding"] = timed(lambda: self._each(self._decode, self.contents))
            found["features"] = timed(
                lambda: self._each(lambda one: self._features(*one), self.decoded)
            )
            network = timed(lambda: self._each(self._score_alone, self.windows))
        found["network, torch's threads"] = timed(self._score_together)
        found["network, a window a thread"] = network
        found["network"] = min(network, found["network, torch's threads"])
        found[WHOLE] = timed(self._tag)
        return found

    def _each(self, step: Callable[[Any], Any], items: list[Any]) -> None:
        for _ in self.pool.map(step, items):
            pass

    def _decode(self, content: bytes) -> tuple[np.ndarray, int]:
        import soundfile

        samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        return samples, rate_hz

    def _features(self, samples: np.ndarray, rate_hz: int) -> list[np.ndarray]:
        from mstag.data.decoders import mono
        from mstag.data.features import as_stored, windows
        from mstag.data.resampling import resample

        waveform = resample(mono(samples), rate_hz, self.tagger.sample_rate_hz)
        num_frames = self.tagger.bundle.features.num_frames
        return [as_stored(w.mel) for w in windows(self.tagger.log_mel(waveform), num_frames)]

    def _score_alone(self, windows: list[np.ndarray]) -> None:
        import torch

        from mstag.models.predict import score_windows

        with torch.inference_mode():
            for window in windows:
                score_windows(
                    self.tagger.bundle.model, torch.from_numpy(window)[None, None].float()
                )

    def _score_together(self) -> None:
        import torch

        from mstag.models.predict import score_windows

        before = torch.get_num_threads()
        torch.set_num_threads(self.cores)
        with torch.inference_mode():
            for windows in self.windows:
                batch = torch.from_numpy(np.stack(windows)[:, None]).float()
                score_windows(self.tagger.bundle.model, batch)
        torch.set_num_threads(before)

    def _tag(self) -> None:
        from mstag.tagging.batch import tag_files
        from mstag.tagging.find import find_files

        for result in tag_files(self.tagger, find_files(map(str, self.paths))):
            assert result.error is None and result.scores is not None, result.error


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds that it takes, and seconds of processors that this process takes."""
    started, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - processor


def start_up(folder: Path, model: Path, num_rounds: int) -> list[dict[str, tuple[float, float]]]:
    """Seconds, and seconds of processors, of processes that do next to nothing, in turn."""
    import soundfile

    short = folder / "short.wav"
    soundfile.write(short, 0.1 * np.random.default_rng(0).standard_normal(11_025), 11_025)
    commands = {
        "import torch": ["-c", "import torch"],
        "tag": ["-m", "mstag", "tag", str(short), "--model", str(model), "--device", "cpu"],
        "help": ["-m", "mstag", "--help"],
    }
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    rounds = []
    for number in range(num_rounds + 1):
        found: dict[str, tuple[float, float]] = {}
        for name, command in commands.items():
            run = [sys.executable, *command]
            started, before = time.perf_counter(), os.times()
            subprocess.run(
                run,
                env=env,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            after = os.times()
            processor = sum(after[2:4]) - sum(before[2:4])  # of the children
            found[name] = time.perf_counter() - started, processor
        if number:  # the first one warms the page cache
            rounds.append(found)
    return rounds


def summary(rounds: list[dict[str, tuple[float, float]]], sound_s: float) -> dict[str, Any]:
    """Medians of the rounds, and of the ratios within them."""

    def ratio(which: int) -> float:
        return statistics.median(
            found[WHOLE][which] / sum(found[stage][which] for stage in STAGES) for found in rounds
        )

    return {
        "seconds": {name: statistics.median(r[name][0] for r in rounds) for name in rounds[0]},
        "processor_seconds": {
            name: statistics.median(r[name][1] for r in rounds) for name in rounds[0]
        },
        "ratio": ratio(0),
        "processor_ratio": ratio(1),
        "times_real_time": sound_s / statistics.median(found[WHOLE][0] for found in rounds),
        "rounds": rounds,
    }


def main() -> None:
    """Measures, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--model", type=Path, default=HERE.parent / "runs" / "demo" / "best")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mstag-bench-") as name:
        folder = Path(name)
        songs = make_songs(folder, args.songs)
        clips = demo_clips()[:: max(1, len(demo_clips()) // args.clips)][: args.clips]
        benches = {"songs": Bench(songs, args.model), "clips": Bench(clips, args.model)}
        rounds: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in benches}
        for number in range(args.rounds + 1):
            for kind, bench in benches.items():
                found = bench.round()
                if number:  # the first one is for imports and for torch's first choices
                    rounds[kind].append(found)
                    print(kind, {k: round(v[0], 3) for k, v in found.items()}, flush=True)
        starts = start_up(folder, args.model, args.rounds)
    lengths_s = {"songs": SONG_S * len(songs), "clips": 29.1 * len(clips)}
    write(args, {kind: summary(own, lengths_s[kind]) for kind, own in rounds.items()}, starts)


def machine() -> str:
    """A name for this machine: processor kind and cores."""
    return f"{platform.machine()}-{os.cpu_count()}-cores"


def write(
    args: argparse.Namespace,
    found: dict[str, dict[str, Any]],
    starts: list[dict[str, tuple[float, float]]],
) -> None:
    """The results, for programs and for people."""
    over_torch_s, processor_over_torch_s = (
        statistics.median(r["tag"][which] - r["import torch"][which] for r in starts)
        for which in (0, 1)
    )
    start_s = {name: statistics.median(r[name][0] for r in starts) for name in starts[0]}
    command = f"python bench/tag.py --rounds {args.rounds} --songs {args.songs}"
    command += f" --clips {args.clips}"
    result = {
        "command": command,
        "machine": machine(),
        "target": TARGET,
        **found,
        "start_up": {
            "seconds": start_s,
            "tag_over_import_torch_s": over_torch_s,
            "processor_tag_over_import_torch_s": processor_over_torch_s,
            "rounds": starts,
        },
    }
    path = HERE / "results" / f"tag-{machine()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    songs, clips = found["songs"]["seconds"], found["clips"]["seconds"]
    per_song, per_clip = 1e3 / args.songs, 1e3 / args.clips
    lines = ["| on all cores, ms | a 3-minute song | a 29-s clip |", "|---|---:|---:|"]
    lines += [
        f"| {stage}, bare | {songs[stage] * per_song:.0f} | {clips[stage] * per_clip:.1f} |"
        for stage in STAGES
    ]
    sums = [sum(seconds[stage] for stage in STAGES) for seconds in (songs, clips)]
    lines += [f"| one after the other | {sums[0] * per_song:.0f} | {sums[1] * per_clip:.1f} |"]
    lines += [
        f"| **{WHOLE}**, from names to scores | {songs[WHOLE] * per_song:.0f} "
        f"| {clips[WHOLE] * per_clip:.1f} |",
        "",
        "Medians over the rounds of the ratio within a round:",
        "",
        f"- songs: {found['songs']['ratio']:.2f} times the bare stages one after the other "
        f"(wanted: at most {TARGET}); {found['songs']['times_real_time']:.0f} times real time",
        f"- clips: {found['clips']['ratio']:.2f} times; "
        f"{found['clips']['times_real_time']:.0f} times real time",
        "- of processor time, which other programs on the machine sway less: songs "
        f"{found['songs']['processor_ratio']:.2f} times, clips "
        f"{found['clips']['processor_ratio']:.2f} times",
        f"- a process of `mstag tag` with one second of sound takes {over_torch_s:.2f} s more than "
        f"one that imports torch ({start_s['import torch']:.2f} s), and "
        f"{processor_over_torch_s:.2f} s more of processor time (wanted: at most "
        f"{STARTUP_TARGET_S}); `mstag --help` takes {start_s['help']:.2f} s",
    ]
    text = "\n".join(lines) + f"\n\n`{command}`, {machine()}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

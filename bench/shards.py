"""How fast does audio become shards, against its floor, the original's recipe, and one core?

    python bench/shards.py [--rounds N] [--pack-clips N] [--memory]

Every row turns the same MagnaTagATune-like mp3 clips (29 s, 16 kHz, 32 kbit/s: the demo set)
into float16 log-mel spectrograms on disk, on one thread; the floor only decodes them. A round
goes through all rows with 64 clips (a shard has 256: its one fsync should not count for
more), so that whatever slows the machine for a while slows all of them; a ratio is the median
over the rounds of the ratio within a round. Then real packs, with one process and with two;
and, with --memory, packs of 1,000 and of 20,000 clips whose processes' memory is watched, kept
in a file of their own. Writes bench/results/shards-<machine>.json and .md.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mstag.config import Config, ShardsConfig
from mstag.data import tars
from mstag.data.clips import Catalogue, Clip, TagCount
from mstag.runtime import one_thread

HERE = Path(__file__).resolve().parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FLOOR, MSTAG = "bare decoding (soundfile)", "mstag pack_shard"
TODAY, IN_2018 = "the recipe on today's librosa", "the recipe with resampy kaiser_best (2018)"
NAIVE = "a plain torchaudio chain"
NUM_CLIPS = 200
CLIPS_A_ROUND = 64
SLOW = {IN_2018: 2}
"""Rows for which fewer clips a round are enough."""
TARGETS = {FLOOR: "at most 1.9", TODAY: "at least 1.8", IN_2018: "at least 25"}


def decode_only(paths: list[Path], out: Path) -> None:
    """The floor: every sample decoded from memory, nothing else."""
    import soundfile

    for path in paths:
        soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")


def with_mstag(paths: list[Path], out: Path) -> None:
    """One shard, as a worker of `shard-tools pack` makes it."""
    from shard_tools.output import FolderOutput
    from shard_tools.pack_shard import pack_shard
    from shard_tools.plan import fingerprints, plan

    settings = Config(shards=ShardsConfig(clips_per_shard=len(paths)))
    catalogue = as_catalogue(paths)
    (task,) = plan(settings, catalogue, Path("/"), fingerprints(catalogue, Path("/")))
    receipt = pack_shard(task, FolderOutput(out))
    assert receipt.entry.clips == len(paths) and not receipt.skipped


def on_librosa(paths: list[Path], out: Path, res_type: str = "soxr_hq") -> None:
    """The original's recipe; its spectrograms go into one .npy file each."""
    import librosa

    for number, path in enumerate(paths):
        waveform, _ = librosa.load(path, sr=11025, res_type=res_type)
        power = librosa.feature.melspectrogram(
            y=waveform, sr=11025, n_fft=2048, hop_length=512, n_mels=128, pad_mode="reflect"
        )
        log_mel = np.log(np.maximum(power, 1e-20))[:, :628]
        np.save(out / f"{number}.npy", log_mel.astype(np.float16))


def on_librosa_of_2018(paths: list[Path], out: Path) -> None:
    """The same with the resampler that was librosa's default then."""
    on_librosa(paths, out, res_type="kaiser_best")


def on_torchaudio(paths: list[Path], out: Path) -> None:
    """What one would write today without much thought."""
    import soundfile
    import torch
    from torchaudio import transforms

    to_rate = transforms.Resample(16000, 11025)
    to_mel = transforms.MelSpectrogram(11025, 2048, hop_length=512, n_mels=128)
    for number, path in enumerate(paths):
        waveform, _ = soundfile.read(path, dtype="float32")
        mel = to_mel(to_rate(torch.from_numpy(waveform))).clamp_min(1e-20).log()[:, :628]
        np.save(out / f"{number}.npy", mel.to(torch.float16).numpy())


ROWS: dict[str, Callable[[list[Path], Path], None]] = {
    FLOOR: decode_only,
    MSTAG: with_mstag,
    TODAY: on_librosa,
    IN_2018: on_librosa_of_2018,
    NAIVE: on_torchaudio,
}


def stages(paths: list[Path], out: Path) -> dict[str, float]:
    """Milliseconds a clip of each stage, called one by one as a worker calls them."""
    from mstag.data.audio import open_audio
    from mstag.data.features import LogMel, as_stored, windows
    from mstag.data.resampling import resample

    log_mel = LogMel(Config().features)
    labels = np.zeros(50, np.uint8)
    taken = dict.fromkeys(("decode", "resample", "mel", "write"), 0.0)
    with tars.open_shard(out / "stages.tar") as writer:
        for number, path in enumerate(paths):
            times = [time.perf_counter()]
            with open_audio(path) as reader:
                (waveform,) = reader.blocks()
            times.append(time.perf_counter())
            waveform = resample(waveform, reader.rate_hz, 11025)
            times.append(time.perf_counter())
            (window,) = windows(log_mel(waveform), 628)
            mel = as_stored(window.mel)
            times.append(time.perf_counter())
            meta = {"id": path.name, "path": str(path), "start_s": 0.0}
            writer.add(tars.Sample(f"x-{number}", mel, labels, meta))
            times.append(time.perf_counter())
            for name, seconds in zip(taken, np.diff(times), strict=True):
                taken[name] += seconds
    return {name: 1e3 * seconds / len(paths) for name, seconds in taken.items()}


def as_catalogue(paths: list[Path], num_clips: int | None = None) -> Catalogue:
    """Clips of these files, again and again until there are enough of them."""
    total = num_clips or len(paths)
    clips = [
        Clip(
            f"clip {number}",
            paths[number % len(paths)].as_posix().lstrip("/"),
            frozenset([f"tag {number % 50}"]),
            track=f"track {number // 5}",
            artist=f"artist {number // 100}",
            split="train",
        )
        for number in range(total)
    ]
    tags = [TagCount(f"tag {number}", total // 50) for number in range(50)]
    return Catalogue("bench", tags, clips, "by hand", [])


def in_a_process(*arguments: str) -> Any:
    """What this script prints when it is called for one row."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parent)},
    )
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows_in_turn(paths: list[Path], num_rounds: int, out: Path) -> list[dict[str, Any]]:
    """Milliseconds a clip of every row, and of mstag's stages, a round."""
    rounds: list[dict[str, Any]] = []
    importlib.import_module("shard_tools.preload")  # as the fork server of packing does
    with one_thread():
        for row in ROWS.values():
            row(paths[:1], out)  # imports and tables do not count
        for number in range(num_rounds):
            own = [paths[(number * CLIPS_A_ROUND + i) % len(paths)] for i in range(CLIPS_A_ROUND)]
            found: dict[str, Any] = {}
            for name, row in ROWS.items():
                some = own[: SLOW.get(name, len(own))]
                started = time.perf_counter()
                row(some, out)
                found[name] = 1e3 * (time.perf_counter() - started) / len(some)
            found["stages"] = stages(own, out)
            rounds.append(found)
    return rounds


def one_pack(paths: list[Path], num_clips: int, num_workers: int, out: Path) -> dict[str, float]:
    """A real pack: its seconds, and peaks (MB) of all its processes together.

    Of what is resident, each process with all that it shares; and of what belongs to them alone,
    each shared page divided by those who share it.
    """
    from shard_tools.pack import pack

    catalogue = as_catalogue(paths, num_clips)
    settings = Config()
    _use_small_pages()
    peak = {"resident_mb": 0.0, "own_mb": 0.0}
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(peak, done))
    watching.start()
    started = time.perf_counter()
    packed = pack(settings, catalogue, Path("/"), out, num_workers=num_workers, progress=False)
    seconds = time.perf_counter() - started
    done.set()
    watching.join()
    assert packed.manifest and packed.manifest.splits["train"].clips == num_clips
    return {"seconds": seconds, **peak}


def _use_small_pages() -> None:
    """Huge pages off, for this process and all that it starts (Linux).

    With them the kernel rounds memory up as time goes by: 20 MB a process within minutes,
    whether it works or sleeps.
    """
    import ctypes

    pr_set_thp_disable = 41
    ctypes.CDLL(None).prctl(pr_set_thp_disable, 1, 0, 0, 0)


def _watch(peak: dict[str, float], done: threading.Event) -> None:
    fields = {"resident_mb": "Rss:", "own_mb": "Pss_Anon:"}
    while not done.wait(0.25):
        found = _memory_mb(os.getpid())
        for name, field in fields.items():
            peak[name] = max(peak[name], found.get(field, 0.0))


def _memory_mb(root: int) -> dict[str, float]:
    """Memory of a process and of all that it started, by the system's own names (Linux)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        except OSError:
            continue
    total, waiting = dict[str, float](), [root]
    while waiting:
        pid = waiting.pop()
        waiting += parents.get(pid, [])
        try:
            for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
                words = line.split()
                if words[-1] == "kB":
                    total[words[0]] = total.get(words[0], 0.0) + int(words[1]) / 1024
        except OSError:
            continue
    return total


def demo_clips(folder: Path, num_clips: int) -> list[Path]:
    """The demo set's files, made where they are missing."""
    from shard_tools.catalogs.demo import make_demo

    existing = HERE.parent / "data" / "demo"
    if not (existing / "annotations_final.csv").exists():
        existing = folder / "demo"
        make_demo(existing, num_clips=num_clips)
    paths = sorted(existing.glob("?/*.mp3"))
    return paths[:: max(1, len(paths) // num_clips)][:num_clips]


def main() -> None:
    """Measures, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pack-clips", type=int, default=2048, help="8 shards: none is left over")
    parser.add_argument("--memory", action="store_true", help="packs 20,000 clips too: minutes")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mstag-bench-") as name:
        folder = Path(name)
        if args.row:
            paths = [Path(line) for line in args.list.read_text().splitlines()]
            if args.row == "pack":
                print(json.dumps(one_pack(paths, args.pack_clips, args.workers, folder)))
            else:
                print(json.dumps(rows_in_turn(paths, args.rounds, folder)))
            return
        measure(args, folder)


def measure(args: argparse.Namespace, folder: Path) -> None:
    """All rows in turn, then packs."""
    paths = demo_clips(folder, NUM_CLIPS)
    listed = folder / "paths.txt"
    listed.write_text("\n".join(map(str, paths)))
    rounds = in_a_process("--row", "all", "--list", str(listed), "--rounds", str(args.rounds))

    def packed(num_clips: int, num_workers: int) -> dict[str, float]:
        said: dict[str, float] = in_a_process(
            *("--row", "pack", "--list", str(listed)),
            *("--pack-clips", str(num_clips), "--workers", str(num_workers)),
        )
        print(f"  pack {num_clips} clips, {num_workers} processes: {said}", flush=True)
        return said

    packs = [{n: packed(args.pack_clips, n) for n in (1, 2)} for _ in range(2)]
    place = HERE / "results" / f"shards-memory-{machine()}.json"
    if args.memory:
        peak_mb = {n: packed(n, 2) for n in (1000, 20_000)}
        place.write_text(json.dumps({"peak_mb_of_2_processes": peak_mb}, indent=1) + "\n")
    memory = json.loads(place.read_text())["peak_mb_of_2_processes"] if place.exists() else None
    write(args, rounds, packs, memory)


def machine() -> str:
    """A name for this machine: processor kind and cores."""
    return f"{platform.machine()}-{os.cpu_count()}-cores"


def write(
    args: argparse.Namespace,
    rounds: list[dict[str, Any]],
    packs: list[dict[int, dict[str, float]]],
    memory: dict[str, dict[str, float]] | None,
) -> None:
    """The results, for programs and for people."""
    ms = {row: statistics.median(found[row] for found in rounds) for row in ROWS}
    parts = {
        stage: statistics.median(found["stages"][stage] for found in rounds)
        for stage in rounds[0]["stages"]
    }
    ratios = {
        FLOOR: statistics.median(found[MSTAG] / found[FLOOR] for found in rounds),
        **{
            row: statistics.median(found[row] / found[MSTAG] for found in rounds)
            for row in (TODAY, IN_2018, NAIVE)
        },
    }
    speedup = statistics.median(found[1]["seconds"] / found[2]["seconds"] for found in packs)
    command = f"python bench/shards.py --rounds {args.rounds}"
    command += f" --pack-clips {args.pack_clips}" + (" --memory" if args.memory else "")
    result = {
        "command": command,
        "machine": machine(),
        "ms_per_clip": ms,
        "stages_ms": parts,
        "ratios": ratios,
        "targets": TARGETS,
        "speedup_of_2_processes": speedup,
        "packs": packs,
        "rounds": rounds,
    }
    path = HERE / "results" / f"shards-{machine()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| one 29-s mp3 -> float16 log-mel on disk, one thread | ms | of the floor |"]
    lines += ["|---|---:|---:|"]
    lines += [f"| {row} | {ms[row]:.1f} | {ms[row] / ms[FLOOR]:.2f} |" for row in ROWS]
    lines += ["", "| stage of mstag | ms |", "|---|---:|"]
    lines += [f"| {stage} | {value:.2f} |" for stage, value in parts.items()]
    lines += ["", "Medians over the rounds of the ratio within a round:", ""]
    lines += [f"- mstag takes {ratios[FLOOR]:.2f} times the bare decoding (wanted: at most 1.9)"]
    lines += [
        f"- {row} takes {ratios[row]:.2f} times as long as mstag"
        + (f" (wanted: {TARGETS[row]})" if row in TARGETS else "")
        for row in (TODAY, IN_2018, NAIVE)
    ]
    lines += [f"- two processes are {speedup:.2f} times as fast as one (wanted: at least 1.8)"]
    if memory:
        for what, name in (("resident", "resident_mb"), ("of their own", "own_mb")):
            few, many = memory["1000"][name], memory["20000"][name]
            wanted = "; wanted: within 5%" if name == "resident_mb" else ""
            lines += [
                f"- peak memory of all processes, {what}: {few:.0f} MB for 1,000 clips, "
                f"{many:.0f} MB for 20,000 ({many / few - 1:+.1%}{wanted})"
            ]
    text = "\n".join(lines) + f"\n\n`{command}`, {machine()}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

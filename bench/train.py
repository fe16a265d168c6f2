"""How fast does mstag train, against the original's way of writing it, and what of the device?

    python bench/train.py [--device auto|cpu|cuda] [--steps N] [--rounds N] [--clips N]

The same network of 2017 on the same clips (128 x 628): the training step alone, whole epochs
end to end, train.py itself, two ranks against one. Every row runs in a process of its own; the
first round goes through all rows, later ones through those that the ratios hang on, and a ratio
is the median over the rounds of the ratio within a round. Writes bench/results/train-<machine>.json
and .md, which grow row by row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stream_rows import prepare
from train_rows import Row
from train_text import as_text
from train_whole import HANGS_S, time_run

HERE = Path(__file__).resolve().parent
PEER = "original's style"
PRECISIONS = ("fp32", "bf16", "fp16")
ALWAYS = 99
CLIPS = {"cpu": 640, "cuda": 18_706}
STEPS = {"cpu": 4, "cuda": 200}
EPOCHS = {"cpu": 1, "cuda": 2}
LIMIT_S = {"cpu": 15.0, "cuda": 10.0}

Found = dict[str, dict[str, Any]]


# ---- Which rows -----------------------------------------------------------------------------


def all_rows(machine: dict[str, Any], batch_size: int) -> list[Row]:
    """Every row for this machine, in the order of the tables; some say why they do not run."""
    on_gpu = machine["device"] == "cuda"
    auto = machine["precision"]
    has_bf16_units = auto != "fp32"
    rows = [Row(table="step", name=PEER, is_peer=True, rounds=ALWAYS, is_profiled=True)]
    if on_gpu:
        rows += [Row(table="step", name=f"{PEER}, no TF32", is_peer=True, tf32=False)]
    for precision in PRECISIONS:
        name = f"mstag {precision}"
        if precision == "fp16" and not on_gpu:
            rows.append(_left_out(name, "CPUs have no fast fp16; training refuses it"))
            continue
        is_auto = precision == auto
        own = {"table": "step", "precision": precision}
        rounds = ALWAYS if is_auto else 1
        rows.append(Row(**own, name=name, rounds=rounds, is_profiled=is_auto))
        if precision == "fp32" and on_gpu:
            rows.append(Row(**own, name=f"{name}, no TF32", tf32=False))
        if precision == "bf16" and not has_bf16_units:
            reason = "this CPU has no bf16 units: mstag bf16 shows the outcome"
            rows.append(_left_out(f"{name}, contiguous", reason))
            rows.append(_left_out(f"{name}, compiled", reason))
            continue
        rows.append(Row(**own, name=f"{name}, contiguous", channels_last=False))
        # A round of it costs a compilation, which the first round leaves in torch's cache.
        rounds = 2 if on_gpu and is_auto else 1
        rows.append(Row(**own, name=f"{name}, compiled", compile=True, rounds=rounds))
    own = {"table": "step", "precision": auto, "augmented": True}
    rows.append(Row(**own, name=f"mstag {auto}, mixup and SpecAugment", is_profiled=True))
    rows += _end_to_end(auto, on_gpu)
    rows = [dataclasses.replace(row, batch_size=row.batch_size or batch_size) for row in rows]
    return rows + _ranks(machine, 256 if on_gpu else batch_size)


def _left_out(name: str, reason: str) -> Row:
    return Row(table="step", name=name, not_measured=reason)


def _end_to_end(auto: str, on_gpu: bool) -> list[Row]:
    rows = [
        Row(
            table="epoch",
            name=f"{PEER}, DataLoader with {n} workers",
            is_peer=True,
            num_workers=n,
            rounds=2,
        )
        for n in (0, 2)
    ]
    own = {"table": "epoch", "precision": auto}
    rows.append(Row(**own, name=f"mstag {auto}", rounds=2))
    if on_gpu:
        rows.append(Row(**own, name=f"mstag {auto}, compiled", compile=True, rounds=2))
        rows += [
            Row(**own, name=f"mstag {auto}, batches of {n} (another recipe)", batch_size=n)
            for n in (64, 256)
        ]
    rows.append(Row(table="run", name=f"mstag {auto}", precision=auto))
    if on_gpu:
        rows.append(Row(table="run", name=f"mstag {auto}, compiled", precision=auto, compile=True))
    rows.append(Row(table="evaluation", name=f"mstag {auto}, scoring", precision=auto))
    return rows


def _ranks(machine: dict[str, Any], batch_size: int) -> list[Row]:
    """The same global batch on one rank and on two, with as many threads each."""
    precision, on_gpu = machine["precision"], machine["device"] == "cuda"
    num_threads = max(1, machine["threads"] // 2)
    each = "a GPU" if on_gpu else f"{num_threads} thread{'s' * (num_threads > 1)}"
    too_few = machine["num_gpus"] < 2 if on_gpu else machine["threads"] < 2
    return [
        Row(
            table="ranks",
            name=f"{n} rank{'s' * (n > 1)} with {each} each, batches of {batch_size} together",
            precision=precision,
            batch_size=batch_size,
            num_ranks=n,
            num_threads=num_threads,
            not_measured="it takes two GPUs, or two cores" if too_few else "",
        )
        for n in (1, 2)
    ]


# ---- Running them ---------------------------------------------------------------------------


def run(row: str, args: argparse.Namespace, *options: str, num_ranks: int = 1) -> dict[str, Any]:
    """What bench/train_rows.py prints for a row; {"failed": reason} if it does not run here."""
    command = [sys.executable, "-W", "ignore"]
    if num_ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(num_ranks)]
    command += [str(HERE / "train_rows.py"), row, "--device", args.device, *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(args), timeout=HANGS_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {HANGS_S:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        # The last line that names an error; torchrun prints a long report after it.
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        errors = [line for line in said if re.search(r"\w*(Error|Exception)\b.*: ", line)]
        print(done.stderr[-2000:], file=sys.stderr)
        return {"failed": (errors or said)[-1][:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def in_turn(rows: list[Row]) -> list[Row]:
    """The rows that the targets hang on, then the others."""
    return sorted(rows, key=lambda row: row.table in ("step", "ranks") and row.rounds == 1)


def run_whole(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """A run of train.py."""
    try:
        return time_run(row, args.folder, args.device, args.epochs, environment(args))
    except RuntimeError as error:
        return {"failed": str(error)}


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Of a row's process. What torch.compile keeps is kept here: as on a machine that is new."""
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": str(args.folder / "inductor"),
        "TRITON_CACHE_DIR": str(args.folder / "triton"),
    }
    return {**os.environ, **caches, "PYTHONPATH": str(HERE.parent)}


def measure(
    rows: list[Row],
    rounds: list[Found],
    took: dict[str, float],
    about: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    """One more round, with the rows that take part in it; the files grow with each.

    When the time is up the rest is left out.
    """
    found: Found = {}
    round_number = len(rounds)
    rounds.append(found)
    for row in in_turn(rows):
        if row.not_measured or round_number >= row.rounds:
            continue
        if time.perf_counter() > args.until:
            print(f"  round {round_number + 1}  {row.key}: no time left")
            continue
        options = ["--steps", str(args.steps), "--epochs", str(args.epochs)]
        options += ["--limit-s", str(args.limit_s), "--folder", str(args.folder)]
        options += ["--profile"] * (row.is_profiled and round_number == 0)
        began = time.perf_counter()
        if row.table == "run":
            found[row.key] = run_whole(row, args)
        else:
            found[row.key] = run(
                json.dumps(dataclasses.asdict(row)), args, *options, num_ranks=row.num_ranks
            )
        took[row.key] = time.perf_counter() - began
        rate = found[row.key].get("clips_per_s", float("nan"))
        print(
            f"  round {round_number + 1}  {row.key:55} {rate:10,.1f} clips/s"
            f"  ({took[row.key]:.0f} s)",
            flush=True,
        )
        write(rows, rounds, about, args)


def machine_name(about: dict[str, Any]) -> str:
    """For files: the GPU, else processor kind and cores."""
    if about["name"]:
        return re.sub(r"[^a-z0-9]+", "-", about["name"].lower()).strip("-")
    return f"{platform.machine()}-{os.cpu_count()}-cores"


# ---- What came out --------------------------------------------------------------------------


def summary(rows: list[Row], rounds: list[Found], about: dict[str, Any]) -> dict[str, Any]:
    """Medians of every row, with its ratio to the peer, and the targets."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        runs = [r[row.key] for r in rounds if row.key in r and "failed" not in r[row.key]]
        if not runs:
            failed = [r[row.key]["failed"] for r in rounds if row.key in r]
            lines[row.key] = {
                "not_measured": row.not_measured or (failed or ["its turn did not come"])[0]
            }
            continue
        rate = statistics.median(found["clips_per_s"] for found in runs)
        lines[row.key] = {
            "clips_per_s": rate,
            "rounds": len(runs),
            "of_peer": _of_peer(row, rounds),
            "of_peak": _of_peak(row, rate, about),
            "first_s": runs[0].get("first_s"),
            "first_s_later": [found.get("first_s") for found in runs[1:]],
            "peak_mb": statistics.median(found["peak_mb"] for found in runs),
        }
        for name in ("data_wait", "epoch_s", "train_s", "around_s"):
            if name in runs[0]:
                lines[row.key][name] = statistics.median(found[name] for found in runs)
        for name in ("stages_ms", "clips"):
            if name in runs[0]:
                lines[row.key][name] = runs[0][name]
    return lines


def _of_peak(row: Row, rate: float, about: dict[str, Any]) -> float | None:
    """Share of the peak of the arithmetic that a step uses; CPUs have no TF32."""
    peaks = about["peaks"]
    peak = peaks.get(row.arithmetic, peaks.get(row.precision))
    is_whole_device = row.table in ("step", "epoch")
    return rate * about["flops_both"] / peak if peak and is_whole_device else None


def _of_peer(row: Row, rounds: list[Found]) -> float | None:
    """How many times the rate of the peer's best way in the same round; the median of rounds."""
    ratios = []
    for found in rounds:
        peers = [
            figures["clips_per_s"]
            for key, figures in found.items()
            if key.startswith(f"{row.table}: {PEER}") and "clips_per_s" in figures
        ]
        if peers and "clips_per_s" in found.get(row.key, {}):
            ratios.append(found[row.key]["clips_per_s"] / max(peers))
    return statistics.median(ratios) if ratios else None


def write(
    rows: list[Row], rounds: list[Found], about: dict[str, Any], args: argparse.Namespace
) -> str:
    """The results, for programs and for people; returns the latter."""
    command = f"python bench/train.py --device {args.device} --steps {args.steps}"
    command += f" --rounds {args.rounds} --clips {args.clips} --batch-size {args.batch_size}"
    lines = summary(rows, rounds, about)
    text = as_text(rows, lines, about) + f"\n\n`{command}`, {machine_name(about)}, "
    text += f"{about['threads']} threads, {about['cpu']}, torch {about['torch']}\n"
    result = {
        "command": command,
        "machine": machine_name(about),
        **about,
        "clips": args.clips,
        "rows": lines,
        "runs": rounds,
    }
    path = args.out / f"train-{machine_name(about)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    return text


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, help="timed steps of a process (CPU 4, GPU 200)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--clips", type=int, help="in the epochs' shards (CPU 640, GPU 18706)")
    parser.add_argument("--epochs", type=int, help="timed epochs of a process (CPU 1, GPU 2)")
    parser.add_argument("--limit-s", type=float, help="for steps that are slow (CPU 15, GPU 10)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9,
        help="no row starts later, no round that ends later",
    )
    parser.add_argument("--only", help="rows whose table or name has this in it")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def main() -> None:
    """Measures in rounds."""
    args = parse()
    args.until = time.perf_counter() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="mstag-bench-") as name:
        args.folder = Path(name)
        about = run("about", args)
        if "failed" in about:
            sys.exit(about["failed"])
        args.device = kind = about["device"]
        args.steps, args.epochs = args.steps or STEPS[kind], args.epochs or EPOCHS[kind]
        args.clips, args.limit_s = args.clips or CLIPS[kind], args.limit_s or LIMIT_S[kind]
        rows = all_rows(about, args.batch_size)
        rows = [row for row in rows if not args.only or args.only in row.key]
        if not rows:
            sys.exit(f"--only {args.only}: no such row")
        if any(row.table in ("epoch", "run", "evaluation") for row in rows):
            print(f"preparing {args.clips} clips", flush=True)
            prepare(args.folder, args.clips, max(1, args.clips // 10))
        rounds: list[Found] = []
        took: dict[str, float] = {}
        for number in range(args.rounds):
            ahead_s = sum(took[row.key] for row in rows if row.key in took and number < row.rounds)
            if time.perf_counter() + ahead_s > args.until:
                print(f"round {number + 1} would end after {args.minutes:g} minutes: left out")
                break
            measure(rows, rounds, took, about, args)
        # Once more: whatever else ran on the machine may have held the first ones down.
        for kind, peak in run("about", args).get("peaks", {}).items():
            about["peaks"][kind] = max(peak, about["peaks"][kind])
    print(write(rows, rounds, about, args))


if __name__ == "__main__":
    main()

"""How fast do clips reach the training process, against peers and against a bare read?

    python bench/stream.py [--clips N] [--rounds N] [--folder DIR]

Every row reads the same clips (128 x 628 float16, 160 KB each) into batches of 64, in a
process of its own, with a warm page cache; rounds go through all rows in turn, and a ratio is
the median over the rounds of the ratio within a round. A second table starts from a cold page
cache. Writes bench/results/stream-<machine>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stream_rows import BATCH_SIZE, ON_A_GPU, PEERS, ROWS, WINDOW, touch

HERE = Path(__file__).resolve().parent
PEER_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
OURS = ("mstag, 2 processes", "mstag, 4 processes")
RAW = "raw read, into the memory of a batch"
RAW_IN_CACHE = "raw read, into 256 KiB over and over"  # which never leaves the CPU's cache
TARGETS = {"webdataset": 20.0, "litdata": 4.0, "mosaicml": 1.0, RAW: 0.8, RAW_IN_CACHE: 0.8}
COLD = [OURS[0], f"mstag, 2 processes, windows of {WINDOW} shards", "webdataset, 2 workers"]
COLD += ["litdata, 2 workers", RAW]


def run_row(row: str, folder: Path, *options: str) -> float | None:
    """Clips per second of one row in a process of its own; None: it does not run here."""
    python = str(PEER_PYTHON) if row.startswith(PEERS) else sys.executable
    command = [python, "-W", "ignore", str(HERE / "stream_rows.py"), row, str(folder), *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "LITDATA_DISABLE_VERSION_CHECK": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{row}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    lines = done.stdout.strip().splitlines()
    return float(json.loads(lines[-1])) if lines and "--prepare" not in options else 0.0


def measure(rows: list[str], folder: Path, num_rounds: int, *options: str) -> list[dict[str, Any]]:
    """One dict of clips per second a round."""
    rounds = []
    for number in range(num_rounds):
        rates = {}
        for row in rows:
            if "--cold" not in options:
                sum(touch(folder))
            rates[row] = run_row(row, folder, *options)
            print(f"  round {number + 1}  {row:45} {rates[row] or float('nan'):9,.0f}", flush=True)
        rounds.append({row: rate for row, rate in rates.items() if rate})
    return rounds


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each row over the rounds that have it."""
    names = dict.fromkeys(name for rates in rounds for name in rates)
    return {n: statistics.median(r[n] for r in rounds if n in r) for n in names}


def ratios(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Our best setting over each peer's best, and over the raw reads; medians over the rounds."""
    found = {}
    for peer in TARGETS:
        per_round = [
            max(rates[name] for name in OURS if name in rates)
            / max(rate for name, rate in rates.items() if name.startswith(peer))
            for rates in rounds
            if any(name.startswith(peer) for name in rates)
        ]
        if per_round:
            found[peer] = statistics.median(per_round)
    return found


def as_table(title: str, rates: dict[str, float], against: float) -> str:
    """A Markdown table of one measurement."""
    lines = [f"| {title} | clips/s | of the raw read |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / against:.2f} |" for name, rate in rates.items()]
    return "\n".join(lines)


def machine() -> str:
    """A name for this machine: processor kind and cores."""
    return f"{platform.machine()}-{os.cpu_count()}-cores"


def main() -> None:
    """Prepares each format once, measures warm and cold, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    args = parser.parse_args()
    if not PEER_PYTHON.exists():
        sys.exit("the peers are not installed: run `make bench`, which does that first")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="mstag-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "manifest.json").exists():
            for kind in ("mstag", "litdata", "mosaicml"):
                print(f"preparing {kind} ({args.clips} clips)", flush=True)
                run_row(kind, folder, "--prepare", str(args.clips))
        rows = [*ROWS, *(ON_A_GPU if shutil.which("nvidia-smi") else {})]
        warm = measure(rows, folder, args.rounds)
        cold = measure(COLD, folder, min(3, args.rounds), "--cold")
    finally:
        if not args.folder:
            shutil.rmtree(folder)
    found, rates, cold_rates = ratios(warm), medians(warm), medians(cold)
    result = {
        "command": f"python bench/stream.py --clips {args.clips} --rounds {args.rounds}",
        "machine": machine(),
        "batch_size": BATCH_SIZE,
        "clips_per_s": rates,
        "ratios": found,
        "targets": TARGETS,
        "cold_clips_per_s": cold_rates,
        "rounds": warm,
        "cold_rounds": cold,
    }
    path = HERE / "results" / f"stream-{machine()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"mstag's full shuffle, best setting against best (median of {args.rounds} rounds):\n"]
    lines += [f"- {peer}: {ratio:.2f} times" for peer, ratio in found.items()]
    lines += ["", as_table("warm page cache", rates, rates[RAW])]
    lines += ["", as_table("cold page cache", cold_rates, cold_rates[RAW])]
    text = "\n".join(lines) + f"\n\n`{result['command']}`, {result['machine']}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

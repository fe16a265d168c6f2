"""Which network tags music best, at which cost? Several of them on the same clips, same budget.

    python bench/accuracy.py --folder FOLDER [--quick] [--seeds N] [--epochs N] [--jobs N]
        [--only NAME ...] [--text]

Every contestant of bench/accuracy_rows.py is trained by train.py on the larger demo set
(configs/demo-large.toml), with several seeds, for the same number of clips seen. train.py scores
the test split once, with the weights that were best on the validation split; eval.py then scores
the strangers (configs/demo-stranger.toml, where its soundfont is installed) and the scouts.
What is in FOLDER already is not made again, so the bench may be stopped and called again.
Costs are taken apart, in turns, when no training runs. Writes bench/results/accuracy.json and .md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_costs import costs_of
from accuracy_rows import BASE, CONTESTANTS, Contestant
from accuracy_text import as_text
from numpy.typing import NDArray

from mstag import metrics, runtime
from shard_tools.demo.recipe import RECIPES
from shard_tools.demo.soundfonts import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "large": (BASE, ""),
    "stranger": ("configs/demo-stranger.toml", "test"),
    "scout": ("configs/demo-scout.toml", "valid"),
}
"""What is scored: its config and, where another run's weights are scored on it, its split."""
EPOCHS, QUICK_EPOCHS = 40, 5
INFO, ANNOTATIONS = "clip_info_final.csv", "annotations_final.csv"
NUM_DRAWS = 400
Array = NDArray[Any]
Found = dict[str, Any]


# ---- Data and shards ------------------------------------------------------------------------


def call(*argv: str | Path, threads: int = 0) -> str:
    """Runs one of the house's commands; its output is shown when it fails."""
    command = [sys.executable, *map(str, argv)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def shards_of(args: argparse.Namespace, contestant: Contestant, which: str) -> Path:
    """Shards of a set with a contestant's features; packed when missing, made when not there."""
    config, _ = SETS[which]
    features = [s for s in contestant.settings if s.startswith("features.")]
    key = "-".join(s.partition("=")[2] for s in features) or "default"
    data = args.data / f"demo-{which}"
    is_part = which == "large" and contestant.share < 1
    if is_part:
        key += f"-{contestant.share:g}"
    folder: Path = args.folder / "shards" / f"{which}-{key}"
    if not (folder / "manifest.json").exists():
        call("-m", "shard_tools", "fetch", "--config", config, "--to", data)
        if is_part:
            data = part_of(data, contestant.share, args.folder / "data" / f"part-{key}")
        options = [part for s in features for part in ("--set", s)]
        pack = ("-m", "shard_tools", "pack", "--config", config)
        call(*pack, "--data", data, "--out", folder, *options)
    return folder


def part_of(data: Path, share: float, folder: Path) -> Path:
    """The same set with a share of the training artists, drawn once; audio is linked."""
    infos = read_table(data / INFO)
    is_train = {row["clip_id"]: row["mp3_path"][0] in "0123456789ab" for row in infos}
    artists = sorted({row["artist"] for row in infos if is_train[row["clip_id"]]})
    np.random.default_rng(0).shuffle(artists)
    kept = set(artists[: round(share * len(artists))])
    clips = {r["clip_id"] for r in infos if not is_train[r["clip_id"]] or r["artist"] in kept}
    for name in (INFO, ANNOTATIONS):
        rows = [row for row in read_table(data / name) if row["clip_id"] in clips]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    (folder / "demo.json").write_bytes((data / "demo.json").read_bytes())
    for row in infos:
        target = folder / row["mp3_path"]
        if row["clip_id"] in clips and not target.exists():
            target.parent.mkdir(exist_ok=True)
            os.link(data / row["mp3_path"], target)
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of one of MagnaTagATune's tables, whose layout the demo sets have."""
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file, delimiter="\t")]


def artists_of(data: Path) -> dict[str, str]:
    """Clip id -> artist."""
    return {row["clip_id"]: row["artist"] for row in read_table(data / INFO)}


# ---- Runs -----------------------------------------------------------------------------------


def run_folder(args: argparse.Namespace, contestant: Contestant, seed: int) -> Path:
    """Where a run lives; other budgets have other folders."""
    folder: Path = args.folder / "runs" / f"{contestant.name}-{args.epochs}-epochs-seed-{seed}"
    return folder


def command_of(args: argparse.Namespace, contestant: Contestant, seed: int) -> list[str]:
    """What trains a contestant, as a reader would type it, without --shards and --out."""
    # As many clips are seen of a part of the set: its epochs are shorter.
    epochs = round(args.epochs / contestant.share)
    settings = [*contestant.settings, f"train.epochs={epochs}", f"train.seed={seed}"]
    every = round(contestant.valid_every / contestant.share)
    if every > 1:
        settings.append(f"train.valid_every_epochs={every}")
    options = [part for s in settings for part in ("--set", s)]
    return [*script_of(contestant, "train.py"), "--config", BASE, *options]


def script_of(contestant: Contestant, script: str) -> list[str]:
    """The script itself, or what runs it with another design."""
    if not contestant.design:
        return [script]
    return ["bench/accuracy_ablated.py", script, *contestant.design, "--"]


def train(args: argparse.Namespace, contestant: Contestant, seed: int) -> Found:
    """One run by the real commands, or what an earlier call left of it."""
    run = run_folder(args, contestant, seed)
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    began = time.perf_counter()
    if not (run / "finished.json").exists():
        shards = shards_of(args, contestant, "large")
        quiet = ("--set", "wandb.mode=disabled")
        argv = command_of(args, contestant, seed)
        call(*argv, "--shards", shards, "--out", run, *quiet, threads=threads)
    for which in args.sets:
        split = SETS[which][1]
        if not (run / f"eval-{split}-demo-{which}.json").exists():
            where = shards_of(args, contestant, which)
            argv = [*script_of(contestant, "eval.py"), run, "--shards", where, "--split", split]
            call(*argv, threads=threads)
    return read_run(args, run) | {"seconds": time.perf_counter() - began}


def read_run(args: argparse.Namespace, run: Path) -> Found:
    """Scores of a run: of each set (ROC-AUC, PR-AUC), and of the validation split by epoch."""
    names = {"test": "eval-test.json"}
    names |= {which: f"eval-{SETS[which][1]}-demo-{which}.json" for which in args.sets}
    reports = {name: json.loads((run / file).read_text()) for name, file in names.items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [line["valid/roc_auc"] for line in lines if "valid/roc_auc" in line]
    return {
        "valid": max(valid),
        "valid_by_epoch": valid,
        "clips_seen": max(line["clips_seen"] for line in lines),
        **{n: {key: r[key] for key in ("roc_auc", "pr_auc", "clips")} for n, r in reports.items()},
    }


# ---- Differences ----------------------------------------------------------------------------


def scores_file(run: Path, name: str) -> Path:
    """Where a run keeps its scores of a set."""
    split = SETS[name][1] if name in SETS else ""
    return run / (f"scores-{split}-demo-{name}.npz" if split else f"scores-{name}.npz")


def read_scores(run: Path, name: str) -> tuple[list[str], Array, Array]:
    """Clip ids, labels and scores of a set."""
    with np.load(scores_file(run, name), allow_pickle=False) as file:
        return [str(i) for i in file["ids"]], file["labels"], file["scores"]


def artist_weights(artists: list[str], num_draws: int) -> Array:
    """How often each clip counts in each draw of artists with all their clips, (n, num_draws)."""
    names, number = np.unique(artists, return_inverse=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_draws)
    return drawn.T[number].astype(np.uint16)


def drawn_aucs(run: Path, name: str, artists: dict[str, str]) -> Array:
    """Macro (ROC-AUC, PR-AUC) of a run in the same draws of artists for all runs, (2, draws)."""
    ids, labels, scores = read_scores(run, name)
    weights = artist_weights([artists[i] for i in ids], NUM_DRAWS)
    per_tag = [
        metrics.weighted_aucs(metrics.rank(labels[:, k], scores[:, k]), weights)
        for k in range(labels.shape[1])
    ]
    return np.nanmean(np.array(per_tag), axis=0)


def difference(one: Array, other: Array) -> dict[str, list[float]]:
    """95% intervals of mean differences over draws of artists and of seeds alike.

    Args:
        one: (seeds, 2, draws) of a contestant.
        other: the same of another; its seeds in the same order.
    """
    rng = np.random.default_rng(1)
    num_seeds, _, num_draws = one.shape
    seeds = rng.integers(num_seeds, size=(num_draws, num_seeds))
    gains = (one - other)[seeds.T, :, np.arange(num_draws)].mean(axis=0)  # (draws, 2)
    low, high = np.percentile(gains, [2.5, 97.5], axis=0)
    return {key: [float(low[i]), float(high[i])] for i, key in enumerate(("roc_auc", "pr_auc"))}


def all_differences(args: argparse.Namespace, seeds: dict[str, list[int]]) -> Found:
    """Of every pair of contestants and each set, over the seeds that both have."""
    found: Found = {}
    for name in args.scored:
        artists = artists_of(args.data / f"demo-{'large' if name == 'test' else name}")
        drawn = {
            contestant: {
                seed: drawn_aucs(run_folder(args, CONTESTANTS[contestant], seed), name, artists)
                for seed in own
            }
            for contestant, own in seeds.items()
        }
        for one, other in itertools.permutations(drawn, 2):
            both = [seed for seed in drawn[one] if seed in drawn[other]]
            if both:
                pair = (np.array([drawn[which][seed] for seed in both]) for which in (one, other))
                found.setdefault(f"{one} - {other}", {})[name] = difference(*pair)
    return found


# ---- All of it ------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of everything that is made")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="of the demo sets")
    parser.add_argument("--quick", action="store_true", help="a budget for machines without a GPU")
    parser.add_argument("--epochs", type=int, help="passes over the clips  [40; --quick: 5]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings that share the machine")
    parser.add_argument("--threads", type=int, help="of each  [default: the cores, shared out]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants alone")
    parser.add_argument(
        "--sets",
        nargs="*",
        choices=[*SETS][1:],
        help="scored besides  [default: those whose soundfont is installed]",
    )
    parser.add_argument("--text", action="store_true", help="trains nothing, tells what is there")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    args.epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)
    args.folder, args.data = args.folder.resolve(), args.data.resolve()
    args.sets = installed_sets() if args.sets is None else args.sets
    args.scored = ["test", *args.sets]
    unknown = sorted(set(args.only or []) - set(CONTESTANTS))
    if unknown:
        sys.exit(f"--only {unknown[0]}: no such contestant; known: {', '.join(CONTESTANTS)}")
    return args


def installed_sets() -> list[str]:
    """The sets that can be made here; says what the others lack."""
    found = []
    for which in [*SETS][1:]:
        package = RECIPES[which].package
        if PACKAGES[package].is_file():
            found.append(which)
        else:
            print(f"{which} is left out: `apt install {package}`", file=sys.stderr)
    return found


def wanted_runs(args: argparse.Namespace) -> list[tuple[Contestant, int]]:
    """Contestants and seeds, seed by seed, so that a bench that is cut short compares all."""
    chosen = [c for c in CONTESTANTS.values() if c.name in (args.only or CONTESTANTS)]
    if args.quick and not args.only:
        chosen = [c for c in chosen if not c.is_slow_on_cpus]
    seeds = range(args.seeds)
    return [(c, seed) for seed in seeds for c in chosen if seed < c.num_seeds]


def train_all(args: argparse.Namespace) -> None:
    """Every run that is not there yet; shards first, so that no two runs pack the same ones."""
    runs = wanted_runs(args)
    for contestant in {c.name: c for c, _ in runs}.values():
        for which in ("large", *args.sets):
            shards_of(args, contestant, which)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(train, args, *run): run for run in runs}
        for future in concurrent.futures.as_completed(futures):
            contestant, seed = futures[future]
            report = future.result()
            scores = "  ".join(f"{name} {report[name]['roc_auc']:.4f}" for name in args.scored)
            print(
                f"{contestant.name} seed {seed}: {scores} ({report['seconds']:.0f} s)", flush=True
            )


def gather(args: argparse.Namespace) -> Found:
    """What the folder holds of this budget."""
    found: Found = {}
    for contestant in CONTESTANTS.values():
        seeds = {
            seed: read_run(args, run)
            for seed in range(args.seeds)
            if (run := run_folder(args, contestant, seed)).joinpath("finished.json").exists()
        }
        if seeds:
            found[contestant.name] = dataclasses.asdict(contestant) | {
                "command": shlex.join(command_of(args, contestant, 0)),
                "runs": seeds,
            }
    return found


def command_line(args: argparse.Namespace) -> str:
    """What trains all of this anew."""
    budget = ["--quick"] if args.quick else ["--epochs", str(args.epochs)]
    options = [*budget, "--seeds", str(args.seeds), "--sets", *args.sets]
    return shlex.join(["python", "bench/accuracy.py", "--folder", "FOLDER", *options])


def main() -> None:
    """Trains everything, takes the costs, writes."""
    args = parse()
    if not args.text:
        train_all(args)
    found = gather(args)
    costs = costs_of({name: CONTESTANTS[name].config() for name in found})
    for name, cost in costs.items():
        found[name]["costs"] = cost
    main_ones = [name for name in found if not CONTESTANTS[name].without]
    result = {
        "command": command_line(args),
        "machine": f"{platform.machine()}-{os.cpu_count()}-cores",
        "device": str(runtime.pick_device("auto")),
        "torch": torch.__version__,
        "epochs": args.epochs,
        "contestants": found,
        "differences": all_differences(args, {n: [*found[n]["runs"]] for n in main_ones}),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    text = as_text(result)
    (args.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

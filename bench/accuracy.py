"""Which network tags music best, at which cost? Several of them on the same clips, same budget.

    python bench/accuracy.py --folder FOLDER [--quick] [--seeds N] [--epochs N] [--jobs N]
        [--only NAME ...] [--steps train costs]

Every contestant of bench/accuracy_rows.py is trained by train.py on the larger demo set
(configs/demo-large.toml), with several seeds, for the same number of clips seen. train.py scores
the test split once, with the weights that were best on the validation split; eval.py then scores
the strangers (configs/demo-stranger.toml) and the scouts, where their soundfonts are installed.
What is in FOLDER already is not made again, so the bench may be stopped and called again.
Costs are taken apart, in turns, when no training runs, and kept in FOLDER.
Writes bench/results/accuracy.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from accuracy_costs import costs_of
from accuracy_rows import CONTESTANTS, ROOT, Contestant
from accuracy_runs import OTHERS, Bench, as_options, missing_sets, script_of, settings_of, train_all
from accuracy_scores import all_differences, read_run
from accuracy_text import as_text

from mstag import runtime
from mstag.training import runs

EPOCHS, QUICK_EPOCHS = 40, 5
STEPS = ("train", "costs")
Found = dict[str, Any]


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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="trains these contestants alone")
    parser.add_argument(
        "--sets",
        nargs="*",
        choices=OTHERS,
        help="scored besides  [default: those whose soundfont is installed]",
    )
    parser.add_argument(
        "--steps", nargs="*", choices=STEPS, default=[*STEPS], help="what is done before writing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    args.epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)
    args.threads = args.threads or max(1, runtime.available_cores() // args.jobs)
    args.folder, args.data = args.folder.resolve(), args.data.resolve()
    missing = missing_sets(args.data)
    if args.sets is None:
        args.sets = [name for name in OTHERS if name not in missing]
        for name, package in missing.items():
            print(f"the {name} set is left out: `apt install {package}`", file=sys.stderr)
    for name in args.only or ():
        if name not in CONTESTANTS:
            sys.exit(f"--only {name}: no such contestant; known: {', '.join(CONTESTANTS)}")
    return args


def wanted_runs(args: argparse.Namespace) -> list[tuple[Contestant, int]]:
    """Contestants and seeds, seed by seed, so that a bench that is cut short compares all."""
    chosen = [c for c in CONTESTANTS.values() if c.name in (args.only or CONTESTANTS)]
    if args.quick and not args.only:
        chosen = [c for c in chosen if c.is_in_quick]
    seeds = range(args.seeds)
    return [(c, seed) for seed in seeds for c in chosen if seed < c.num_seeds]


def gather(bench: Bench, num_seeds: int) -> Found:
    """What the folder holds of this budget."""
    found: Found = {}
    for contestant in CONTESTANTS.values():
        seeds = {
            seed: read_run(bench, contestant, seed)
            for seed in range(num_seeds)
            if runs.is_finished(bench.run(contestant, seed))
        }
        if seeds:
            script, options = script_of(contestant, "train.py"), settings_of(bench, contestant, 0)
            found[contestant.name] = dataclasses.asdict(contestant) | {
                "command": shlex.join(["python", *script, *as_options(options)]),
                "runs": seeds,
            }
    return found


def costs_file(bench: Bench) -> Path:
    """Where costs are kept; those of a machine."""
    return bench.folder / f"costs-{machine()}.json"


def machine() -> str:
    """A short name."""
    return f"{platform.machine()}-{runtime.available_cores()}-cores"


def command_line(args: argparse.Namespace) -> str:
    """What trains all of this anew."""
    options = ["--quick"] * args.quick + ["--epochs", str(args.epochs), "--seeds", str(args.seeds)]
    return shlex.join(["python", "bench/accuracy.py", "--folder", "FOLDER", *options])


def main() -> None:
    """Trains everything, takes the costs, writes."""
    args = parse()
    bench = Bench(
        folder=args.folder,
        data=args.data,
        epochs=args.epochs,
        sets=tuple(args.sets),
        threads=args.threads,
    )
    if "train" in args.steps:
        train_all(bench, wanted_runs(args), args.jobs)
    found = gather(bench, args.seeds)
    if "costs" in args.steps:
        timed = costs_of([CONTESTANTS[name] for name in found])
        costs_file(bench).write_text(json.dumps(timed, indent=1) + "\n")
    kept = json.loads(costs_file(bench).read_text()) if costs_file(bench).exists() else {}
    for name, contestant in found.items():
        contestant["costs"] = kept.get(name)
    result = {
        "command": command_line(args),
        "machine": machine(),
        "device": str(runtime.pick_device("auto")),
        "torch": torch.__version__,
        "epochs": args.epochs,
        "contestants": found,
        "differences": all_differences(bench, {name: [*c["runs"]] for name, c in found.items()}),
    }
    text = as_text(result)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

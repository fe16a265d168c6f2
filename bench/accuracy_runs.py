"""The trainings of bench/accuracy.py: data, shards, runs, by the house's own commands."""

from __future__ import annotations

import concurrent.futures
import csv
import os
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy_costs import build
from accuracy_rows import BASE, ROOT, Contestant, designed
from safetensors import safe_open

from mstag.training import runs
from shard_tools.demo.recipe import RECIPES
from shard_tools.demo.soundfonts import PACKAGES
from shard_tools.demo.tables import FOLDERS

INFO, ANNOTATIONS = "clip_info_final.csv", "annotations_final.csv"
SETS = {
    "large": (BASE, ""),
    "stranger": ("configs/demo-stranger.toml", "test"),
    "scout": ("configs/demo-scout.toml", "valid"),
}
"""What is scored: its config and, where another run's weights are scored on it, its split."""
OTHERS = [*SETS][1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where everything is, and the budget."""

    folder: Path
    data: Path
    """Of the demo sets: data/demo-large and so on."""
    epochs: int
    sets: tuple[str, ...]
    """Of OTHERS, what is scored besides the test split."""
    threads: int
    """Of each training."""

    def run(self, contestant: Contestant, seed: int) -> Path:
        """Where a run lives; other budgets have other folders."""
        return self.folder / "runs" / f"{contestant.name}-{self.epochs}-epochs-seed-{seed}"

    def report(self, contestant: Contestant, seed: int, name: str) -> Path:
        """The scores of a set ("test" or one of OTHERS) that a run leaves."""
        label = "test" if name == "test" else f"{SETS[name][1]}-demo-{name}"
        return self.run(contestant, seed) / f"eval-{label}.json"


def missing_sets(data: Path) -> dict[str, str]:
    """Of OTHERS, those that can not be made here, and the package that each wants."""
    packages = {name: RECIPES[name].package for name in OTHERS}
    return {
        name: package
        for name, package in packages.items()
        if not (PACKAGES[package].is_file() or (data / f"demo-{name}" / INFO).exists())
    }


def call(*argv: str | Path, log: Path | None = None, threads: int = 0) -> None:
    """Runs one of the house's commands, its output into a file; it is shown when it fails."""
    command = [sys.executable, *map(str, argv)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}")


# ---- Data and shards ------------------------------------------------------------------------


def shards_of(bench: Bench, contestant: Contestant, which: str) -> Path:
    """Shards of a set with a contestant's features; packed when missing, made when not there."""
    config, _ = SETS[which]
    key = "-".join(s.partition("=")[2] for s in contestant.features) or "default"
    data = bench.data / f"demo-{which}"
    is_part = which == "large" and contestant.share < 1
    if is_part:
        key += f"-{contestant.share:g}"
    folder = bench.folder / "shards" / f"{which}-{key}"
    if not (folder / "manifest.json").exists():
        call("-m", "shard_tools", "fetch", "--config", config, "--to", data)
        if is_part:
            data = part_of(data, contestant.share, bench.folder / "data" / f"part-{key}")
        pack = ["-m", "shard_tools", "pack", *as_options(contestant.features, config)]
        call(*pack, "--data", data, "--out", folder)
    return folder


def part_of(data: Path, share: float, folder: Path) -> Path:
    """The same set with a share of the training artists, drawn once; audio is linked."""
    infos = read_table(data / INFO)
    is_train = {row["clip_id"]: row["mp3_path"][0] in FOLDERS["train"] for row in infos}
    artists = sorted({row["artist"] for row in infos if is_train[row["clip_id"]]})
    np.random.default_rng(0).shuffle(artists)
    kept = set(artists[: round(share * len(artists))])
    clips = {r["clip_id"] for r in infos if not is_train[r["clip_id"]] or r["artist"] in kept}
    for row in infos:
        target = folder / row["mp3_path"]
        if row["clip_id"] in clips and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(data / row["mp3_path"], target)
            except OSError:  # another file system
                shutil.copy2(data / row["mp3_path"], target)
    for name in (INFO, ANNOTATIONS):
        rows = [row for row in read_table(data / name) if row["clip_id"] in clips]
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    (folder / "demo.json").write_bytes((data / "demo.json").read_bytes())
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of one of MagnaTagATune's tables, whose layout the demo sets have."""
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file, delimiter="\t")]


# ---- Runs -----------------------------------------------------------------------------------


def as_options(settings: tuple[str, ...], config: str = BASE) -> list[str]:
    """``--config`` and ``--set`` for any of the house's commands."""
    return ["--config", config, *(part for setting in settings for part in ("--set", setting))]


def settings_of(bench: Bench, contestant: Contestant, seed: int) -> tuple[str, ...]:
    """All settings of a run over the base config."""
    # As many clips are seen of a part of the set: its epochs are shorter.
    settings = [f"train.epochs={round(bench.epochs / contestant.share)}", f"train.seed={seed}"]
    every = round(contestant.valid_every / contestant.share)
    if every > 1:
        settings.append(f"train.valid_every_epochs={every}")
    return (*contestant.settings, *settings)


def script_of(contestant: Contestant, script: str) -> list[str]:
    """The script itself, or what runs it with another design."""
    if not contestant.design:
        return [script]
    return ["bench/accuracy_ablated.py", script, *contestant.design, "--"]


def train(bench: Bench, contestant: Contestant, seed: int) -> None:
    """One run by the real commands, or what of it an earlier call has left undone."""
    run = bench.run(contestant, seed)
    log = bench.folder / "logs" / f"{run.name}.log"
    settings = settings_of(bench, contestant, seed)
    if runs.is_finished(run):
        check_is_the_same(bench, contestant, seed)
    else:
        argv = [*script_of(contestant, "train.py"), *as_options((*settings, "wandb.mode=disabled"))]
        shards = shards_of(bench, contestant, "large")
        call(*argv, "--shards", shards, "--out", run, log=log, threads=bench.threads)
    for name in bench.sets:
        if not bench.report(contestant, seed, name).exists():
            shards = shards_of(bench, contestant, name)
            argv = [*script_of(contestant, "eval.py"), str(run), "--split", SETS[name][1]]
            call(*argv, "--shards", shards, log=log, threads=bench.threads)


def check_is_the_same(bench: Bench, contestant: Contestant, seed: int) -> None:
    """Refuses a run of an earlier call whose settings or network were others than today's."""
    run = bench.run(contestant, seed)
    settings = settings_of(bench, contestant, seed)
    found, wanted = runs.read_config(run), contestant.config(*settings)
    same = (found.features, found.model, found.train) == (
        wanted.features,
        wanted.model,
        wanted.train,
    )
    (weights,) = (run / runs.BEST).glob("*.safetensors")
    with designed(contestant), safe_open(weights, "pt") as file:
        expected = {name: [*t.shape] for name, t in build(wanted).state_dict().items()}
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if not same or stored != expected:
        sys.exit(f"{run}: was trained by other settings or another network; move it away")


def train_all(bench: Bench, wanted: list[tuple[Contestant, int]], jobs: int) -> None:
    """Every run that is not there yet; shards first, so that no two runs pack the same ones."""
    for contestant in {contestant.name: contestant for contestant, _ in wanted}.values():
        for which in ("large", *bench.sets):
            shards_of(bench, contestant, which)
    stop = threading.Event()

    def one(contestant: Contestant, seed: int) -> str:
        if not stop.is_set():
            train(bench, contestant, seed)
        return f"{contestant.name}, seed {seed}"

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(one, *run) for run in wanted]
            for future in concurrent.futures.as_completed(futures):
                print(future.result(), flush=True)
        except BaseException:  # Ctrl-C or a run that failed: the others of now end, no more start
            stop.set()
            raise

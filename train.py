"""One training run, told top to bottom: settings, ranks, data, model, optimiser, loop, save.

    python train.py --config configs/demo.toml
    torchrun --standalone --nproc-per-node 4 train.py --config configs/mtt.toml

A run that was cut short goes on by the same command. The run folder then holds config.toml,
metrics.jsonl, checkpoints/, best/ (a bundle), eval-test.json, scores-test.npz, finished.json.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from pathlib import Path
from typing import Any

import click

from mstag.config import Config, load_config, to_tables
from mstag.console import importing, main_guard
from mstag.data.store import Store
from mstag.training import runs

log = logging.getLogger("mstag")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", type=Path, required=True, help="Settings, a TOML file.")
@click.option("--shards", help="Folder of shards, or its address.  [default: shards/DATASET]")
@click.option("--out", "run", type=Path, help="Run folder.  [default: runs/DATASET]")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Changes a setting."
)
@click.option("--fresh", is_flag=True, help="Moves an earlier run aside and starts anew.")
def main(
    path: Path, shards: str | None, run: Path | None, overrides: tuple[str, ...], fresh: bool
) -> None:
    """Trains a tagger on shards, and scores it on their test split.

    A run that was cut short goes on by the same command.
    """
    # ---- Settings and data: checked before torch takes its seconds --------------------------
    config = load_config(path, overrides)
    run = run or Path("runs") / config.dataset.name
    store = runs.open_shards(shards, config.dataset.name, config.train)
    runs.check_shards(store.name, store.manifest, config)
    with importing("torch"):
        import torch  # noqa: F401
    from mstag.runtime import stop_ranks

    try:
        train(config, store, run, fresh=fresh)
    finally:
        stop_ranks()


def train(config: Config, store: Store, run: Path, *, fresh: bool) -> None:
    """Trains as ``config`` says, from the shards of ``store``, into the folder ``run``."""
    from mstag import metrics, runtime
    from mstag.data.stream import ShardLoader
    from mstag.models import build_model
    from mstag.models.bundle import load_bundle, save_bundle
    from mstag.training import checkpoint, score
    from mstag.training.display import Clock, Display
    from mstag.training.engine import Engine, check_batch_size, learning_rate_at
    from mstag.training.tracking import Tracker

    # ---- Ranks: one process per GPU under torchrun, else this one alone ---------------------
    device = runtime.pick_device(config.train.device, runtime.read_ranks().local_rank)
    precision = runtime.pick_precision(config.train.precision, device)
    ranks = runtime.start_ranks(device)
    if device.type == "cpu":
        runtime.keep_freed_memory()
    runtime.set_up_logging(ranks)
    batch_size = config.train.batch_size
    check_batch_size(batch_size, ranks.world_size)

    # ---- Data: every rank reads its part of each global batch -------------------------------
    manifest = store.manifest
    loader = ShardLoader(
        store,
        "train",
        batch_size=batch_size,
        shuffle=True,
        seed=config.train.seed,
        window=config.train.shuffle_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=config.train.loader_workers,
        device=device,
        on_bad_clip=config.train.on_bad_clip,
        max_bad_clips=config.train.max_bad_clips,
    )
    total_steps = len(loader) * config.train.epochs

    # ---- The run: new, cut short, or finished -----------------------------------------------
    runtime.on_first_rank(lambda: runs.open_run(run, fresh=fresh), ranks)
    identity = checkpoint.identity(config, manifest)
    progress = checkpoint.Progress()
    state = checkpoint.load_newest(run / runs.CHECKPOINTS)
    if state is not None:
        checkpoint.check_identity(state, identity, run)
        progress = checkpoint.Progress(**state["progress"])
        if runs.is_finished(run) and progress.epoch >= config.train.epochs:
            log.info(
                f"run {run} is finished ({progress.epoch} epochs): its scores are in "
                f"{run / 'eval-test.json'} and `mstag tag` uses it; --fresh (`FRESH=1`) moves it "
                "aside and starts anew, a larger train.epochs goes on with it"
            )
            return
    if ranks.is_first:
        runs.start(run, config)

    # ---- Model and optimiser ----------------------------------------------------------------
    runtime.seed_everything(config.train.seed)
    features, tag_names = manifest.features, manifest.tag_names
    model = build_model(config.model, features.n_mels, features.num_frames, len(tag_names))
    engine = Engine(model, config.train, device=device, precision=precision, ranks=ranks)
    save_best = functools.partial(
        save_bundle,
        run / runs.BEST,
        model_config=config.model,
        features=features,
        tag_names=tag_names,
        dataset=runs.dataset_card(manifest, config.dataset.kind),
    )
    num_weights = sum(weights.numel() for weights in model.parameters())
    log.info(
        f"{manifest.dataset}: {loader.num_clips} clips, {len(tag_names)} tags; {config.model.name} "
        f"with {num_weights / 1e6:.2f} M weights; {device}, {precision}, ranks: {ranks.world_size}"
    )
    if state is not None:
        engine.load_state_dict(state["engine"])
        loader.load_state_dict(state["loader"])
        log.info(f"going on with {run} at step {progress.step} of {total_steps}")

    # ---- Loop: train an epoch, score the validation split, keep the best --------------------
    clock = Clock()
    display = Display(total_steps=total_steps, done_steps=progress.step, shown=ranks.is_first)
    resolved = {"device": str(device), "precision": precision, "ranks": ranks.world_size}
    tracker = Tracker(
        run,
        config.wandb,
        {**to_tables(config), **resolved, "dataset_digest": manifest.digest},
        num_lines=progress.num_lines,
        active=ranks.is_first,
    )

    def axes() -> dict[str, Any]:
        """Where a line of metrics stands; epochs count in fractions."""
        epoch = progress.step / len(loader)
        return {"step": progress.step, "clips_seen": progress.clips_seen, "epoch": epoch}

    def refused() -> int:
        """Damaged clips of this epoch that the ranks have left out so far."""
        return runtime.sum_over_ranks(loader.num_refused, ranks)

    def save() -> float:
        """Writes a checkpoint, whose content is all that resuming takes; returns the time."""
        progress.num_lines = tracker.num_lines
        state = {
            **identity,
            "step": progress.step,
            "progress": dataclasses.asdict(progress),
            "engine": engine.state_dict(),
            "loader": loader.state_dict() | {"refused": refused()},
        }
        if ranks.is_first:
            checkpoint.save(run / runs.CHECKPOINTS, state, keep=config.train.keep_checkpoints)
        return time.monotonic()

    with tracker, display, runtime.StopSignal() as stop:
        saved_at, loss, rate = time.monotonic(), math.nan, math.nan
        while progress.epoch < config.train.epochs:
            epoch_clock = Clock()
            for batch in epoch_clock.watch(clock.watch(loader)):
                rate = learning_rate_at(progress.step, total_steps, config.train)
                engine.step(batch, progress.step, rate)
                progress.step += 1
                progress.clips_seen += batch_size
                display.step(progress.epoch + 1, loss)

                ends_epoch = progress.step % len(loader) == 0
                if ends_epoch or progress.step % config.train.log_every_steps == 0:
                    loss, grad_norm = engine.read_means()
                    steps_per_s, data_wait = clock.lap()
                    line = {
                        "train/loss": loss,
                        "train/lr": rate,
                        "train/grad_norm": grad_norm,
                        "train/clips_per_s": steps_per_s * batch_size,
                        "train/data_wait": data_wait,
                    }
                    tracker.log(axes() | line)

                save_due = time.monotonic() - saved_at >= config.train.checkpoint_every_s
                stopped, save_due = stop.agreed(ranks, due=save_due)
                if stopped or save_due:
                    saved_at = save()
                end_if(stopped, progress.step)

            steps_per_s, data_wait = epoch_clock.lap()
            report, predictions = score.score_split(
                engine.model, store, "valid", device=device, ranks=ranks, num_resamples=0
            )
            valid = {key: report[key] for key in ("roc_auc", "pr_auc", "loss")}
            ledger = loader.ledger(refused())
            tracker.log(axes() | ledger | {f"valid/{key}": value for key, value in valid.items()})
            progress.epoch += 1
            is_best = progress.note_score(report["roc_auc"])
            if is_best and ranks.is_first:
                thresholds = metrics.best_thresholds(
                    predictions.labels, predictions.scores, predictions.mask
                )
                scores = {"epoch": progress.epoch, "valid": valid}
                save_best(engine.model, thresholds=thresholds.tolist(), scores=scores)
            loader.set_epoch(progress.epoch)
            saved_at = save()
            log.info(
                f"epoch {progress.epoch}/{config.train.epochs}  step {progress.step}  "
                f"loss {loss:.4f}  lr {rate:.2g}  {steps_per_s * batch_size:.1f} clips/s  "
                f"data wait {data_wait:.1%}  {display.eta()}\n"
                f"    {runs.score_line(report)}{'  best so far' if is_best else ''}"
            )
            end_if(stop.agreed(ranks)[0], progress.step)

        # ---- The end: the best weights on the test split, once ------------------------------
        test_report = None
        if runs.has_clips(manifest, "test"):
            best = load_bundle(run / runs.BEST, device)
            report, predictions = score.score_split(
                best.model, store, "test", device=device, ranks=ranks
            )
            test = {key: report[key] for key in ("roc_auc", "pr_auc")}
            tracker.log(axes() | {f"test/{key}": value for key, value in test.items()})
            test_report = score.full_report(report, manifest, best.digest)
            if ranks.is_first:
                score.write_eval(run, test_report, predictions)
                scores = {**best.scores, "test": test}
                save_best(best.model, thresholds=best.thresholds, scores=scores)
        if ranks.is_first:
            runs.finish(run, dataclasses.asdict(progress))
            click.echo(runs.ending(run, test_report, tracker.dashboard, features))


def end_if(signal_number: int, step: int) -> None:
    """Ends the process as a signal asked, if one did; the checkpoint has been written."""
    if signal_number:
        log.info(f"stopped after step {step}; the same command goes on from there")
        raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    main_guard(main, "train.py")

"""One training run, told top to bottom: settings, ranks, data, model, optimiser, loop, save.

    python train.py --config configs/demo.toml
    torchrun --standalone --nproc-per-node 4 train.py --config configs/mtt.toml

A run that was cut short goes on by the same command. The run folder then holds config.toml,
metrics.jsonl, checkpoints/, best/ (a bundle), eval-test.json, scores-test.npz, finished.json.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import click

from mstag.config import Config, load_config
from mstag.console import importing, main_guard, one_line
from mstag.data.store import Store
from mstag.stopping import Stop, Stopped
from mstag.training import runs

log = logging.getLogger("mstag")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for besides the settings."""

    fresh: bool = False
    batch_size: str | None = None
    profile: bool = False
    dry_run: bool = False


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("more", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--config", "path", type=Path, required=True, help="Settings, a TOML file.")
@click.option("--shards", help="Folder of shards, or its address.  [default: shards/DATASET]")
@click.option("--out", "run", type=Path, help="Run folder.  [default: runs/DATASET]")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Changes a setting."
)
@click.option("--fresh", is_flag=True, help="Moves an earlier run aside and starts anew.")
@click.option(
    "--batch-size",
    metavar="N|auto",
    help="Another batch size, and the learning rate that goes with it; auto: finds what fits.",
)
@click.option(
    "--init-from",
    metavar="BUNDLE",
    help="Starts from the weights of a bundle or a run (train.init_from); its tags are new.",
)
@click.option(
    "--freeze-backbone",
    is_flag=True,
    help="Only the layer that gives the tags learns (train.freeze_epochs = -1).",
)
@click.option("--compile", is_flag=True, help="Compiles the network (train.compile = true).")
@click.option("--profile", is_flag=True, help="Profiles a few steps into RUN/profile.")
@click.option("--dry-run", is_flag=True, help="Tries everything in seconds and changes nothing.")
def main(
    path: Path,
    shards: str | None,
    run: Path | None,
    overrides: tuple[str, ...],
    more: tuple[str, ...],
    init_from: str | None,
    freeze_backbone: bool,
    compile: bool,  # noqa: A002 (click names it after the option)
    **options: Any,
) -> None:
    """Trains a tagger on shards, and scores it on their test split.

    SECTION.KEY=VALUE is short for --set SECTION.KEY=VALUE. A run that was cut short goes on by
    the same command.
    """
    with Stop() as stop:
        # ---- Settings and data: checked before torch takes its seconds ----------------------
        overrides = (*overrides, *more, *(["train.compile=true"] if compile else []))
        if init_from is not None:
            overrides += (f"train.init_from={json.dumps(init_from)}",)
        if freeze_backbone:
            overrides += ("train.freeze_epochs=-1",)
        config = load_config(path, overrides)
        run = run or runs.default_folder(config.dataset.name)
        store = runs.open_shards(shards, config.dataset.name, config.train)
        runs.check_shards(store.name, store.manifest, config)
        with importing("torch"):
            import torch
        from mstag import runtime

        try:
            train(config, store, run, Options(**options), stop)
        except Stopped as stopped:
            runtime.stop_ranks()
            raise SystemExit(stopped.exit_code) from None
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"not enough memory on the device ({one_line(error)[:120]}): take a smaller batch "
                "(--batch-size auto finds what fits) or more pieces (train.accumulate_steps)"
            ) from None
        except RuntimeError as error:
            if not runtime.is_lost_rank(error):
                raise
            raise ValueError(
                f"rank {runtime.read_ranks().rank}: lost the connection to another rank "
                f"({one_line(error)[:120]}); the same command goes on from the newest checkpoint "
                "(by itself with torchrun --max-restarts N)"
            ) from None
        # Not after an error: NCCL would wait for ranks that wait for this one.
        runtime.stop_ranks()


def train(config: Config, store: Store, run: Path, options: Options, stop: Stop) -> None:
    """Trains as ``config`` says, from the shards of ``store``, into the folder ``run``.

    Raises:
        Stopped: by a signal; everything is saved.
    """
    from mstag import metrics, runtime
    from mstag.models.bundle import load_bundle, save_bundle
    from mstag.training import batch_size, checkpoint, finetune, identity, rehearsal, score
    from mstag.training.assembly import make_engine, make_loader
    from mstag.training.display import Busy, Clock, Display, peak_memory_gb
    from mstag.training.lineage import run_settings
    from mstag.training.profiling import Profile
    from mstag.training.schedule import learning_rate_at
    from mstag.training.tracking import Tracker
    from mstag.training.wandb_media import Evaluation

    # ---- Ranks: one process per GPU under torchrun, else this one alone ---------------------
    device = runtime.pick_device(config.train.device, runtime.read_ranks().local_rank)
    precision = runtime.pick_precision(config.train.precision, device)
    ranks = runtime.start_ranks(device)
    runtime.prepare_device(device)
    runtime.set_up_logging(ranks)
    manifest = store.manifest

    # ---- The run so far, the settings for it, its data --------------------------------------
    # Anew is what somebody asks for once, not torchrun or Slurm at each of their restarts.
    fresh = options.fresh and not runtime.is_restart()

    def newest() -> dict[str, Any] | None:
        return None if fresh else checkpoint.load_newest(run / runs.CHECKPOINTS)

    state = runtime.from_first_rank(newest, ranks)
    if options.batch_size:
        config = batch_size.resolve(config, options.batch_size, state, manifest, device, ranks)
        runs.check_shards(store.name, manifest, config)
    origin = runtime.from_first_rank(
        lambda: finetune.find_origin(config, state, store.name, manifest), ranks
    )
    origin_card = origin.card if origin else None
    own = identity.of_run(config, manifest, origin_card)
    progress = checkpoint.Progress()
    if state is not None:
        identity.check_same(state, own, run)
        progress = checkpoint.Progress(**state["progress"])
        if runs.is_finished(run) and progress.is_over(config.train):
            log.info(
                f"run {run} is finished ({progress.epoch} epochs): its scores are in "
                f"{run / 'eval-test.json'} and `mstag tag` uses it; --fresh (`FRESH=1`) moves it "
                "aside and starts anew, a larger train.epochs goes on with it"
            )
            return
    loader = make_loader(config, store, device, ranks)

    # ---- Model and optimiser ----------------------------------------------------------------
    backbone = origin.backbone if origin else None
    engine = make_engine(config, manifest, device, precision, ranks, backbone)
    total_steps = len(loader) * config.train.epochs
    num_weights = sum(weights.numel() for weights in engine.model.parameters())
    log.info(
        f"{manifest.dataset}: {loader.num_clips} clips, {len(manifest.tag_names)} tags; "
        f"{config.model.name} with {num_weights / 1e6:.2f} M weights; {device}, {precision}, "
        f"ranks: {ranks.world_size}"
    )
    if state is not None:
        engine.load_state_dict(state["engine"])
        loader.load_state_dict(state["loader"])
        log.info(f"going on with {run} at step {progress.step} of {total_steps}")
    if options.dry_run:
        rehearsal.rehearse(engine, loader, store, run, config, progress, own)
        return
    runtime.on_first_rank(lambda: runs.open_run(run, config, fresh=fresh), ranks)
    save_best = functools.partial(
        save_bundle,
        run / runs.BEST,
        model_config=config.model,
        features=manifest.features,
        tag_names=manifest.tag_names,
        dataset=runs.dataset_card(manifest, config.dataset.kind, origin_card),
    )

    # ---- Loop: train an epoch, score the validation split, keep the best --------------------
    clock, busy = Clock(loader.waiting.so_far_s), Busy(device)
    display = Display(total_steps=total_steps, done_steps=progress.step, shown=ranks.is_first)
    resolved: dict[str, Any] = {
        "device": str(device),
        "precision": precision,
        "ranks": ranks.world_size,
    }
    if origin_card:
        resolved["fine_tuned_from"] = origin_card
    tracker = Tracker(
        run,
        config.wandb,
        run_settings(config, store, **resolved) if ranks.is_first else {},
        num_lines=progress.num_lines,
        active=ranks.is_first,
        store=store,
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
        content = {
            **own,
            "step": progress.step,
            "progress": dataclasses.asdict(progress),
            "engine": engine.state_dict(),
            "loader": loader.state_dict() | {"refused": refused()},
        }
        folder, keep = run / runs.CHECKPOINTS, config.train.keep_checkpoints
        runtime.from_first_rank(lambda: checkpoint.save(folder, content, keep=keep), ranks)
        return time.monotonic()

    def end_if_asked() -> None:
        stop.is_due(ranks)

    with tracker, display, Profile(run if options.profile else None, ranks.rank) as profile:
        stop.armed()
        saved_at, loss, rate = time.monotonic(), math.nan, math.nan
        try:
            while not progress.is_over(config.train):
                epoch_clock = Clock(loader.waiting.so_far_s)
                engine.begin_epoch(progress.epoch)
                for batch in epoch_clock.watch(clock.watch(loader)):
                    rate = learning_rate_at(progress.step, total_steps, config.train)
                    engine.step(batch, progress.step, rate)
                    progress.step += 1
                    progress.clips_seen += config.train.batch_size
                    display.step()
                    profile.step()

                    ends_epoch = progress.step % len(loader) == 0
                    if ends_epoch or progress.step % config.train.log_every_steps == 0:
                        loss, grad_norm = engine.read_means()
                        steps_per_s, data_wait = clock.lap()
                        line = {
                            "train/loss": loss,
                            "train/lr": rate,
                            "train/grad_norm": grad_norm,
                            "train/clips_per_s": steps_per_s * config.train.batch_size,
                            "train/data_wait": data_wait,
                            "train/memory_gb": peak_memory_gb(device),
                            "train/utilisation": busy.lap(),
                        }
                        tracker.log(axes() | line)
                        display.line(progress.epoch + 1, line)

                    late = time.monotonic() - saved_at >= config.train.checkpoint_every_s
                    if stop.is_due(ranks, something_else=late):
                        saved_at = save()

                steps_per_s, data_wait = epoch_clock.lap()
                found = None
                if progress.is_scored_next(config.train):
                    model = engine.averaged_model()
                    found = score.score_split(
                        model,
                        store,
                        "valid",
                        device=device,
                        ranks=ranks,
                        num_workers=config.train.loader_workers,
                        num_resamples=0,
                        between_batches=end_if_asked,
                    )
                line = loader.ledger(refused()) | {
                    "train/weight_norm": engine.weight_norm(),
                    "train/ema_distance": engine.ema_distance(),
                }
                progress.epoch += 1
                outcome = ""
                if found is None:
                    tracker.log(axes() | line)
                else:
                    report, predictions = found
                    is_best = progress.note_score(report["roc_auc"])
                    outcome = f"\n    {runs.score_line(report)}{'  best so far' * is_best}"
                    if is_best and ranks.is_first:
                        thresholds = metrics.best_thresholds(
                            predictions.labels, predictions.scores, predictions.mask
                        )
                        scores = {"epoch": progress.epoch, "valid": score.for_bundle(report)}
                        save_best(model, thresholds=thresholds.tolist(), scores=scores)
                    valid = {f"valid/{key}": report[key] for key in ("roc_auc", "pr_auc", "loss")}
                    tracker.evaluation(
                        axes() | line | valid,
                        Evaluation(report, predictions, model=model),
                        is_best=is_best,
                        is_last=progress.is_over(config.train),
                    )
                loader.set_epoch(progress.epoch)
                saved_at = save()
                clips_per_s = steps_per_s * config.train.batch_size
                log.info(
                    f"epoch {progress.epoch}/{config.train.epochs}  {clips_per_s:.1f} clips/s  "
                    f"data wait {data_wait:.1%}  {display.eta()}{outcome}"
                )
                end_if_asked()

            # ---- The end: the best weights on the test split, once --------------------------
            test_report = None
            if runs.has_clips(manifest, "test"):
                best = runtime.from_first_rank(lambda: load_bundle(run / runs.BEST), ranks)
                report, predictions = score.score_split(
                    best.model.to(device),
                    store,
                    "test",
                    device=device,
                    ranks=ranks,
                    between_batches=end_if_asked,
                )
                test = {key: report[key] for key in ("roc_auc", "pr_auc")}
                tracker.evaluation(
                    axes() | {f"test/{key}": value for key, value in test.items()},
                    Evaluation(report, predictions, best.thresholds, best.model),
                    is_last=True,
                )
                test_report = score.full_report(report, manifest, best.digest)
                if ranks.is_first:
                    score.write_eval(run, test_report, predictions)
                    scores = {**best.scores, "test": score.for_bundle(report)}
                    save_best(best.model, thresholds=best.thresholds, scores=scores)
        except Stopped:
            save()
            log.info(f"stopped after step {progress.step}; the same command goes on from there")
            raise
        tracker.bundle(run / runs.BEST)
        if ranks.is_first:
            runs.finish(run, dataclasses.asdict(progress))
            click.echo(runs.ending(run, test_report, tracker.dashboard, manifest.features))


if __name__ == "__main__":
    main_guard(main, "train.py")

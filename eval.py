"""Scores a trained tagger on a split of shards; with --watch, a training run as it goes on.

    python eval.py runs/demo --shards shards/demo
    python eval.py runs/demo --shards shards/demo --watch
    torchrun --standalone --nproc-per-node 4 eval.py runs/mtt --shards shards/mtt

A run's best weights are scored into its folder (eval-SPLIT.json, scores-SPLIT.npz; shards of
another dataset with the same tags into eval-SPLIT-DATASET.json), a bundle elsewhere where --json
says. --watch follows a training from another process, or over a shared folder from another
machine: it scores each new checkpoint once on the validation split, notes
it in RUN/watch.jsonl, and ends when the run is finished and its last checkpoint is scored.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstag.console import importing, main_guard, one_line

if TYPE_CHECKING:
    import torch

    from mstag.config import Config, TrainConfig
    from mstag.data.store import Store
    from mstag.runtime import Ranks


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=Path, metavar="RUN|BUNDLE")
@click.option("--shards", help="Folder of shards, or its address.  [default: shards/DATASET]")
@click.option("--s3-endpoint", help="S3 service of an s3:// address.  [default: the run's]")
@click.option("--split", default=None, help="train, valid or test.  [default: test]")
@click.option("--json", "json_path", type=Path, help="Also writes the report here; - is stdout.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Clips a step; changes no score.")
@click.option(
    "--num-resamples",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Bootstrap resamples of the intervals; 0: none.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--watch", is_flag=True, help="Scores each new checkpoint of RUN on valid.")
@click.option(
    "--patience",
    "patience_min",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="MINUTES",
    help="How long --watch waits while nothing changes in RUN.",
)
def main(
    source: Path,
    shards: str | None,
    s3_endpoint: str | None,
    split: str | None,
    json_path: Path | None,
    batch_size: int | None,
    num_resamples: int,
    device: str,
    watch: bool,
    patience_min: float,
) -> None:
    """Scores the best weights of a run, or a bundle, on a split of shards."""
    with importing("torch"):
        import torch  # noqa: F401
    from mstag import runtime

    if watch and split not in (None, "valid"):
        raise ValueError(
            f"--watch --split {split}: watching scores the validation split only, because a test "
            "split that is looked at during training is no test any more; leave --split out"
        )
    options = {"batch_size": batch_size, "num_resamples": num_resamples}
    try:
        picked = runtime.pick_device(device, runtime.read_ranks().local_rank)
        ranks = runtime.start_ranks(picked)
        runtime.prepare_device(picked)
        runtime.set_up_logging(ranks)
        if watch:
            patience_s = 60 * patience_min
            watch_run(source, shards, s3_endpoint, picked, ranks, options, json_path, patience_s)
        else:
            split = split or "test"
            score_best(source, shards, s3_endpoint, split, picked, ranks, options, json_path)
    except RuntimeError as error:
        if not runtime.is_lost_rank(error):
            raise
        raise ValueError(f"lost the connection to another rank ({one_line(error)})") from None
    # Not after an error: NCCL would wait for ranks that wait for this one.
    runtime.stop_ranks()


def score_best(
    source: Path,
    shards: str | None,
    s3_endpoint: str | None,
    split: str,
    device: torch.device,
    ranks: Ranks,
    options: dict[str, Any],
    json_path: Path | None,
) -> None:
    """Scores a run's best weights, or a bundle, once."""
    from mstag import config
    from mstag.models.bundle import load_bundle
    from mstag.training import identity, lineage, runs, score, tracking
    from mstag.training.wandb_media import Evaluation

    is_run = (source / runs.CONFIG).exists()
    bundle = load_bundle(source / runs.BEST if is_run else source, device)
    settings = runs.read_config(source) if is_run else config.Config()
    store = open_shards(shards, str(bundle.dataset["name"]), settings.train, s3_endpoint)
    trained_on = identity.of_model(bundle.features, bundle.tag_names)
    identity.check_fits(source, trained_on, store.name, store.manifest)
    report, predictions = score.score_split(
        bundle.model, store, split, device=device, ranks=ranks, **options
    )
    report = score.full_report(report, store.manifest, bundle.digest)
    if ranks.is_first:
        if is_run:
            label = score.label_of(split, store.manifest.dataset, str(bundle.dataset["name"]))
            score.write_eval(source, report, predictions, label=label)
        show(report, json_path)
        if is_run:
            shown = lineage.run_settings(settings, store, checkpoint_digest=bundle.digest)
            evaluation = Evaluation(report, predictions, bundle.thresholds, bundle.model)
            epoch = bundle.scores.get("epoch", 0)
            tracking.show_evaluation(
                *(source, shown, settings.wandb, store, evaluation), epoch=epoch, label=label
            )


def watch_run(
    run: Path,
    shards: str | None,
    s3_endpoint: str | None,
    device: torch.device,
    ranks: Ranks,
    options: dict[str, Any],
    json_path: Path | None,
    patience_s: float,
) -> None:
    """Scores each new checkpoint of a run on the validation split until the run is finished."""
    from mstag.training.watch import watch

    if ranks.world_size > 1:
        raise ValueError("--watch: scores with one process; start it without torchrun")
    if run.is_file() or (run / "tagger.json").exists():
        raise ValueError(f"--watch {run}: is not a run; name its folder, such as runs/demo")

    def open_store(config: Config) -> Store:
        return open_shards(shards, config.dataset.name, config.train, s3_endpoint)

    def show_report(report: dict[str, Any]) -> None:
        show(report, json_path)

    watch(run, open_store, show_report, patience_s=patience_s, device=device, options=options)


def open_shards(
    where: str | None, name: str, train_config: TrainConfig, s3_endpoint: str | None
) -> Store:
    """The shards to score, with the cache and endpoint that the run was trained with."""
    from mstag.training import runs

    if s3_endpoint is not None:
        train_config = dataclasses.replace(train_config, s3_endpoint=s3_endpoint)
    return runs.open_shards(where, name, train_config)


def show(report: dict[str, Any], json_path: Path | None) -> None:
    """Prints a report as one line, writes it as JSON, or, for ``-``, prints it as JSON."""
    from mstag.training import runs, score

    if str(json_path) == "-":
        click.echo(json.dumps(report, allow_nan=False))
        return
    step = f"step {report['step']}  " if "step" in report else ""
    click.echo(step + runs.score_line(report))
    if json_path is not None:
        score.write_report(json_path, report)


if __name__ == "__main__":
    main_guard(main, "eval.py")

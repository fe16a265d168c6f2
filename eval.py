"""Scores a trained tagger on a split of shards; with --watch, a training run as it goes on.

    python eval.py runs/demo --shards shards/demo
    python eval.py runs/demo --shards shards/demo --watch
    torchrun --standalone --nproc-per-node 4 eval.py runs/mtt --shards shards/mtt

A run's best weights are scored into its folder (eval-SPLIT.json, scores-SPLIT.npz), a bundle
elsewhere where --json says. --watch scores each new checkpoint on the validation split and
ends when the run is finished (it has a finished.json) and its last checkpoint is scored.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstag.console import importing, main_guard

if TYPE_CHECKING:
    import torch

    from mstag.config import TrainConfig
    from mstag.data.store import Store
    from mstag.runtime import Ranks

POLL_EVERY_S = 2.0


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
        runtime.set_up_logging(ranks)
        if watch:
            watch_run(source, shards, s3_endpoint, picked, ranks, options, json_path)
        else:
            split = split or "test"
            score_best(source, shards, s3_endpoint, split, picked, ranks, options, json_path)
    finally:
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
    from mstag.training import runs, score

    is_run = (source / runs.CONFIG).exists()
    bundle = load_bundle(source / runs.BEST if is_run else source, device)
    train_config = runs.read_config(source).train if is_run else config.TrainConfig()
    store = open_shards(shards, str(bundle.dataset["name"]), train_config, s3_endpoint)
    digests = config.features_digest(bundle.features), config.tags_digest(bundle.tag_names)
    check_fits(source, store, digests)
    report, predictions = score.score_split(
        bundle.model, store, split, device=device, ranks=ranks, **options
    )
    report = score.full_report(report, store.manifest, bundle.digest)
    if ranks.is_first:
        if is_run:
            score.write_eval(source, report, predictions)
        show(report, json_path)


def watch_run(
    run: Path,
    shards: str | None,
    s3_endpoint: str | None,
    device: torch.device,
    ranks: Ranks,
    options: dict[str, Any],
    json_path: Path | None,
) -> None:
    """Scores each new checkpoint of a run on the validation split until the run is finished.

    A checkpoint that appears while another is scored may be passed over for a newer one.
    """
    from mstag.models import build_model
    from mstag.training import checkpoint, runs, score

    if ranks.world_size > 1:
        raise ValueError("--watch: scores with one process; start it without torchrun")
    config = runs.read_config(run)
    store = open_shards(shards, config.dataset.name, config.train, s3_endpoint)
    manifest = store.manifest
    features = manifest.features
    model = build_model(
        config.model, features.n_mels, features.num_frames, len(manifest.tag_names)
    ).to(device)
    scored = None
    while True:
        # Asked before looking: a run that finishes in between has its last checkpoint there.
        finished = runs.is_finished(run)
        newest = next(iter(checkpoint.paths(run / runs.CHECKPOINTS)), None)
        if newest is not None and newest != scored:
            state = load_if_there(newest)
            if state is None:
                continue
            check_fits(run, store, (state["features_digest"], state["tags_digest"]))
            model.load_state_dict(state["engine"]["model"])
            report, _ = score.score_split(
                model, store, "valid", device=device, ranks=ranks, **options
            )
            report = score.full_report(report, manifest, newest.stem)
            show({"step": state["step"], **report}, json_path)
            scored = newest
        elif finished:
            return
        else:
            time.sleep(POLL_EVERY_S)


def load_if_there(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None if training has removed it for a newer one in the meantime."""
    from mstag.training import checkpoint

    try:
        return checkpoint.load(path)
    except FileNotFoundError:
        return None


def open_shards(
    where: str | None, name: str, train_config: TrainConfig, s3_endpoint: str | None
) -> Store:
    """The shards to score, with the cache and endpoint that the run was trained with."""
    from mstag.training import runs

    if s3_endpoint is not None:
        train_config = dataclasses.replace(train_config, s3_endpoint=s3_endpoint)
    return runs.open_shards(where, name, train_config)


def check_fits(source: Path, store: Store, digests: tuple[str, str]) -> None:
    """Refuses shards whose features or tags are not those that the weights were trained on.

    Raises:
        ValueError: says which of the two differ.
    """
    theirs = store.manifest.features_digest, store.manifest.tags_digest
    for what, own, other in zip(("features", "tags"), digests, theirs, strict=True):
        if own != other:
            raise ValueError(
                f"{source}: was trained on other {what} than those of the shards {store.name} "
                f"(digest {own[:12]}, there {other[:12]}), so a score would mean nothing; name the "
                "shards that fit with --shards"
            )


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

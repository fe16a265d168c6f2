"""The `shard-tools` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import mstag
from mstag.config import Config, DatasetConfig, load_config
from mstag.console import main_guard

if TYPE_CHECKING:
    from mstag.data.shards import Manifest

CONFIG = click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The experiment, e.g. configs/demo.toml.",
)
SETTINGS = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting."
)
DATA = click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    help="Folder of the dataset's own files.  [default: data/<dataset.name>]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For programs: JSON on stdout.")
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mstag.__version__, package_name="mstag", message="%(prog)s %(version)s")
def cli() -> None:
    """A folder of music and a table of tags -> shards that can be trusted."""


@cli.command()
@click.argument("name", required=False)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Says the dataset.")
@click.option("--to", "data_dir", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option(
    "--from",
    "mirrors",
    multiple=True,
    metavar="URL",
    help="A folder on another server (http, https, s3). Several: tried in order.",
)
@click.option("--full", is_flag=True, help="mtg-jamendo: 320 kbps stereo, not mono VBR.")
@click.option("--clips", "num_clips", type=click.IntRange(min=1), help="demo: how many clips.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="demo: another set of music.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
def fetch(
    name: str | None,
    config_path: Path | None,
    data_dir: Path,
    mirrors: tuple[str, ...],
    full: bool,
    num_clips: int | None,
    seed: int,
    workers: int | None,
) -> None:
    """Put a dataset's own files into a folder: download NAME, or make it (demo).

    NAME is demo, mtt or mtg-jamendo; or leave it to --config, which also says the subset of
    mtg-jamendo and dataset.mirrors. Goes on where it stopped; nothing happens when all is there.
    """
    if name is None and config_path is None:
        raise click.UsageError("name a dataset, or a config with --config")
    dataset = load_config(config_path).dataset if config_path else DatasetConfig()
    if config_path is not None:
        if name not in (None, dataset.kind):
            raise click.UsageError(f"{config_path} is of {dataset.kind}, not of {name}")
        name, num_clips = dataset.kind, num_clips or dataset.num_clips or None
    if mirrors and name not in ("mtt", "mtg-jamendo"):
        raise click.UsageError(f"--from: {name} is not downloaded")
    mirrors = mirrors or dataset.mirrors
    if full and name != "mtg-jamendo":
        raise click.UsageError(f"--full: only mtg-jamendo comes in two qualities, not {name}")
    if name == "demo":
        from shard_tools.catalogs.demo import make_demo

        make_demo(
            data_dir,
            num_clips=num_clips,
            seed=seed,
            variant=dataset.variant,
            soundfonts=dataset.soundfonts,
            num_workers=workers,
        )
    elif name in ("mtt", "mtg-jamendo"):
        if name == "mtt":
            from shard_tools.fetch.mtt import fetch_mtt

            num_missing = fetch_mtt(data_dir, mirrors)
        else:
            from shard_tools.fetch.jamendo import fetch_jamendo

            num_missing = fetch_jamendo(data_dir, mirrors, subset=dataset.subset, full=full)
        if num_missing:
            click.echo(f"{data_dir}: the archive lacks {num_missing} clips of the table", err=True)
    elif name in ("table", "folders"):
        if not data_dir.is_dir():
            raise ValueError(
                f"{data_dir}: no such folder; a collection of your own is not fetched: put it "
                "there, or name its folder (make: DATA=folder)"
            )
    else:
        raise ValueError(f"no way to fetch {name!r}; known: demo, mtt, mtg-jamendo")


@cli.command()
@FOLDER
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The config to write.  [default: configs/NAME.toml]",
)
@click.option("--name", help="What to call the dataset.  [default: as the folder is called]")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="For fine-tuning a bundle or a run: takes its features and its network.",
)
def init(folder: Path, out: Path | None, name: str | None, like: Path | None) -> None:
    """Look at a collection and write a config to start from."""
    from shard_tools import init as starting

    _, next_commands = starting.init(folder, out, name, like)
    click.echo(next_commands)


@cli.command()
@CONFIG
@SETTINGS
@DATA
@JSON
def catalog(
    config_path: Path, overrides: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Say what would be packed, and what its split is worth. Needs no audio."""
    from shard_tools.catalogs import load_catalogue
    from shard_tools.catalogs.report import describe, format_description

    settings = load_config(config_path, overrides)
    description = describe(load_catalogue(settings.dataset, data_dir or _default_data(settings)))
    click.echo(json.dumps(description) if as_json else format_description(description))


@cli.command()
@CONFIG
@SETTINGS
@DATA
@click.option("--out", required=True, help="Folder of shards, or s3://BUCKET/PREFIX.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--task", metavar="I/N", help="Only the I-th of N parts, I from 0; then `merge`.")
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Who packs.",
)
@click.option("--address", help="ray: of a running cluster.  [default: found, else started here]")
@click.option("--s3-endpoint", default="", help="Address of an S3 service other than AWS.")
def pack(
    config_path: Path,
    overrides: tuple[str, ...],
    data_dir: Path | None,
    out: str,
    workers: int | None,
    task: str | None,
    engine_name: str,
    address: str | None,
    s3_endpoint: str,
) -> None:
    """Pack clips into shards, and verify them. Goes on where it stopped."""
    from shard_tools import engines
    from shard_tools import pack as packing
    from shard_tools.catalogs import load_catalogue
    from shard_tools.output import open_output

    if address and engine_name != "ray":
        raise click.UsageError("--address: of a Ray cluster; it needs --engine ray")
    if workers and engine_name == "ray":
        raise click.UsageError("--workers: Ray packs on all cores of its cluster; leave it out")
    settings = load_config(config_path, overrides)
    data_dir = data_dir or _default_data(settings)
    part = _part(task)
    output = open_output(out, s3_endpoint)
    catalogue = load_catalogue(settings.dataset, data_dir)
    engine = engines.ray(address) if engine_name == "ray" else engines.processes(workers)
    packed = packing.pack(settings, catalogue, data_dir, output, engine=engine, part=part)
    if packed.truncated:
        click.echo(
            f"{out}: {len(packed.truncated)} clips are cut off or damaged and were used as far as "
            f"they go, e.g. {packed.truncated[0]}",
            err=True,
        )
    if packed.manifest is None:
        did = f"{packed.num_packed} of its {packed.num_shards} shards packed"
        click.echo(f"{out}: part {task} done, {did}; after all parts: `shard-tools merge {out}`")
    elif packed.num_packed:
        _verified(out, packed.manifest, f"{packed.num_packed} shards packed")
    else:
        click.echo(f"{out}: up to date ({_sizes(packed.manifest)})")


@cli.command()
@click.argument("out")
@click.option("--s3-endpoint", default="", help="Address of an S3 service other than AWS.")
def merge(out: str, s3_endpoint: str) -> None:
    """Finish a folder (or s3:// address) that was packed in parts; refuses gaps and overlaps."""
    from shard_tools import merge as merging
    from shard_tools.output import open_output

    manifest = merging.merge(open_output(out, s3_endpoint))
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    _verified(out, manifest, f"{num_shards} shards merged")


def _part(task: str | None) -> tuple[int, int]:
    """The I and N of --task I/N."""
    if task is None:
        return 0, 1
    number, slash, total = task.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise click.BadParameter(
            f"{task!r} is not I/N with 0 <= I < N, e.g. 0/8 for the first of eight parts",
            param_hint="--task",
        )
    return int(number), int(total)


def _verified(out: str, manifest: Manifest, done: str) -> None:
    """Says what a folder has become, after reading all of it."""
    from mstag.data.remote import is_remote
    from shard_tools import verify as verifying

    if is_remote(out):
        # Every upload was checked by its server against the file's own sha256.
        click.echo(f"{out}: {done} ({_sizes(manifest)})")
        return
    faults = verifying.verify(Path(out), progress=True)
    if faults:
        raise ValueError(f"{out}: not whole after packing: {faults[0]}; is the disk sound?")
    click.echo(f"{out}: {done} and verified ({_sizes(manifest)})")


def _sizes(manifest: Manifest) -> str:
    sizes = ", ".join(f"{name} {split.clips:,}" for name, split in manifest.splits.items())
    return sizes + (f", {len(manifest.skipped)} skipped" if manifest.skipped else "")


@cli.command()
@FOLDER
@click.option(
    "--tags",
    "tags_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The tags, one a line, in the order of the label vectors.",
)
@click.option("--name", help="What to call the dataset.  [default: as the folder is called]")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Its [features] say how the spectrograms were made.  [default: unknown]",
)
@click.option(
    "--split",
    "split_rules",
    multiple=True,
    metavar="NAME=GLOB",
    help="Tars of train, valid or test, e.g. 'train=a-*.tar'.  [default: as file names say]",
)
@click.option("--mel", metavar="EXT[:KEY]", help="Member with the spectrogram, e.g. mel.npy.")
@click.option("--labels", metavar="EXT[:KEY]", help="Member with the labels, e.g. cls, npz:tags.")
@JSON
def index(
    folder: Path,
    tags_path: Path,
    name: str | None,
    config_path: Path | None,
    split_rules: tuple[str, ...],
    mel: str | None,
    labels: str | None,
    as_json: bool,
) -> int:
    """Make WebDataset tars that someone else wrote ready for training.

    Reads every tar of FOLDER once and writes a manifest and an index beside them; or names
    every fault (exit code 1) and writes nothing.
    """
    from shard_tools import index as indexing

    report = indexing.index(
        folder,
        tags_path,
        name=name,
        settings=load_config(config_path) if config_path else None,
        split_rules=split_rules,
        mel=mel,
        labels=labels,
        progress=not as_json,
    )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(report.summary(folder)))
    elif report.manifest:
        click.echo(indexing.format_report(folder, report.manifest), nl=False)
    else:
        click.echo("\n".join(report.shown_faults()), err=True)
        click.echo(f"{folder}: {len(report.faults)} faults, nothing written")
    return 1 if report.faults else 0


@cli.command()
@FOLDER
@JSON
def verify(folder: Path, as_json: bool) -> int:
    """Read every byte of a folder of shards and name every fault (exit code 1)."""
    from shard_tools import verify as verifying

    faults = verifying.verify(folder, progress=not as_json)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "whole": not faults, "faults": faults}))
    else:
        for fault in faults:
            click.echo(fault, err=True)
        remedy = f"{len(faults)} faults; remove the files they name, then make or pack them again"
        click.echo(f"{folder}: {remedy if faults else 'whole'}")
    return 1 if faults else 0


@cli.command()
@FOLDER
@JSON
@click.option(
    "--html",
    "page_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page to look at before training: tags, levels, leaks, spectrograms.",
)
def inspect(folder: Path, as_json: bool, page_path: Path | None) -> None:
    """Say what is in a folder of shards."""
    from shard_tools import inspect as inspecting

    summary = inspecting.inspect(folder)
    if page_path:
        from shard_tools.report_page import write_report

        num_bytes = write_report(folder, page_path, progress=not as_json)
        if not as_json:
            click.echo(f"{page_path}: written ({num_bytes / 1e6:.1f} MB), open it in a browser")
            return
    click.echo(json.dumps(summary) if as_json else inspecting.format_summary(summary))


def _default_data(settings: Config) -> Path:
    return Path("data") / settings.dataset.name


def entry() -> NoReturn:
    """Runs the command."""
    main_guard(cli, "shard-tools")

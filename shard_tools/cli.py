"""The `shard-tools` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click

import mstag
from mstag.config import Config, load_config
from mstag.console import main_guard

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
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Instead of NAME.")
@click.option("--to", "data_dir", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--clips", "num_clips", type=click.IntRange(min=1), help="demo: how many clips.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="demo: another set of music.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
def fetch(
    name: str | None,
    config_path: Path | None,
    data_dir: Path,
    num_clips: int | None,
    seed: int,
    workers: int | None,
) -> None:
    """Put a dataset's own files into a folder: download NAME, or make it (demo).

    Nothing happens when they are there already.
    """
    if (name is None) == (config_path is None):
        raise click.UsageError("name a dataset, or a config with --config (one of the two)")
    if config_path is not None:
        dataset = load_config(config_path).dataset
        name, num_clips = dataset.kind, num_clips or dataset.num_clips or None
    if name == "demo":
        from shard_tools.catalogs.demo import DEFAULT_NUM_CLIPS, make_demo

        make_demo(
            data_dir, num_clips=num_clips or DEFAULT_NUM_CLIPS, seed=seed, num_workers=workers
        )
    elif name == "mtt":
        from shard_tools.fetch import fetch_mtt

        num_missing = fetch_mtt(data_dir)
        if num_missing:
            click.echo(f"{data_dir}: the archive lacks {num_missing} clips of the table", err=True)
    elif name in ("table", "folders"):
        if not data_dir.is_dir():
            raise ValueError(
                f"{data_dir}: no such folder; a collection of your own is not fetched: put it "
                "there, or name its folder (make: DATA=folder)"
            )
    else:
        raise ValueError(f"no way to fetch {name!r}; known: demo, mtt")


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
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of shards.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
def pack(
    config_path: Path,
    overrides: tuple[str, ...],
    data_dir: Path | None,
    out: Path,
    workers: int | None,
) -> None:
    """Pack clips into shards, and verify them. Goes on where it stopped."""
    from shard_tools import pack as packing
    from shard_tools import verify as verifying
    from shard_tools.catalogs import load_catalogue

    settings = load_config(config_path, overrides)
    data_dir = data_dir or _default_data(settings)
    catalogue = load_catalogue(settings.dataset, data_dir)
    manifest, num_packed = packing.pack(settings, catalogue, data_dir, out, num_workers=workers)
    sizes = ", ".join(f"{name} {split.clips:,}" for name, split in manifest.splits.items())
    if not num_packed:
        click.echo(f"{out}: up to date ({sizes})")
        return
    faults = verifying.verify(out, progress=True)
    if faults:
        raise ValueError(f"{out}: not whole after packing: {faults[0]}; is the disk sound?")
    skipped = f", {len(manifest.skipped)} skipped" if manifest.skipped else ""
    click.echo(f"{out}: {num_packed} shards packed and verified ({sizes}{skipped})")


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
        click.echo(f"{folder}: " + (f"{len(faults)} faults" if faults else "whole"))
    return 1 if faults else 0


@cli.command()
@FOLDER
@JSON
def inspect(folder: Path, as_json: bool) -> None:
    """Say what is in a folder of shards."""
    from shard_tools import inspect as inspecting

    summary = inspecting.inspect(folder)
    click.echo(json.dumps(summary) if as_json else inspecting.format_summary(summary))


def _default_data(settings: Config) -> Path:
    return Path("data") / settings.dataset.name


def entry() -> NoReturn:
    """Runs the command."""
    main_guard(cli, "shard-tools")

"""The `mstag` command."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

import mstag
from mstag.console import importing, main_guard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mstag.tagging.batch import Result
    from mstag.tagging.tagger import Tagger

RUNS = Path("runs")


def _threshold(
    context: click.Context, option: click.Parameter, value: str | None
) -> float | Literal["own"] | None:
    """What --threshold says."""
    if value is None or value == "own":
        return value  # type: ignore[return-value]
    number = float(click.FloatRange(0, 1)(value, option, context))
    if math.isnan(number):
        raise click.BadParameter("nan is not a score", context, option)
    return number


MODEL = click.option(
    "--model", type=click.Path(path_type=Path), help="A bundle.  [default: newest runs/*/best]"
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
RUN = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mstag.__version__, package_name="mstag", message="%(prog)s %(version)s")
def cli() -> None:
    """Tags for music: use a trained tagger, look at a training, look at this machine."""


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@MODEL
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="json: one object a line; csv: one tag a line.",
)
@click.option("--top", type=click.IntRange(min=1), help="At most so many tags.")
@click.option(
    "--threshold",
    metavar="P|own",
    callback=_threshold,
    help="Least score, 0 to 1; own: each tag's own, as found on the validation split.",
)
@click.option("--taggram", type=click.Path(path_type=Path), help="One file's tags over time (PNG).")
@DEVICE
def tag(
    paths: tuple[str, ...],
    model: Path | None,
    output: Literal["table", "json", "csv"],
    top: int | None,
    threshold: float | Literal["own"] | None,
    taggram: Path | None,
    device: str,
) -> int:
    """Tag files, and the audio files of folders.

    Without --top and --threshold, a table has the 10 highest tags, JSON and CSV have all.
    A file that cannot be tagged is named, and the rest is tagged all the same (exit code 1).
    """
    from mstag.tagging import batch, results

    found = batch.find_files(paths)
    if taggram is not None and len(found) != 1:
        raise click.UsageError(f"--taggram draws one file; here are {len(found)}")
    to_tag = [item for item in found if item.error is None]
    tagger = _load_tagger(model, device) if to_tag else None
    if output == "table" and top is None and threshold is None:
        top = results.TABLE_TOP
    # A name that the terminal's encoding lacks is shown escaped; it is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if output == "csv":
        click.echo(results.CSV_HEADER, nl=False)
    num_failed = 0
    for result in _with_progress(batch.tag_files(tagger, found) if tagger else found, len(found)):
        tags: results.Tags = []
        if result.error is not None:
            num_failed += 1
            path = results.printable(result.path)
            click.echo(f"mstag: error: {path}: {result.error}", err=True)
        elif tagger is not None:
            tags = results.chosen(
                tagger.ranked(result.scores),
                top=top,
                threshold=threshold,
                own_thresholds=tagger.thresholds,
            )
            if taggram is not None:
                _write_taggram(taggram, result, tagger)
        click.echo(results.as_text(result, tags, output), nl=False)
    return 1 if num_failed else 0


@cli.command()
@click.argument("bundle", type=RUN)
@click.option("--to", required=True, metavar="FORMAT", help="pt2: a torch.export program.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
def export(bundle: Path, to: str, out: Path) -> None:
    """Write a trained tagger as a program that runs without mstag.

    It takes log-mel windows; their settings and the tags are in the JSON file beside it.
    """
    from mstag.tagging.export import check_target, export_bundle

    check_target(to, out)
    with importing("torch"):
        import torch  # noqa: F401
    for path in export_bundle(bundle, to, out):
        click.echo(path)


@cli.command()
@MODEL
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--max-mb", type=click.IntRange(1), default=200, show_default=True, help="Largest upload."
)
@DEVICE
def serve(model: Path | None, port: int, host: str, max_mb: int, device: str) -> None:
    """Listen to music and look at its tags on a web page of this machine.

    Drop files on it, hear them, see their tags over time. Nothing is sent elsewhere, and without
    --host only this machine can open it.
    """
    from mstag.models.bundle import find_bundle
    from mstag.tagging import serve as served
    from mstag.tagging.batch import newest_bundle

    served.require_gradio()
    model = find_bundle(model or newest_bundle(RUNS))
    with served.listen_on(host, port) as server:
        tagger = _load_tagger(model, device)
        if not served.is_loopback(server):
            click.echo(
                f"mstag: note: {host} is not this machine alone: whoever reaches port "
                f"{server.getsockname()[1]} can open the page and send files, without a password",
                err=True,
            )
        url = served.address_of(server)
        with contextlib.suppress(KeyboardInterrupt):
            served.serve(
                tagger,
                str(model),
                server,
                max_mb=max_mb,
                on_ready=lambda: click.echo(f"{url}  (Ctrl-C ends it)"),
            )


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Page to write.  [default: report.html in the run; of several runs, here]",
)
@click.option("--data", type=RUN, help="Folder of the audio files: lets the page play clips.")
@click.option("--shards", type=RUN, help="Folder of the shards.  [default: shards/DATASET]")
def report(
    runs: tuple[Path, ...], out: Path | None, data: Path | None, shards: Path | None
) -> None:
    """Write one HTML page on one or several runs: scores, curves, tags, clips to listen to.

    It needs no network and no account; of several runs it shows the differences to the first.
    """
    from mstag.training.report import write_report

    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    for words in write_report(runs, out, data=data, shards=shards):
        click.echo(f"mstag: note: {words}", err=True)
    click.echo(out)


@cli.command()
@click.argument("run", type=RUN)
def dashboard(run: Path) -> None:
    """Open what there is to look at: W&B online, laid out by us, else its terminal viewer."""
    from mstag.training.dashboard import find_view

    view = find_view(run)
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if view.kind == "online":
        from mstag.training import workspace

        try:
            click.echo(workspace.save(view.where))
        except ValueError as error:
            click.echo(f"mstag: {error}", err=True)
        click.echo(view.where)
        webbrowser.open(view.where)
    elif view.kind == "offline" and in_terminal:
        command = [sys.executable, "-m", "wandb", "leet", view.where]
        os.execv(command[0], command)  # noqa: S606 - the viewer takes this terminal over
    else:
        if view.kind == "offline":
            click.echo(f"look at it:  wandb leet {view.where}")
            click.echo(f"upload it:   wandb sync {view.where}")
        click.echo(f"as a page:   mstag report {run}")


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="SWEEP.yaml")
@click.option("--config", "config_path", type=click.Path(path_type=Path), required=True)
@click.option("--shards", help="Folder of shards, or its address.  [default: shards/DATASET]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--local", is_flag=True, help="Draws here, even if W&B could be asked to.")
def sweep(
    path: Path,
    config_path: Path,
    shards: str | None,
    out: Path,
    count: int,
    seed: int,
    local: bool,
) -> None:
    """Try settings drawn at random, and rank them by their validation score.

    With an API key W&B draws them, from the same file, and shows them as a sweep.
    """
    from mstag import config
    from mstag.training import sweep as search
    from mstag.training import wandb_run

    settings = config.load_config(config_path).wandb
    search.read_sweep(path)
    if not local and wandb_run.can_go_online(settings):
        search.run_online(path, settings, count)
        return
    train = [sys.executable, "train.py", "--config", str(config_path)]
    train += ["--shards", shards] if shards else []
    parameters = search.read_sweep(path)
    trials = search.run_sweep(
        parameters,
        train,
        out,
        count=count,
        seed=seed,
        show=lambda so_far: click.echo(search.as_table(so_far).expandtabs(24), err=True),
    )
    click.echo(search.as_table(trials), nl=False)


@cli.command()
@click.option("--quiet", is_flag=True, help="Say nothing when all is well.")
def doctor(quiet: bool) -> int:
    """Say what this machine has, and what is wrong with it (exit code 1)."""
    from mstag.doctor import examine

    found = examine()
    if not quiet:
        click.echo("\n".join(found.lines))
    if found.problem is not None:
        click.echo(f"mstag: error: {found.problem}", err=True)
    return 0 if found.problem is None else 1


def _load_tagger(model: Path | None, device: str) -> Tagger:
    from mstag.models.bundle import find_bundle
    from mstag.tagging.batch import newest_bundle

    if model is None:
        model = newest_bundle(RUNS)
        click.echo(f"mstag: using {model}", err=True)
    bundle = find_bundle(model)  # a wrong name is said before torch takes its seconds
    with importing("torch and torchaudio"):
        import torchaudio  # noqa: F401

        from mstag.tagging.tagger import Tagger
    return Tagger.load(bundle, device)


def _with_progress(tagged: Iterable[Result], total: int) -> Iterable[Result]:
    """A progress bar where results go to a file or a program and somebody watches."""
    if total < 2 or sys.stdout.isatty() or not sys.stderr.isatty():
        return tagged
    from tqdm import tqdm

    bar: Iterable[Result] = tqdm(tagged, total=total, unit="file", desc="tagging")
    return bar


def _write_taggram(path: Path, result: Result, tagger: Tagger) -> None:
    from mstag import files
    from mstag.show.plots import taggram

    assert result.over_time is not None
    files.write_bytes(path, taggram(result.over_time, tagger.tag_names, window_s=tagger.step_s))


def entry() -> NoReturn:
    """Runs the command."""
    main_guard(cli, "mstag")

"""The `mstag` command."""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from pathlib import Path
from typing import NoReturn

import click

import mstag
from mstag.cli_model import DEVICE, MODEL, RUNS, load_tagger
from mstag.cli_tag import tag
from mstag.console import importing, main_guard

RUN = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mstag.__version__, package_name="mstag", message="%(prog)s %(version)s")
def cli() -> None:
    """Tags for music: use a trained tagger, look at a training, look at this machine."""


cli.add_command(tag)


@cli.command()
@click.argument("bundle")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="onnx: from windows of waveform, the spectrogram inside; onnx-mel: from log-mel windows; "
    "pt2: a torch.export program, from log-mel windows.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, .onnx or .pt2; the labels go beside it, as .json.",
)
@click.option("--author", default="", help="For the labels.")
@click.option("--email", default="", help="For the labels.")
@click.option("--link", default="", help="For the labels: where the program can be had.")
def export(bundle: str, to: str, out: Path, **about: str) -> None:
    """Write a trained tagger as a program that runs without mstag.

    BUNDLE is a bundle, a run, or an id on the Hugging Face Hub. The program takes windows of
    music, any number at once, and gives a score per tag. The JSON file beside it, in the style of
    Essentia's models, has the tags, their thresholds, the features, and how longer music is cut
    and averaged. Nothing is written unless the program scores as `mstag tag` does.
    """
    from mstag.tagging.export import check_target, export_bundle
    from mstag.tagging.export_labels import About
    from mstag.tagging.hub import find_or_fetch

    check_target(to, out)
    folder = find_or_fetch(bundle)  # a wrong name is said before torch takes its seconds
    with importing("torch"):
        import torch  # noqa: F401
    for path in export_bundle(folder, to, out, About(**about)):
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
    from mstag.tagging import hub
    from mstag.tagging import serve as served
    from mstag.tagging.newest import newest_bundle

    served.require_gradio()
    model = hub.find_or_fetch(str(model or newest_bundle(RUNS)))
    with served.listen_on(host, port) as server:
        tagger = load_tagger(model, device)
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

        page = view.where
        click.echo(page)
        try:
            page = workspace.save(run, page)
            click.echo(page)
        except ValueError as error:
            click.echo(f"mstag: {error}", err=True)
        webbrowser.open(page)
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
    train = [sys.executable, "train.py", "--config", str(config_path)]
    train += ["--shards", shards] if shards else []
    if not local and wandb_run.can_go_online(settings):
        search.run_online(path, settings, train, count)
        return
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


def entry() -> NoReturn:
    """Runs the command."""
    main_guard(cli, "mstag")

"""`mstag tag`: files, folders, patterns and lists -> tags, shown, drawn, kept beside or inside."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mstag.cli_model import DEVICE, MODEL, load_tagger

if TYPE_CHECKING:
    from mstag.tagging.results import Choice, Output, Result
    from mstag.tagging.tagger import Tagger

UNITS_S = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_EVERY_S = 0.1


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


def _seconds(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """What --every says: 5, 5s, 500ms, 1m."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", value.strip())
    if match is None or match[2] not in UNITS_S:
        raise click.BadParameter(f"{value!r} is not a time such as 5s, 500ms, 1m", context, option)
    seconds = float(match[1]) * UNITS_S[match[2]]
    if seconds < LEAST_EVERY_S:
        raise click.BadParameter(f"must be at least {LEAST_EVERY_S:g} s", context, option)
    return seconds


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@MODEL
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="json: one object a line; csv: one tag a line, with --every of each stretch.",
)
@click.option("--top", type=click.IntRange(min=1), help="At most so many tags.")
@click.option(
    "--threshold",
    metavar="P|own",
    callback=_threshold,
    help="Least score, 0 (every tag) to 1; own: each tag's own, as found on the validation split.  "
    "[default: own; any score with --top alone]",
)
@click.option(
    "--every",
    "every_s",
    metavar="TIME",
    callback=_seconds,
    help="Also tags over time: of each stretch of so long (5s, 500ms, 1m).",
)
@click.option(
    "--taggram",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draws tags over time; of several files, into this folder.",
)
@click.option("--sidecar", is_flag=True, help="Keeps all scores beside each file: NAME.tags.json.")
@click.option("--overwrite", is_flag=True, help="With --sidecar: also does what is done already.")
@click.option("--write-tags", is_flag=True, help="Writes tags into the files (ID3, Vorbis, MP4).")
@click.option("--dry-run", is_flag=True, help="Writes no file; --write-tags says what it would do.")
@click.option("--overwrite-tags", is_flag=True, help="--write-tags replaces genres of others, too.")
@DEVICE
def tag(paths: tuple[str, ...], model: Path | None, device: str, **given: Any) -> int:
    """Tag files, and the audio files of folders, of any format and length.

    PATH is a file, a folder, a pattern such as 'music/**/*.mp3', or - for a list of files on
    standard input (one a line, or ended by NULs). Without --top and --threshold the tags are
    shown whose scores reach the tag's own threshold, in a table 10 at most. If there are none,
    a table shows the 3 highest and says so; JSON and CSV have none.

    A file that cannot be tagged is named at the end, and the rest is tagged all the same (exit
    code 1). After Ctrl-C, what was printed or written stays.

    \b
    --every: a row is what the network hears around the middle of its stretch. What it hears at
      once (29 s with the default features) may be longer than the stretch: then rows next to
      each other hear mostly the same. Silent stretches have no tags.
    --sidecar: files that are done, by the same model and not changed since, are not heard again:
      the same command goes on after an interruption.
    --write-tags: names into the genre, if it is empty or by mstag; names with scores into MSTAG,
      the model into MSTAG_MODEL. The sound stays as it is, sample by sample; the file's time of
      change moves. What is there already is not written again.
    """
    return _run(paths, _Wishes(**given), lambda: load_tagger(model, device))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """The options, checked."""

    output: Output
    top: int | None
    threshold: float | Literal["own"] | None
    every_s: float | None
    taggram: Path | None
    sidecar: bool
    overwrite: bool
    write_tags: bool
    dry_run: bool
    overwrite_tags: bool

    def __post_init__(self) -> None:
        for name, needs in (
            ("overwrite", "sidecar"),
            ("dry_run", "write_tags"),
            ("overwrite_tags", "write_tags"),
        ):
            if getattr(self, name) and not getattr(self, needs):
                option, other = (f"--{word.replace('_', '-')}" for word in (name, needs))
                raise click.UsageError(f"{option} goes with {other}")

    def choice(self, default_top: int | None) -> Choice:
        """Which tags are wanted, where ``default_top`` holds if nothing was said."""
        from mstag.tagging.results import Choice

        if self.top is None and self.threshold is None:
            return Choice(default_top, "own")
        return Choice(self.top, self.threshold)


@dataclass(slots=True)
class _Report:
    """What is said on stderr when all is done."""

    num_tagged: int = 0
    num_known: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Takes note of a result."""
        if result.error is not None:
            self.failed.append((result.path, result.error))
            return
        self.num_tagged += 1
        self.num_known += result.was_done
        if result.truncated:
            self.truncated.append(result.path)

    def say(self) -> None:
        """Says it."""
        from mstag.tagging.results import printable

        for path in self.truncated:
            words = "cut off or damaged; these are the tags of what can be decoded"
            click.echo(f"mstag: note: {printable(path)}: {words}", err=True)
        if self.num_known:
            words = f"{self.num_known} of {self.num_tagged} were done: --overwrite does them again"
            click.echo(f"mstag: note: {words}", err=True)
        if self.failed and self.num_tagged + len(self.failed) > 1:
            counts = f"{self.num_tagged} tagged, {len(self.failed)} not"
            click.echo(f"mstag: {counts}:", err=True)
        for path, why in self.failed:
            click.echo(f"mstag: error: {printable(path)}: {printable(why)}", err=True)


def _run(paths: tuple[str, ...], wishes: _Wishes, load: Callable[[], Tagger]) -> int:
    from mstag.tagging import results
    from mstag.tagging.pictures import Taggrams

    found = _find(paths)
    try:
        drawn = Taggrams(wishes.taggram, found) if wishes.taggram else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if wishes.write_tags:
        from mstag.tagging.write_tags import require_mutagen

        require_mutagen()
    to_tag = any(item.error is None for item in found)
    tagger = load() if to_tag else None
    every_s = wishes.every_s
    if tagger and every_s is not None and every_s < tagger.least_every_s:
        raise click.UsageError(
            f"--every {every_s:g}s: must be at least {tagger.least_every_s:.3g} s, which is two "
            "frames of this tagger's spectrograms"
        )
    if drawn and tagger and every_s is None:
        every_s = drawn.every_s(tagger)
    # A name that the terminal's encoding lacks is shown escaped; it is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if wishes.output == "csv":
        over_time = wishes.every_s is not None
        header = results.CSV_HEADER_OVER_TIME if over_time else results.CSV_HEADER
        click.echo(header, nl=False)
    report = _Report()
    try:
        with contextlib.ExitStack() as stack:
            tagged: Iterable[Result] = found
            if tagger is not None:
                tagged = stack.enter_context(_tagging(tagger, found, every_s, wishes))
            for result in _with_progress(tagged, len(found)):
                if tagger is not None and drawn and result.error is None:
                    drawn.write(result, tagger)
                report.add(result)
                _show(result, tagger, wishes)
    finally:
        report.say()
    return 1 if report.failed else 0


def _find(paths: tuple[str, ...]) -> list[Result]:
    from mstag.tagging.find import find_files, find_named, listed

    if paths.count("-") > 1:
        raise click.UsageError("- stands for one list: name it once")
    found: list[Result] = []
    for path in paths:
        if path == "-":
            found += find_named(listed(sys.stdin.buffer.read()))
        else:
            found += find_files([path])
    if not found:
        click.echo("mstag: note: the list is empty: nothing to tag", err=True)
    return found


def _tagging(
    tagger: Tagger, found: list[Result], every_s: float | None, wishes: _Wishes
) -> contextlib.closing[Any]:
    """The results, which keep what is to be kept of them while they come in."""
    from mstag.tagging import sidecar
    from mstag.tagging.batch import tag_files
    from mstag.tagging.results import TABLE_TOP, chosen, ranked

    sidecars = sidecar.Sidecars(tagger, every_s, wishes.overwrite) if wishes.sidecar else None
    to_write = wishes.choice(TABLE_TOP)

    def keep(result: Result) -> Result:
        if wishes.write_tags:
            from mstag.tagging.write_tags import model_name, write_tags

            assert result.scores is not None
            changes = write_tags(
                Path(result.path),
                chosen(ranked(tagger.tag_names, result.scores), to_write, tagger.thresholds),
                model=model_name(tagger.bundle),
                overwrite=wishes.overwrite_tags,
                dry_run=wishes.dry_run,
            )
            result = replace(result, changes=changes)
            if result.identity is not None and changes:
                result = replace(result, identity=sidecar.identity(result.path))
        if sidecars is not None and not wishes.dry_run:
            sidecars.write(result)
        return result

    before = sidecars.read if sidecars is not None else None
    after = keep if wishes.sidecar or wishes.write_tags else None
    return contextlib.closing(tag_files(tagger, found, every_s=every_s, before=before, after=after))


def _show(result: Result, tagger: Tagger | None, wishes: _Wishes) -> None:
    """Prints a result."""
    from mstag.tagging import results

    if wishes.every_s is None:
        result = replace(result, over_time=None)  # a taggram's
    in_table = wishes.output == "table"
    shown = results.Shown([])
    if tagger is not None:
        shown = results.shown(
            result,
            tagger.tag_names,
            tagger.thresholds,
            wishes.choice(results.TABLE_TOP if in_table else None),
            wishes.choice(results.TABLE_TOP_OVER_TIME if in_table else None),
        )
    click.echo(results.as_text(result, shown, wishes.output), nl=False)
    if wishes.output == "csv":
        for line in results.changes_in_words(result):
            click.echo(f"mstag: {results.printable(result.path)}: {line}", err=True)


def _with_progress(tagged: Iterable[Result], total: int) -> Iterable[Result]:
    """A progress bar where results go to a file or a program and somebody watches."""
    if total < 2 or sys.stdout.isatty() or not sys.stderr.isatty():
        return tagged
    from tqdm import tqdm

    bar: Iterable[Result] = tqdm(tagged, total=total, unit="file", desc="tagging")
    return bar

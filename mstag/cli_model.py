"""--model and --device of commands that use a trained tagger, and the tagger that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mstag.console import importing

if TYPE_CHECKING:
    from mstag.tagging.tagger import Tagger

RUNS = Path("runs")

MODEL = click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A bundle, a run, or an id on the Hugging Face Hub.  [default: newest runs/*/best]",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")


def load_tagger(model: Path | None, device: str) -> Tagger:
    """The tagger that was named; None: the newest, and a line on stderr says which.

    Raises:
        ValueError: there is none, it is damaged, or torch cannot be imported.
    """
    from mstag.tagging import hub
    from mstag.tagging.newest import newest_bundle

    named = str(newest_bundle(RUNS) if model is None else model)
    bundle = hub.find_or_fetch(named)  # a wrong name is said before torch takes its seconds
    with importing("torch"):
        from mstag.tagging.tagger import Tagger
    tagger = Tagger.load(bundle, device)
    if model is None:
        limits = limits_in_one_line(tagger.bundle.dataset)
        click.echo(f"mstag: using {named}, {limits}", err=True)
    return tagger


def limits_in_one_line(dataset: dict[str, Any]) -> str:
    """What a tagger's card says at length: what it was trained on, and what that means."""
    name = str(dataset.get("name", "unknown"))
    if "demo" in (name, dataset.get("kind")):
        return "trained on demo: it knows synthesised music, and is weak on real recordings"
    return (
        f"trained on {name}: its tags mean what they mean there, and its scores are no "
        "probabilities"
    )

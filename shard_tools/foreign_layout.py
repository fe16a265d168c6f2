"""Which member of somebody else's samples is the spectrogram, and which the labels?

Answered by looking at one sample. Where two could be, or none, the user is asked, never
guessed for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mstag.data import foreign
from shard_tools.foreign_samples import (
    LABEL_KINDS,
    MEL_KINDS,
    PICKLES,
    Group,
    Layout,
    groups,
    kind,
    place,
    read_labels,
)
from shard_tools.foreign_tars import TarDamageError, TarReader, shown

Place = tuple[str, str]
"""Extension of a member, and the name of an array in it ("" but for an .npz)."""


def parse_place(option: str, text: str | None, kinds: tuple[str, ...]) -> Place | None:
    """An option's ``EXT[:KEY]``; None where it was not given.

    Raises:
        ValueError: a kind of member that is never read, or that cannot hold it.
    """
    if text is None:
        return None
    extension, _, key = text.partition(":")
    extension = extension.lower().removeprefix(".")
    if kind(extension) in PICKLES:
        raise ValueError(
            f"{option} {text}: a .{kind(extension)} is a pickle, which can run code when it is "
            "opened, so it never is; write the arrays as .npy"
        )
    if kind(extension) not in kinds:
        raise ValueError(
            f"{option} {text}: read are members that end in {', '.join(kinds)}, and after a colon "
            f"the name of an array in an .npz, e.g. {option} npz:{option.strip('-')}"
        )
    if key and kind(extension) != "npz":
        raise ValueError(f"{option} {text}: only an .npz has arrays with names")
    return extension, key


def first_sample(paths: Iterable[Path]) -> tuple[str, Group] | str:
    """The first sample of some tars, with the content of its members, and where it is.

    Returns:
        Where and the sample; or, if there is none, what is wrong with the first tar.
    """
    reason = ""
    for path in paths:
        try:
            with TarReader(path) as tar:
                for group in groups(tar, lambda extension: kind(extension) in LABEL_KINDS):
                    if group.is_sample:
                        return f"{shown(path.name)}: sample {shown(group.key)}", group
        except TarDamageError as error:
            reason = reason or f"{shown(path.name)}: {error}"
    return reason or "no tar holds a sample: members <key>.npy, .npz, .json or .cls"


def find_layout(
    group: Group, tag_names: list[str], mel: Place | None = None, labels: Place | None = None
) -> tuple[Layout, tuple[int, ...] | None]:
    """Finds spectrogram and labels in a sample.

    Args:
        group: a sample, with its content.
        tag_names: the tags in vector order.
        mel: the spectrogram's place, if the user says it; without a name in an .npz, if it
            holds but one.
        labels: the labels' place, likewise.

    Returns:
        The layout, and the shape of the spectrogram if it can be read.

    Raises:
        ValueError: none, or several could be it; lists them, and what is wrong with the others.
    """
    tags = {tag: number for number, tag in enumerate(tag_names)}
    shapes: dict[Place, tuple[int, ...]] = {}
    reasons: dict[Place, str] = {}
    for where in _places(group, MEL_KINDS):
        try:
            array = foreign.read_array(group.content[where[0]], *where)
            shapes[where] = foreign.as_mel(array).shape
        except ValueError as error:
            reasons[where] = str(error)
    mel_at = _choose("--mel", "spectrogram", mel, list(shapes), [], reasons, group)
    readable, likely = [], []
    reasons = {}
    for where in _places(group, LABEL_KINDS):
        if where == mel_at:
            continue
        try:
            read_labels(group.content[where[0]], *where, tags)
            readable.append(where)
        except ValueError as error:
            reasons[where] = str(error)
            likely += [where] if kind(where[0]) in ("cls", "json") else []
    labels_at = _choose("--labels", "labels", labels, readable, likely, reasons, group)
    return Layout(*mel_at, *labels_at), shapes.get(mel_at)


def _places(group: Group, kinds: tuple[str, ...]) -> list[Place]:
    found: list[Place] = []
    for extension, content in group.content.items():
        if kind(extension) not in kinds:
            continue
        if foreign.is_npz(extension):
            try:
                found += [(extension, key) for key in foreign.npz_keys(content)]
                continue
            except ValueError:
                pass  # asked for again where it is read, and said there
        found.append((extension, ""))
    return found


def _choose(
    option: str,
    what: str,
    said: Place | None,
    good: list[Place],
    likely: list[Place],
    reasons: dict[Place, str],
    group: Group,
) -> Place:
    """The one place; ``likely`` ones would be it by their kind, but cannot be read."""
    if said and (said[1] or not foreign.is_npz(said[0])):
        return said
    if said:
        good = [where for where in good if where[0] == said[0]]
        likely = []
    if len(good) == 1:
        return good[0]
    if not good and len(likely) == 1:
        return likely[0]  # each sample's own fault is more telling than ours
    if good:
        names = ", ".join(place(*where) for where in good)
        raise ValueError(
            f"several members could be the {what}: {names}; say which with {option}, e.g. "
            f"{option} {place(*good[0])}"
        )
    why = "; ".join(f"{place(*where)}: {reason}" for where, reason in reasons.items())
    rest = [e for e in group.places if e not in {where[0] for where in reasons}]
    others = f"; not looked at: {', '.join(map(shown, rest))}" if rest else ""
    pickles = [shown(e) for e in group.places if kind(e) in PICKLES]
    if pickles:
        others += (
            f"; {', '.join(pickles)} is never opened, because a pickle can run code: write the "
            "arrays as .npy"
        )
    raise ValueError(
        f"no member can be read as the {what}{': ' + why if why else ''}{others}; if one is meant "
        f"to be it, name it with {option} EXT[:KEY] to hear of every sample"
    )

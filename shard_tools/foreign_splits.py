"""Which tars of a folder belong to which split: as the user says, or as their names do."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from mstag.data import shards
from shard_tools.foreign_tars import shown

COMPRESSED = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd"}
NUM_SHOWN = 3
_WORDS = {
    "train": "train training",
    "valid": "valid val validation dev",
    "test": "test testing eval evaluation",
}
SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words.split()}
REMEDY = "say it with --split NAME=GLOB"


def list_tars(folder: Path) -> list[str]:
    """Names of the tars that lie directly in a folder, in order.

    Raises:
        ValueError: no such folder; no tars in it; compressed ones; names that are no text.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the one that holds the .tar files")
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = [name for name in there if name.endswith(".tar") and not name.startswith(".")]
    for name in there:
        match = re.fullmatch(r"(.+)\.(?:tar\.(gz|bz2|xz|zst)|(tgz))", name)
        if match and f"{match[1]}.tar" not in names:
            raise ValueError(
                f"{folder / name}: compressed, and samples must be readable in place; unpack it "
                f"with `{COMPRESSED[match[2] or match[3]]} {name}`"
            )
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{folder}: the file name {name!a} cannot be printed; rename it")
    if not names:
        deeper = tars_below(folder)
        where = f" (but in sub-folders: {', '.join(deeper)})" if deeper else ""
        raise ValueError(
            f"{folder}: no .tar file lies directly in it{where}; index a folder of tars, such as "
            "one of links to them: `ln train/0.tar all/train-0.tar`"
        )
    return names


def assign_splits(
    names: list[str], rules: tuple[str, ...] = ()
) -> tuple[dict[str, list[str]], str, list[str]]:
    """Which tar belongs to which split.

    Args:
        names: of the tars, in order.
        rules: NAME=GLOB each; without any, words in the names decide (train, valid, test and
            their usual variants, between anything that is no letter).

    Returns:
        Names per split, in the order of shards.SPLITS; the rule in words; notes for the user.

    Raises:
        ValueError: a rule that fits nothing, a tar in two splits, a name that says two or none.
    """
    notes = []
    if rules:
        split_of = _by_rules(names, rules)
        left = [name for name in names if name not in split_of]
        if left:
            notes.append(f"in no --split, so left out: {some(left)}")
        rule = " ".join(f"--split {rule}" for rule in rules)
    else:
        split_of, rule = _by_words(names), "as the file names say"
        if not split_of:
            split_of, rule = dict.fromkeys(names, "train"), "all in train"
            notes.append(
                f"no file name says a split, so everything is train; training needs a valid split "
                f"too: {REMEDY}, e.g. --split 'train=*[0-8].tar' --split 'valid=*9.tar'"
            )
    by_split = {
        split: [name for name in names if split_of.get(name) == split] for split in shards.SPLITS
    }
    return {split: own for split, own in by_split.items() if own}, rule, notes


def _by_rules(names: list[str], rules: tuple[str, ...]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for rule in rules:
        split, equals, glob = rule.partition("=")
        if split not in shards.SPLITS or not equals:
            raise ValueError(
                f"--split {rule}: must look like NAME=GLOB, with train, valid or test as NAME, "
                "e.g. --split 'train=a-*.tar'"
            )
        fitting = [name for name in names if fnmatch.fnmatchcase(name, glob)]
        if not fitting:
            raise ValueError(f"--split {rule}: fits none of the tars: {some(names)}")
        for name in fitting:
            if split_of.setdefault(name, split) != split:
                raise ValueError(
                    f"--split {rule}: {shown(name)} is in {split_of[name]} already, and a tar "
                    "belongs to one split"
                )
    return split_of


def _by_words(names: list[str]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for name in names:
        words = re.split(r"[^a-z]+", name.removesuffix(".tar").lower())
        said = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
        if not said:  # trainset-0.tar, validset.tar
            said = {split for split in shards.SPLITS if words[0].startswith(split)}
        if len(said) > 1:
            raise ValueError(f"{shown(name)}: its name says {' and '.join(sorted(said))}; {REMEDY}")
        if said:
            split_of[name] = said.pop()
    silent = [name for name in names if name not in split_of]
    if split_of and silent:
        raise ValueError(
            f"{some(silent)}: other file names say their split, these do not; {REMEDY} for all"
        )
    return split_of


def tars_below(folder: Path) -> list[str]:
    """Sub-folders, one level down, that hold tars."""
    return sorted({path.parent.name for path in folder.glob("*/*.tar*")})


def some(names: list[str]) -> str:
    """The first few names of a list, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NUM_SHOWN]) + more

"""Partial labels: which are known, what merging makes of them, and that the rest counts nowhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_shards import TINY, make_samples, make_shards

from mstag import metrics
from mstag.data import shards, splits, tags
from mstag.data.clips import Clip
from mstag.data.stream import ShardLoader
from mstag.models.predict import predict
from mstag.runtime import Ranks
from mstag.training.loss import masked_loss
from shard_tools.inspect import format_summary, inspect
from shard_tools.verify import verify

NAMES = ["a", "b", "c", "d"]
TABLE = ["a", "a2", "b", "c", "d"]


@st.composite
def partial_clips(draw: st.DrawFn) -> list[Clip]:
    """Clips of few artists in all three splits; of some, every label is known."""
    clips = []
    for number in range(draw(st.integers(1, 30))):
        fits = draw(st.frozensets(st.sampled_from(NAMES)))
        also = draw(st.none() | st.frozensets(st.sampled_from(NAMES)))
        clips.append(
            Clip(
                str(number),
                f"{number}.mp3",
                fits,
                artist=draw(st.sampled_from(["", "x", "y"])),
                split=draw(st.sampled_from(splits.SPLITS)),
                known=None if also is None else also | fits,
            )
        )
    return clips


@settings(max_examples=40)
@given(partial_clips())
def test_the_mask_says_what_the_clips_say(clips: list[Clip]) -> None:
    mask = tags.known_mask(clips, NAMES)
    if all(clip.known is None for clip in clips):
        assert mask is None
        return
    assert mask is not None and mask.dtype == np.uint8
    for row, clip in zip(mask.tolist(), clips, strict=True):
        assert [NAMES[i] in (clip.known or NAMES) for i in range(4)] == [bool(k) for k in row] or (
            clip.known == frozenset() and not any(row)
        )
    assert (tags.multi_hot(clips, NAMES) <= mask).all()


@settings(max_examples=40)
@given(partial_clips(), st.randoms(use_true_random=False))
def test_the_oracle_never_sees_what_is_unknown(clips: list[Clip], rng: object) -> None:
    """Tags set where they are unknown change nothing of its score."""
    dirty = [
        clip if clip.known is None else replace(clip, tags=clip.tags | (set(NAMES) - clip.known))
        for clip in clips
    ]
    assert splits.oracle_roc_auc(clips, NAMES) == splits.oracle_roc_auc(dirty, NAMES)


def test_the_oracle_by_hand() -> None:
    """Artist x is known to bear "a" in train; y's is unknown, so y keeps the mean of the known."""
    known = frozenset("a")
    clips = [
        Clip("1", "1", frozenset("a"), artist="x", split="train", known=known),
        Clip("2", "2", frozenset(), artist="z", split="train", known=known),
        Clip("3", "3", frozenset(), artist="y", split="train", known=frozenset()),
        Clip("4", "4", frozenset("a"), artist="y", split="test", known=known),
        Clip("5", "5", frozenset(), artist="z", split="test", known=known),
        Clip("6", "6", frozenset(), artist="x", split="test", known=frozenset()),
    ]
    # p of y is 0.5 > that of z, 0.3; clip 6, which would be ranked first, is not scored.
    assert splits.oracle_roc_auc(clips, ["a"]) == 1.0
    # All known: y and z tie at 0.2, and clip 6, without the tag, is ranked first with 0.6.
    assert splits.oracle_roc_auc([replace(clip, known=None) for clip in clips], ["a"]) == 0.25


@pytest.mark.parametrize(
    ("known", "fits", "merged"),
    [
        (["a", "a2"], [], {"a"}),
        (["a"], [], set()),
        (["a"], ["a"], {"a"}),
        (["a2"], ["a2"], {"a"}),
        (["b"], ["b"], {"b"}),
        (TABLE, [], {"a", "b", "c", "d"}),
    ],
)
def test_a_merged_tag_is_known_when_its_or_is(
    known: list[str], fits: list[str], merged: set[str]
) -> None:
    assert tags.merge_known(known, fits, TABLE, {"a2": "a"}) == merged


@settings(max_examples=40)
@given(partial_clips(), st.integers(0, 2))
def test_valid_is_carved_out_of_train_alone(clips: list[Clip], seed: int) -> None:
    rows = [replace(clip, split="train" if clip.split == "valid" else clip.split) for clip in clips]
    carved = splits.carve_valid(rows, NAMES, seed=seed, sizes=(0.6, 0.2, 0.2))
    for before, after in zip(rows, carved, strict=True):
        assert (before.split == "test") == (after == "test")
    homes = {
        (clip.artist, split)
        for clip, split in zip(rows, carved, strict=True)
        if clip.artist and split != "test"
    }
    assert len(homes) == len({artist for artist, _ in homes})
    if sum(clip.split == "train" and not clip.artist for clip in rows) >= 3:
        assert "valid" in carved
    assert splits.carve_valid(rows, NAMES, seed=seed, sizes=(0.8, 0.0, 0.2)) == splits.given(rows)


# ---- Through the shards ------------------------------------------------------------------------


def test_unknown_labels_count_neither_in_the_loss_nor_in_the_scores(tmp_path: Path) -> None:
    """The same shards, but for the labels under the masks: the same loss, gradient and scores."""
    content = make_samples("train", 40, partial=True)
    assert all(sample.mask is not None for sample in content)
    dirty = [replace(sample, tags=1 - sample.tags * sample.mask) for sample in content]  # type: ignore[operator]
    dirty = [
        replace(old, tags=np.where(old.mask, old.tags, new.tags).astype(np.uint8))  # type: ignore[arg-type]
        for old, new in zip(content, dirty, strict=True)
    ]
    losses, gradients, scores = [], [], []
    for name, made in (("clean", content), ("dirty", dirty)):
        make_shards(tmp_path / name, {"train": [25, 15]}, samples={"train": made})
        torch.manual_seed(0)
        size = TINY.n_mels * TINY.num_frames
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 5))
        model.num_frames = TINY.num_frames  # type: ignore[assignment]
        loader = ShardLoader(tmp_path / name, "train", batch_size=40, shuffle=False, num_workers=0)
        (batch,) = loader
        assert batch["mask"].shape == batch["tags"].shape == (40, 5)
        logits = model(batch["mel"].float())
        loss = masked_loss(logits, batch["tags"].float(), batch["mask"].float(), Ranks())
        loss.backward()
        losses.append(loss.item())
        gradients.append(model[1].weight.grad)
        got = predict(model, loader, "cpu")
        assert got.mask is not None
        scores.append(metrics.evaluate(got.labels, got.scores, list("abcde"), got.mask))
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)
    assert scores[0] == scores[1]
    assert verify(tmp_path / "clean") == []
    faults = verify(tmp_path / "dirty")
    assert faults and "a tag that its mask calls unknown is set" in faults[0]


def test_known_labels_are_counted_in_the_manifest(tmp_path: Path) -> None:
    content = make_shards(tmp_path, {"train": [9, 4], "test": [5]}, partial=True)
    manifest = shards.read_manifest(tmp_path)
    known = {
        split: np.sum([sample.mask for sample in made], axis=0).tolist()  # type: ignore[arg-type]
        for split, made in content.items()
    }
    assert [tag["known"] for tag in manifest.tags] == [
        {split: known[split][i] for split in known} for i in range(5)
    ]
    shown = format_summary(inspect(tmp_path))
    first = manifest.tags[0]
    assert f"{first['positives']['train']} of {known['train'][0]} / " in shown
    assert verify(tmp_path) == []
    first["known"]["test"] += 1
    shards.write_manifest(tmp_path, manifest)
    assert verify(tmp_path) == [
        f"test: tag tag 0 has {known['test'][0]} known labels, not {known['test'][0] + 1}"
    ]


def test_complete_labels_say_nothing_of_known(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3]})
    assert all("known" not in tag for tag in shards.read_manifest(tmp_path).tags)
    assert not any(line.endswith("known") for line in format_summary(inspect(tmp_path)).split("\n"))

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from html_pages import assert_fits, assert_not_blank, checked, in_a_browser, measured
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from make_foreign import run as index_foreign
from make_foreign import samples as foreign_samples
from make_foreign import write_tar
from make_shards import TINY, make_samples, make_shards
from shared_data import REPOSITORY

from mstag.data import shards, tars
from mstag.data.features import SILENCE
from mstag.data.samples import Source
from mstag.show import wording
from shard_tools import report, report_words
from shard_tools.report_page import page, statistics, write_report
from shard_tools.survey import Survey, draw, survey


def windows(clip: str, sizes: list[int], seed: int, **meta: object) -> list[tars.Sample]:
    """The samples of one clip, ``sizes`` frames of audio each."""
    made = []
    for number, size in enumerate(sizes):
        base = make_samples(f"{clip}w{number}", 1, seed=seed)[0]
        mel = base.mel.copy()
        mel[:, size:] = SILENCE
        tags = make_samples(clip, 1, seed=seed)[0].tags
        own = {"id": clip, "path": f"{clip}.mp3", "artist": f"artist {clip}", **meta}
        if size < TINY.num_frames:
            own["padded_frames"] = TINY.num_frames - size
        made.append(tars.Sample(f"{clip}-{number}", mel, tags, own))
    return made


def rewrite(folder: Path, **changes: object) -> None:
    manifest = shards.read_manifest(folder)
    shards.write_manifest(folder, dataclasses.replace(manifest, **changes))


def written(folder: Path, **how: int) -> str:
    write_report(folder, folder / "report.html", **how)
    return (folder / "report.html").read_text(encoding="utf-8")


# Reading


@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=8),
    cut=st.integers(1, 5),
)
def test_a_survey_is_what_the_samples_say(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    clips = {f"c{n}": windows(f"c{n}", own, n, truncated=n % 2) for n, own in enumerate(sizes)}
    samples = list(itertools.chain(*clips.values()))
    cut = min(cut, len(samples))
    make_shards(
        folder, {"train": [cut, len(samples) - cut], "test": []}, samples={"train": samples}
    )
    found = survey(folder)
    assert found.ids == list(clips) and found.drawn is None
    assert found.starts == {"train": len(clips), "test": 0}
    assert found.makers == [f"artist {name}" for name in clips]
    assert found.num_samples.tolist() == [len(own) for own in sizes]
    assert found.num_frames.tolist() == [sum(own) for own in sizes]
    assert found.num_padded.tolist() == [sum(12 - size for size in own) for own in sizes]
    assert found.is_truncated.tolist() == [n % 2 == 1 for n in range(len(sizes))]
    for row, (own, lengths) in enumerate(zip(clips.values(), sizes, strict=True)):
        assert np.array_equal(found.tags[row], own[0].tags)
        audio = [s.mel[:, :n].astype(float) for s, n in zip(own, lengths, strict=True)]
        power = np.exp(np.concatenate(audio, axis=1))
        assert found.bands[row] == pytest.approx(10 * np.log10(power.mean(axis=1)), abs=1e-3)
        assert found.levels[row] == pytest.approx(10 * np.log10(power.mean()), abs=1e-3)
        with Source(_store(folder), "train") as source:
            assert np.array_equal(source.read(int(found.first[row])).mel, own[0].mel)


def _store(folder: Path) -> object:
    from mstag.data.store import Folder

    return Folder(folder)


def test_a_large_folder_is_drawn_from_clip_by_clip(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.choice([1, 9], 300, p=[0.8, 0.2])
    samples = [s for n, num in enumerate(sizes) for s in windows(f"c{n}", [12] * num, n)]
    make_shards(
        tmp_path,
        {"train": [len(samples) - 100, 100], "valid": [30]},
        samples={"train": samples},
    )
    found = survey(tmp_path, most=200)
    assert found.drawn is not None and sum(found.drawn.values()) <= 240
    own = found.num_samples[found.split == 0]
    # A draw of samples instead of clips would bring 9 of 13 with nine windows.
    assert 0.08 < (own == 9).mean() < 0.38, "each clip is as likely as any other"
    assert set(own) <= {1, 9}, "clips are read in full"
    again = survey(tmp_path, most=200)
    assert again.ids == found.ids and survey(tmp_path, most=200, seed=1).ids != found.ids
    text = page(found, statistics(found))
    assert "were drawn by chance" in text and "about " in text
    estimate = statistics(found)["clips"]["train"]
    assert abs(estimate - 300) < 100
    assert len(draw({"a": 10, "b": 0}, 5)["a"]) == 5 and len(draw({"b": 0}, 5)["b"]) == 0


def test_damage_is_named_and_an_unfinished_folder_refused(tmp_path: Path) -> None:
    make_shards(tmp_path / "bad", {"train": [6]})
    tar = tmp_path / "bad" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 3] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*shard-tools verify"):
        write_report(tmp_path / "bad", tmp_path / "r.html")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no finished shards"):
        write_report(tmp_path / "none", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_report(tmp_path / "bad", tmp_path / "bad" / "manifest.json")


# Statistics


LABELS = st.integers(1, 5).flatmap(
    lambda t: st.integers(0, 12).flatmap(
        lambda n: st.tuples(
            arrays(np.uint8, (n, t), elements=st.integers(0, 1)),
            st.none() | arrays(np.uint8, (n, t), elements=st.integers(0, 1)),
        )
    )
)


@given(LABELS)
def test_co_occurrence_is_what_counting_gives(
    labels: tuple[np.ndarray, np.ndarray | None],
) -> None:
    tags, mask = labels
    known = np.ones_like(tags) if mask is None else mask
    found = report.co_occurrence(tags, mask)
    for i, j in itertools.product(range(tags.shape[1]), repeat=2):
        rows = [r for r in range(len(tags)) if known[r, i] and known[r, j]]
        a, b = [int(tags[r, i]) for r in rows], [int(tags[r, j]) for r in rows]
        both = sum(x and y for x, y in zip(a, b, strict=True))
        assert found["both"][i, j] == both
        expected = both / sum(a) if sum(a) else np.nan
        assert found["given"][i, j] == pytest.approx(expected, nan_ok=True)
        lift = expected / (sum(b) / len(b)) if sum(a) and sum(b) else np.nan
        assert found["lift"][i, j] == pytest.approx(lift, nan_ok=True)
        phi = np.corrcoef(a, b)[0, 1] if 0 < sum(a) < len(a) and 0 < sum(b) < len(b) else np.nan
        assert found["phi"][i, j] == pytest.approx(phi, nan_ok=True)
    assert sorted(report.neighbours(found["phi"])) == list(range(tags.shape[1]))
    chosen = report.pairs(found, [str(i) for i in range(tags.shape[1])])
    assert all(pair["both"] >= report.MIN_TOGETHER for pair in chosen["together"])
    assert all(pair["phi"] < 0 for pair in chosen["apart"])


def test_tags_that_go_together_stand_side_by_side() -> None:
    tags = np.repeat(np.eye(3, dtype=np.uint8), 20, axis=0)
    tags = np.concatenate([tags, tags], axis=1)  # 0 = 3, 1 = 4, 2 = 5
    found = report.co_occurrence(tags, None)
    order = report.neighbours(found["phi"])
    assert all(abs(order.index(n) - order.index(n + 3)) == 1 for n in range(3))
    twins = report.pairs(found, list("abcdef"))["twins"]
    assert {(pair["a"], pair["b"]) for pair in twins} == {("a", "d"), ("b", "e"), ("c", "f")}


def test_counts_say_what_they_mean_for_scores() -> None:
    positives = {"train": [50, 0, 9, 20], "test": [20, 3, 0, 40], "valid": [0, 0, 0, 0]}
    sizes = {"train": 100, "test": 40, "valid": 0}
    counts = report.tag_counts(list("abcd"), positives, sizes)
    words = [report_words.notes_in_words(entry) for entry in counts]
    assert words == [
        "",
        "cannot be learnt in train; vague score in test",
        "too rare to learn in train; no score in test",
        "no score (no clip without it) in test",
    ]
    assert counts[0]["splits"]["train"]["share"] == 0.5
    assert counts[0]["splits"]["valid"]["share"] is None
    partial = report.tag_counts(["a"], {"train": [5]}, {"train": 100}, {"train": [20]})
    assert partial[0]["splits"]["train"] == {
        "positives": 5,
        "known": 20,
        "share": 0.25,
        "note": "too rare to learn",
    }


@given(arrays(float, st.integers(0, 40), elements=st.floats(-1e5, 1e5)))
def test_a_histogram_holds_every_value_in_few_bins(values: np.ndarray) -> None:
    edges = report.histogram(values)
    assert len(edges) <= 32 and edges == sorted(set(edges))
    assert sum(report.shares(values, edges)) == pytest.approx(100 if len(values) else 0)


def test_quiet_clips_reasons_and_shifts() -> None:
    levels = np.array([0.0, -3, -60, np.nan, -200, 2])
    assert report.quiet_clips(levels).tolist() == [4, 2]
    assert report.quiet_clips(np.array([-200.0, -200])).tolist() == [0, 1]
    assert report.quiet_clips(np.array([np.nan])).tolist() == []
    skipped = [
        {"id": "1", "path": "a/one.mp3", "reason": "a/one.mp3: 3 of 10 s decode"},
        {"id": "2", "path": "a/two.mp3", "reason": "a/two.mp3: 4 of 10.5 s decode"},
        {"id": "3", "path": "", "reason": "no tag"},
    ]
    assert report.group_reasons(skipped) == [
        {"reason": "N of N s decode", "count": 2, "example": "a/one.mp3"},
        {"reason": "no tag", "count": 1, "example": "3"},
    ]
    gap = report.shift(np.zeros(4), np.array([1.0, 3.0, 1.0, 3.0]))
    assert gap == {"level": 2.0, "shape": 1.0}


@given(LABELS, st.integers(0, 3))
def test_examples_bear_their_tag_and_prefer_train(
    labels: tuple[np.ndarray, np.ndarray | None], seed: int
) -> None:
    tags = labels[0]
    is_train = np.arange(len(tags)) % 2 == 0
    makers = [str(n // 3) for n in range(len(tags))]
    chosen = report.examples(tags, is_train, makers, 3, seed=seed)
    for column, rows in zip(tags.T, chosen, strict=True):
        assert len(rows) == len(set(rows)) == min(3, int(column.sum()))
        assert all(column[row] for row in rows)
        bearing = [row for row in range(len(tags)) if column[row]]
        if rows:
            best = min((not is_train[row], tags[row].sum()) for row in bearing)
            assert (not is_train[rows[0]], tags[rows[0]].sum()) == best
        num_makers = len({makers[row] for row in bearing})
        assert len({makers[row] for row in rows}) == min(num_makers, len(rows))


def test_leaks_in_words() -> None:
    leaks = {
        "valid": {"track": 0.0, "artist": None},
        "test": {"track": 0.0, "artist": 0.12, "album": 0.0004},
    }
    (fine, valid), (warned, test) = wording.leaks_in_words(leaks)
    assert not fine and "No valid clip has its track in train" in valid
    assert "same artist is unknown" in valid
    assert warned and "12% have their artist and <0.1% have their album in train too" in test
    assert "flatter" in test
    assert wording.leaks_in_words({})[0][0]
    assert wording.oracle_in_words(0.7)[0] and not wording.oracle_in_words(0.52)[0]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0%"), (1e-5, "<0.1%"), (0.005, "0.5%"), (0.994, "99%"), (0.9996, ">99.9%"), (1, "100%")],
)
def test_percentages_never_round_something_to_nothing(share: float, shown: str) -> None:
    assert wording.percent(share) == shown


# The page


EVIL = '<script>alert("x")</script> & \x00\udcff\n'


def evil_survey(folder: Path) -> Survey:
    """Hostile names, partial labels, an empty split, and clips of every kind that is noted."""
    samples = make_samples("a", 30, partial=True)
    silent, broken = np.full_like(samples[0].mel, SILENCE), samples[1].mel.copy()
    broken[0, 0] = np.inf
    samples[0] = tars.Sample("0", silent, samples[0].tags, samples[0].meta, samples[0].mask)
    meta = {"id": "odd", "path": "<b>", "truncated": True}
    samples[1] = tars.Sample("1", broken, samples[1].tags, meta, samples[1].mask)
    make_shards(
        folder,
        {"train": [30], "valid": [0], "test": [25]},
        samples={"train": samples, "test": make_samples("b", 25, partial=True)},
    )
    found = survey(folder)
    manifest = dataclasses.replace(
        found.manifest,
        dataset=EVIL,
        tags=[{**tag, "tag": f"{tag['tag']} {EVIL}"} for tag in found.manifest.tags],
        skipped=[{"id": EVIL, "path": EVIL, "reason": f"{EVIL}: {EVIL}"}] * 2,
        leaks={"test": {"artist": 0.12}},
        oracle_roc_auc=0.81,
        split_rule=EVIL,
    )
    names = [f"{name} {EVIL}" for name in found.ids]
    return dataclasses.replace(found, manifest=manifest, ids=names, paths=names)


def test_a_page_says_all_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    found = evil_survey(tmp_path)
    text = page(found, statistics(found))
    text.encode("utf-8")
    assert "\x00" not in text
    assert text.count('<td class="none">') >= len(found.manifest.tags), "a tag is not its own pair"
    checker = checked(text)
    for words in (
        "The split valid is empty",
        "12% have their artist in train too",
        "0.810",
        "known (train)",
        "Nearly silent: 1 clip (1.8%)",
        "not finite (NaN or infinite): 1 clip",
        "break off: 1 clip",
        "2 clips (3.5% of the collection) were skipped",
        "Pairs that",
        "0 to 5,512 Hz",
        '<script>alert("x")</script>',
        "\\udcff",
    ):
        assert words in checker.text, words
    assert {"svg", "details", "nav", "title", "table", "img"} <= set(checker.tags)
    assert page(found, statistics(found)) == text, "the same page again"


def test_shards_of_others_and_empty_folders_have_a_page(tmp_path: Path) -> None:
    write_tar(tmp_path / "theirs" / "train-0.tar", foreign_samples(8))
    write_tar(tmp_path / "theirs" / "test-0.tar", foreign_samples(4, 8))
    assert not index_foreign(tmp_path / "theirs").faults
    text = written(tmp_path / "theirs")
    checker = checked(text)
    assert "nobody told how: 4 bands, 6 frames" in checker.text
    assert "indexed: spectrograms from member npy, labels from cls" in checker.text
    assert "dB" not in checker.text and "Nothing is known of artists" in checker.text
    assert text.count("data:image/png") == 9
    make_shards(tmp_path / "empty", {"train": [], "valid": [0], "test": []}, num_tags=1)
    assert "There are no clips" in checked(written(tmp_path / "empty")).text
    make_shards(tmp_path / "one", {"train": [1]}, num_tags=1)
    checked(written(tmp_path / "one"))


def test_the_command_writes_a_page_and_keeps_json_apart(tmp_path: Path) -> None:
    make_shards(tmp_path / "s", {"train": [6], "test": [3]})

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shard_tools", "inspect", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )

    target = tmp_path / "deep" / "r.html"
    done = command(tmp_path / "s", "--html", target)
    assert done.returncode == 0 and str(target) in done.stdout and not done.stderr
    first = target.read_bytes()
    done = command(tmp_path / "s", "--json", "--html", target)
    assert json.loads(done.stdout)["dataset"] == "synthetic" and target.read_bytes() == first
    assert [path.name for path in target.parent.iterdir()] == ["r.html"]
    done = command(tmp_path, "--html", target)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert target.read_bytes() == first


# The page in a browser


@in_a_browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page_on_phones_and_screens(tmp_path: Path, is_dark: bool) -> None:
    found = evil_survey(tmp_path / "s")
    names = [f"tag {n} {'with-a-long-name' * (n % 3)}" for n in range(5)]
    tags = [{**tag, "tag": name} for tag, name in zip(found.manifest.tags, names, strict=True)]
    found = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, tags=tags))
    content = page(found, statistics(found))
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    assert_fits(measured(tmp_path, content, is_dark=is_dark), is_dark=is_dark)
    assert_not_blank(tmp_path, tmp_path / "page.html", is_dark=is_dark)

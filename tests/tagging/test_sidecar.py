"""What is kept beside a file, and when it counts as done."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_tagger import TAGS, THRESHOLDS, make_bundle

from mstag import __version__
from mstag.tagging.results import Result
from mstag.tagging.sidecar import Sidecars, sidecar_of
from mstag.tagging.tagger import Tagger

NAN = float("nan")
SCORES = np.array([0.25, 0.5, 0.125, 1.0, 0.0], np.float32)
OVER_TIME = np.array([SCORES, [NAN] * 5, SCORES / 2], np.float32)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.mp3"
    path.write_bytes(b"music")
    return path


def heard(sidecars: Sidecars, song: Path, every_s: float | None = None) -> Result:
    """A file that was not done, and its scores."""
    item = sidecars.read(Result(str(song)))
    assert item.scores is None and item.identity is not None
    done = dataclasses.replace(item, duration_s=12.5, scores=SCORES)
    over_time = None if every_s is None else OVER_TIME
    return dataclasses.replace(done, over_time=over_time, every_s=every_s)


def test_what_is_in_it(tagger: Tagger, song: Path) -> None:
    sidecars = Sidecars(tagger, 5.0, False)
    sidecars.write(heard(sidecars, song, 5.0))
    path = sidecar_of(str(song))
    assert path.name == "song.mp3.tags.json"
    status = song.stat()
    assert json.loads(path.read_text()) == {
        "format": "mstag-tags-1",
        "mstag_version": __version__,
        "model": {"digest": tagger.bundle.digest, "dataset": "synthetic"},
        "audio": {"bytes": 5, "mtime_ns": status.st_mtime_ns},
        "duration_s": 12.5,
        "truncated": False,
        "tags": [
            {"tag": TAGS[i], "score": float(SCORES[i]), "threshold": THRESHOLDS[i]}
            for i in (3, 1, 0, 2, 4)
        ],
        "over_time": {
            "every_s": 5.0,
            "tags": TAGS,
            "scores": [SCORES.tolist(), None, (SCORES / 2).tolist()],
        },
    }


def test_what_is_done_is_read_back(tagger: Tagger, song: Path) -> None:
    sidecars = Sidecars(tagger, 5.0, False)
    sidecars.write(heard(sidecars, song, 5.0))
    again = sidecars.read(Result(str(song)))
    assert again.duration_s == 12.5 and again.every_s == 5.0
    np.testing.assert_array_equal(again.scores, SCORES)
    np.testing.assert_array_equal(again.over_time, OVER_TIME)
    written = sidecar_of(str(song)).stat()
    sidecars.write(again)
    whole = Sidecars(tagger, None, False)
    known = whole.read(Result(str(song)))
    assert known.over_time is None and known.scores is not None
    whole.write(known)
    assert sidecar_of(str(song)).stat() == written, "what was kept over time is lost to nobody"


def test_what_makes_a_file_undone(tagger: Tagger, song: Path, tmp_path: Path) -> None:
    sidecars = Sidecars(tagger, None, False)
    sidecars.write(heard(sidecars, song))

    def is_done(sidecars: Sidecars) -> bool:
        return sidecars.read(Result(str(song))).scores is not None

    assert is_done(sidecars)
    assert not is_done(Sidecars(tagger, None, True)), "--overwrite"
    assert not is_done(Sidecars(tagger, 5.0, False)), "nothing over time is known"
    other = Tagger.load(make_bundle(tmp_path / "other", seed=1), "cpu")
    assert not is_done(Sidecars(other, None, False)), "another model"
    status = song.stat()
    os.utime(song, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not is_done(sidecars), "changed since"
    os.utime(song, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_done(sidecars)
    song.write_bytes(b"music!")
    os.utime(song, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_done(sidecars), "another size"


def test_a_file_that_changes_while_it_is_heard_is_not_done(tagger: Tagger, song: Path) -> None:
    sidecars = Sidecars(tagger, None, False)
    item = heard(sidecars, song)
    song.write_bytes(b"other music")
    sidecars.write(item)
    assert sidecars.read(Result(str(song))).scores is None


@pytest.mark.parametrize(
    "change",
    [
        {"tags": []},
        {"tags": None},
        {"model": None},
        {"duration_s": "long"},
        {"tags": [{"tag": tag, "score": "high"} for tag in TAGS]},
        {"over_time": {"every_s": 5.0}},
        {"over_time": {"every_s": 5.0, "tags": TAGS, "scores": [[0.5]]}},
    ],
)
def test_one_that_is_garbled_is_made_anew(
    tagger: Tagger, song: Path, change: dict[str, object]
) -> None:
    sidecars = Sidecars(tagger, 5.0, False)
    sidecars.write(heard(sidecars, song, 5.0))
    path = sidecar_of(str(song))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert sidecars.read(Result(str(song))).scores is None


@pytest.mark.parametrize("content", [b"my notes", b"[]", b'{"tags": ["mine"]}', b"\xff\xfe"])
def test_what_somebody_else_wrote_stays(tagger: Tagger, song: Path, content: bytes) -> None:
    path = sidecar_of(str(song))
    path.write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="which mstag did not write"):
            Sidecars(tagger, None, overwrite).read(Result(str(song)))
    assert path.read_bytes() == content

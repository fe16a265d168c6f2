"""Many files, several threads."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tagger import LONGER, TAGS, make_bundle, make_wav

from mstag.data import audio
from mstag.tagging import batch
from mstag.tagging.batch import tag_files
from mstag.tagging.find import find_files
from mstag.tagging.results import Result
from mstag.tagging.tagger import Tagger


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


def test_a_file_that_fails_does_not_stop_the_rest(tagger: Tagger, tmp_path: Path) -> None:
    files = [make_wav(tmp_path / f"{i}.wav", 1.7, seed=i) for i in range(6)]
    files[1].write_text("not music")
    foreign = files[3].rename(tmp_path / "3.ape")
    foreign.write_bytes(b"MAC \x96\x0f")
    files[3] = foreign
    done = list(tag_files(tagger, find_files([*map(str, files), str(tmp_path / "none")])))
    assert [item.path for item in done] == [*map(str, files), str(tmp_path / "none")]
    assert [item.error is not None for item in done] == [
        False,
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert "convert it" in str(done[3].error)
    assert "convert it" not in str(done[1].error)
    for number in (0, 2, 4, 5):
        assert done[number].duration_s == pytest.approx(1.7 * 64 * 128 / 8000, abs=1e-3)
        alone = tagger.tag(files[number])
        scores = done[number].scores
        assert scores is not None
        np.testing.assert_allclose(sorted(-scores), [-score for _, score in alone], atol=1e-6)


def test_chunks_too(tmp_path: Path) -> None:
    tagger = Tagger.load(make_bundle(tmp_path / "b", features=LONGER, chunk_frames=64), "cpu")
    path = make_wav(tmp_path / "a.wav", 5.0)  # 320 frames: two windows of 150
    (done,) = tag_files(tagger, find_files([str(path)]))
    assert done.scores is not None
    named = dict(zip(TAGS, done.scores.tolist(), strict=True))
    assert named == pytest.approx(dict(tagger.tag(path)), abs=1e-6)


@pytest.mark.parametrize("num_cores", [1, 2, 8])
def test_scores_do_not_depend_on_threads_nor_on_other_files(
    tagger: Tagger, tmp_path: Path, num_cores: int
) -> None:
    found = find_files([str(make_wav(tmp_path / f"{i}.wav", i, seed=i)) for i in range(1, 8)])
    together = [one.scores for one in tag_files(tagger, found, num_cores=num_cores)]
    alone = [one.scores for item in found for one in tag_files(tagger, [item], num_cores=1)]
    np.testing.assert_array_equal(np.array(together), np.array(alone))


def test_decoding_does_not_run_ahead_of_the_network(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the length of a file, few windows of it wait to be scored."""
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)
    counts = {"made": 0, "scored": 0, "most": 0}
    lock = threading.Lock()
    real_chunks, real_score = Tagger.chunks, Tagger.score_chunks

    def chunks(self: Tagger, window: np.ndarray) -> list[np.ndarray]:
        with lock:
            counts["made"] += 1
            counts["most"] = max(counts["most"], counts["made"] - counts["scored"])
        return real_chunks(self, window)

    def score_chunks(self: Tagger, chunks: list[np.ndarray]) -> np.ndarray:
        time.sleep(0.002)
        scores = real_score(self, chunks)
        with lock:
            counts["scored"] += len(chunks)
        return scores

    monkeypatch.setattr(Tagger, "chunks", chunks)
    monkeypatch.setattr(Tagger, "score_chunks", score_chunks)
    path = make_wav(tmp_path / "long.wav", 120)
    (done,) = tag_files(tagger, find_files([str(path)]), num_cores=2)
    assert done.error is None
    assert counts["made"] == counts["scored"] == 120
    assert counts["most"] <= 8


def test_a_long_file_does_not_hold_up_those_behind_it(tagger: Tagger, tmp_path: Path) -> None:
    files = [make_wav(tmp_path / f"{i}.wav", 1, seed=i) for i in range(9)]
    others_done = threading.Event()
    finished: list[str] = []

    def before(item: Result) -> Result:
        if item.path.endswith("0.wav"):
            assert others_done.wait(timeout=60)
        return item

    def after(item: Result) -> Result:
        finished.append(item.path)
        if len(finished) == 8:
            others_done.set()
        return item

    found = find_files(map(str, files))
    done = list(tag_files(tagger, found, before=before, after=after, num_cores=2))
    assert [item.path for item in done] == [item.path for item in found]
    assert finished[-1] == str(files[0])


def test_what_is_known_is_not_heard_and_errors_of_keeping_are_the_files(
    tagger: Tagger, tmp_path: Path
) -> None:
    files = [make_wav(tmp_path / f"{i}.wav", 1) for i in range(3)]
    files[0].unlink()
    known = np.zeros(len(TAGS), np.float32)

    def before(item: Result) -> Result:
        return dataclasses.replace(item, scores=known) if item.path.endswith("0.wav") else item

    def after(item: Result) -> Result:
        if item.path.endswith("1.wav"):
            raise PermissionError(13, "Permission denied")
        if item.path.endswith("2.wav"):
            raise ZeroDivisionError("ours")
        return item

    items = [Result(str(path)) for path in files]
    done = list(tag_files(tagger, items, before=before, after=after))
    assert done[0].scores is known
    assert done[1].error == "permission denied"
    assert done[2].error == "defect (ZeroDivisionError: ours); MSTAG_TRACEBACK=1 shows more"


def test_more_audio_than_memory_is_an_error_of_that_file(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batch, "listen", too_much)
    (done,) = tag_files(tagger, find_files([str(make_wav(tmp_path / "a.wav"))]))
    assert "memory" in str(done.error)


def test_who_stops_early_waits_for_nothing_and_leaves_no_thread(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)
    files = [make_wav(tmp_path / "first.wav"), make_wav(tmp_path / "long.wav", 600)]
    files += [make_wav(tmp_path / f"{i}.wav") for i in range(50)]
    heard: list[str] = []

    def after(item: Result) -> Result:
        heard.append(item.path)
        return item

    threads = torch.get_num_threads()
    with closing(tag_files(tagger, find_files(map(str, files)), after=after, num_cores=2)) as some:
        assert next(some).error is None
    deadline = time.monotonic() + 20
    while any(t.name.startswith(("read", "score")) for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread goes on"
        time.sleep(0.01)
    assert len(heard) < len(files)
    assert torch.get_num_threads() == threads


def test_the_readers_never_wait_for_ever(tagger: Tagger) -> None:
    """A place that no scorer gives back: what an interruption can leave behind."""
    work = batch._Work(tagger, None, None, None, 1)
    for _ in range(2):
        work._places.acquire()
    ended: list[bool] = []

    def read() -> None:
        with pytest.raises(CancelledError):
            work._submit([])
        ended.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    work.__exit__(KeyboardInterrupt, None, None)
    thread.join(timeout=20)
    assert ended

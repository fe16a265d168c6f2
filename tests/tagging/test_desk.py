"""Who is there, which pieces they dropped, and what became of them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_tagger import TAGS, make_bundle, make_wav, music

from mstag.data.resampling import Waveform
from mstag.tagging import desk as rooms
from mstag.tagging import hearing
from mstag.tagging.desk import Desk
from mstag.tagging.hearing import Heard
from mstag.tagging.tagger import Tagger


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(make_bundle(tmp_path_factory.mktemp("bundle")), "cpu")


@pytest.fixture
def desk(tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(rooms, "LOOK_S", 0.01)
    desk = Desk(tagger, tmp_path)
    yield desk
    desk.close()


def last(shown: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return list(shown)[-1]


def lines(desk: Desk, session: str) -> list[dict[str, Any]]:
    return [json.loads(piece.line) for piece in desk.visits[session].pieces]


def wait_for(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_pieces_are_tagged_in_turn_and_bad_files_named(
    desk: Desk, tagger: Tagger, tmp_path: Path
) -> None:
    path = make_wav(tmp_path / "a.wav", 2)
    bad = tmp_path / "b.mp3"
    bad.write_text("no music")
    shown = list(desk.tag("me", [("my a.wav", path), ("my b.mp3", bad), ("c", tmp_path / "c")]))
    assert shown[0]["summary"] == "<p>0 pieces tagged, 3 to go.</p>"
    assert all("waiting for its turn" in card["html"] for card in shown[0]["cards"])
    assert shown[-1]["summary"].startswith("<p>1 piece tagged, 2 not.<a ")
    assert [card["id"] for card in shown[-1]["cards"]] == ["piece0", "piece1", "piece2"]
    assert "it is text" in shown[-1]["cards"][1]["html"]

    first, second, third = lines(desk, "me")
    assert (first["path"], first["error"], first["duration_s"]) == ("my a.wav", None, 2.048)
    assert [(tag["tag"], tag["score"]) for tag in first["tags"]] == [
        (tag, round(score, 6)) for tag, score in tagger.tag(path)
    ]
    assert (second["path"], second["tags"], second["duration_s"]) == ("my b.mp3", [], None)
    assert "it is text" in second["error"] and third["error"]


def test_a_later_drop_joins_the_list(desk: Desk, tmp_path: Path) -> None:
    for number in range(2):
        last(desk.tag("me", [(f"{number}.wav", make_wav(tmp_path / f"{number}.wav"))]))
    assert [line["path"] for line in lines(desk, "me")] == ["0.wav", "1.wav"]
    desk.clear("me")
    shown = last(desk.tag("me", [("2.wav", make_wav(tmp_path / "2.wav"))]))
    assert [card["id"] for card in shown["cards"]] == ["piece2"], "no id stands for two pieces"


def test_files_go_with_the_list_unless_others_hold_them(desk: Desk, tmp_path: Path) -> None:
    both, mine = make_wav(tmp_path / "both.wav"), tmp_path / "mine.aiff"
    soundfile.write(mine, music(8000), 8000)
    copies: list[Path] = []
    desk.on_copy = copies.append
    last(desk.tag("me", [("a", both), ("b", mine)]))
    last(desk.tag("you", [("c", both)]))
    assert copies == [tmp_path / "mine.aiff.to-play.wav"] and copies[0].exists()
    assert desk.clear("me") == {"summary": "", "cards": []}
    assert [path.name for path in tmp_path.iterdir()] == ["both.wav"]
    desk.leave("you")
    assert list(tmp_path.iterdir()) == []
    assert "you" not in desk.visits
    desk.leave("nobody")


def test_a_copy_that_comes_after_the_end_is_removed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = hearing.read

    def read_and_be_left(path: Path, rate_hz: int) -> tuple[Waveform, Path]:
        found = read(path, rate_hz)
        desk.clear("me")
        return found

    monkeypatch.setattr(hearing, "read", read_and_be_left)
    soundfile.write(tmp_path / "a.aiff", music(8000), 8000)
    assert last(desk.tag("me", [("a", tmp_path / "a.aiff")])) == {"summary": "", "cards": []}
    desk.close()
    assert list(tmp_path.iterdir()) == []


def test_only_uploads_are_taken(tagger: Tagger, tmp_path: Path) -> None:
    private = make_wav(tmp_path / "private.wav")
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "link").symlink_to(private)
    desk = Desk(tagger, tmp_path / "uploads")
    for path in (private, tmp_path / "uploads" / ".." / "private.wav", tmp_path / "uploads/link"):
        with pytest.raises(ValueError, match="only files that were uploaded"):
            last(desk.tag("thief", [("a", path)]))
    desk.leave("thief")
    desk.close()
    assert private.exists()


class Listener:
    """Listens until it is told to go on; notes whom it hears, and how many at once."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.at_once = self.most_at_once = 0
        self.go_on = threading.Event()
        self.stopped = 0

    def __call__(
        self, tagger: Tagger, path: Path, waveform: Waveform, progress: Callable[[float], None]
    ) -> Heard:
        self.heard.append(len(waveform))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while not self.go_on.wait(0.005):
                progress(0.25)
        except hearing.Stopped:
            self.stopped += 1
            raise
        finally:
            self.at_once -= 1
        return Heard(1.0, np.zeros(len(TAGS), np.float32), np.zeros((1, len(TAGS)), np.float32))


@contextmanager
def listening(listener: Listener, num_visitors: int) -> Iterator[ThreadPoolExecutor]:
    """Visitors; in the end, however it comes, they get their answers."""
    with ThreadPoolExecutor(num_visitors) as pool:
        try:
            yield pool
        finally:
            listener.go_on.set()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    monkeypatch.setattr(hearing, "hear", listener)
    return listener


def test_one_piece_is_heard_at_a_time_and_visitors_take_turns(
    desk: Desk, tmp_path: Path, listener: Listener
) -> None:
    sizes = {"me": (1.0, 1.1, 1.2), "you": (2.0,)}
    files = {
        who: [(str(n), make_wav(tmp_path / f"{n}.wav", n)) for n in lengths]
        for who, lengths in sizes.items()
    }
    with listening(listener, 2) as pool:
        mine = pool.submit(last, desk.tag("me", files["me"]))
        wait_for(lambda: listener.heard)
        yours = pool.submit(last, desk.tag("you", files["you"]))
        wait_for(lambda: "you" in desk.visits and desk.visits["you"].pieces[0].is_taken)
        time.sleep(0.05)
        assert "listening, 25%" in desk.visits["me"].pieces[0].card
        assert "waiting for its turn" in desk.visits["you"].pieces[0].card
        listener.go_on.set()
        assert "3 pieces tagged." in mine.result(30)["summary"]
        assert "1 piece tagged." in yours.result(30)["summary"]
    assert listener.most_at_once == 1
    num_samples = [round(n * 8192) for n in (1.0, 2.0, 1.1, 1.2)]
    assert listener.heard == num_samples, "one of many pieces does not wait for all of another's"


@pytest.mark.parametrize("end", ["clear", "leave", "close"])
def test_what_nobody_waits_for_is_given_up(
    desk: Desk, tmp_path: Path, listener: Listener, end: str
) -> None:
    with listening(listener, 1) as pool:
        files = [(str(n), make_wav(tmp_path / f"{n}.wav")) for n in range(2)]
        future = pool.submit(last, desk.tag("me", files))
        wait_for(lambda: listener.heard)
        desk.close() if end == "close" else getattr(desk, end)("me")
        future.result(30)
        wait_for(lambda: listener.stopped)
    assert len(listener.heard) == 1
    if end != "close":
        assert list(tmp_path.iterdir()) == []


def test_a_defect_is_told_on_the_card_and_the_page_goes_on(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_wav(tmp_path / "a.wav")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(hearing, "hear", fail)
        shown = last(desk.tag("me", [("a.wav", path)]))
    assert "which is a defect" in shown["cards"][0]["html"]
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err
    assert "1 piece tagged, 1 not" in last(desk.tag("me", [("a.wav", path)]))["summary"]


def test_the_card_holds_the_line_and_the_player(desk: Desk, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "a & b.wav")
    html = last(desk.tag("me", [("a & b.wav", path)]))["cards"][0]["html"]
    assert re.search(r'src="gradio_api/file=[^"]*/a%20%26%20b\.wav"', html)
    assert all(f">{tag}<" in html for tag in TAGS if "&" not in tag)

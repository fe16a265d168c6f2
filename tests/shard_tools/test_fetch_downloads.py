"""Several downloads at once: threads, mirrors, interruptions; and the command as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from fetch_site import CLIPS, TRACKS, Site, jamendo_site, mtt_site, serving_site, sha256

from mstag.data.remote import BusyError
from mstag.data.together import StoppedError, Together
from shard_tools.cli import cli
from shard_tools.fetch import downloads
from shard_tools.fetch.downloads import Mirrors, RemoteFile, at_work_in, download_all, run_all

CONTENT = TRACKS["00/100.low.mp3"]


def together() -> Together:
    return Together("", progress=False)


def test_a_few_jobs_at_a_time() -> None:
    lock, done, now, most = threading.Lock(), [], [0], [0]

    def job(number: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
            done.append(number)

    run_all([lambda n=n: job(n) for n in range(20)], together())
    assert sorted(done) == list(range(20))
    assert most[0] == downloads.NUM_AT_ONCE
    run_all([], together())


def test_a_failure_stops_the_others() -> None:
    shared, done = together(), []

    def waits() -> None:
        shared.wait(600)
        done.append("waits")

    def fails() -> None:
        raise OSError("the reason")

    with pytest.raises(OSError, match="the reason"):
        run_all([waits, waits, fails, *[lambda: done.append("late")] * 9], shared)
    assert "waits" not in done
    with pytest.raises(StoppedError):
        shared.check()


def test_a_busy_server_gets_fewer_connections() -> None:
    lock, now, done, refused = threading.Lock(), [0], [], [0]

    def job() -> None:
        with lock:
            now[0] += 1
            is_busy = now[0] > 1
        time.sleep(0.01)
        with lock:
            now[0] -= 1
            if is_busy:
                refused[0] += 1
                raise BusyError("busy")
            done.append(1)

    run_all([job] * 9, together())
    assert len(done) == 9
    assert 0 < refused[0] < 9


def test_a_server_that_is_always_busy_is_a_failure() -> None:
    def busy() -> None:
        raise BusyError("busy for ever")

    with pytest.raises(BusyError, match="for ever"):
        run_all([busy] * 9, together())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)


@pytest.mark.usefixtures("quick")
def test_bytes_of_two_mirrors_are_not_mixed(tmp_path: Path) -> None:
    new = b"new" * 9_000
    file = RemoteFile("sub/x", tmp_path / "x")
    with serving_site({"sub/x": CONTENT}) as first, serving_site({"sub/x": new}) as second:
        first.cuts = [9_000]
        first.verify_request = lambda *_: not first.requests  # type: ignore[method-assign]
        download_all([file], Mirrors([first.url, second.url]), what="", progress=False)
        assert second.requests == [("sub/x", 0)]
    assert file.path.read_bytes() == new


@pytest.mark.usefixtures("quick")
def test_a_checked_file_goes_on_at_the_next_mirror(tmp_path: Path) -> None:
    file = RemoteFile("x", tmp_path / "x", sha256(CONTENT))
    with serving_site({"x": CONTENT}) as first, serving_site({"x": CONTENT}) as second:
        first.cuts = [9_000]
        first.verify_request = lambda *_: not first.requests  # type: ignore[method-assign]
        second.version = "another"
        download_all([file], Mirrors([first.url, second.url]), what="", progress=False)
        assert second.requests == [("x", 9_000)]
    assert file.path.read_bytes() == CONTENT


@pytest.mark.usefixtures("quick")
def test_a_mirror_that_fails_is_asked_last_from_then_on(tmp_path: Path) -> None:
    files = {"a": b"a", "b": b"b"}
    with serving_site({}) as first, serving_site(files) as second:
        mirrors = Mirrors([first.url, second.url])
        for name in files:
            download_all([RemoteFile(name, tmp_path / name)], mirrors, what="", progress=False)
        assert first.requests == [("a", 0)]


@pytest.mark.parametrize("address", ["ftp://h/x", "http://user:SECRET@h/x", "/etc"])
def test_mirrors_that_are_refused(tmp_path: Path, address: str) -> None:
    result = CliRunner().invoke(
        cli, ["fetch", "mtt", "--to", str(tmp_path / "x"), "--from", "http://h", "--from", address]
    )
    assert isinstance(result.exception, ValueError)
    assert "SECRET" not in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_one_fetch_at_a_time(tmp_path: Path) -> None:
    with (
        at_work_in(tmp_path),
        pytest.raises(ValueError, match="another fetch is at work"),
        at_work_in(tmp_path),
    ):
        pass
    before = signal.getsignal(signal.SIGTERM)
    with at_work_in(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_config_says_dataset_subset_and_mirrors(tmp_path: Path) -> None:
    with serving_site(jamendo_site(subset="_genre")) as site:
        config = tmp_path / "j.toml"
        config.write_text(
            '[dataset]\nname = "j"\nkind = "mtg-jamendo"\nsubset = "genre"\n'
            f'mirrors = ["{site.url}"]\n'
        )
        data = tmp_path / "data"
        arguments = ["fetch", "--config", str(config), "--to", str(data)]
        assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
        assert audio(data) == TRACKS
    wrong = CliRunner().invoke(cli, [*arguments, "mtt"])
    assert wrong.exit_code == 2
    assert "is of mtg-jamendo, not of mtt" in wrong.output
    wrong = CliRunner().invoke(cli, ["fetch", "mtt", "--to", "x", "--full"])
    assert "only mtg-jamendo" in wrong.output
    wrong = CliRunner().invoke(cli, ["fetch", "demo", "--to", "x", "--from", "http://h"])
    assert "demo is not downloaded" in wrong.output


def audio(data_dir: Path) -> dict[str, bytes]:
    """The clips of either dataset."""
    folder = data_dir / "audio" if (data_dir / "audio").is_dir() else data_dir
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".csv" and path.name != ".fetch.lock"
    }


@contextmanager
def fetching(name: str, data_dir: Path, site: Site) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "shard_tools", "fetch", name]
    with subprocess.Popen(
        [*command, "--to", str(data_dir), "--from", site.url], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.01)


def has_grown(data_dir: Path, num_bytes: int) -> bool:
    """Whether a download stands at this many bytes."""
    with suppress(FileNotFoundError):  # it is whole and has its name by now
        return any(part.stat().st_size == num_bytes for part in data_dir.rglob("*.part"))
    return False


DATASETS = pytest.mark.parametrize(
    ("name", "files", "clips"),
    [("mtt", mtt_site(), CLIPS), ("mtg-jamendo", jamendo_site(), TRACKS)],
    ids=["mtt", "mtg-jamendo"],
)


@DATASETS
def test_killed_five_times(
    tmp_path: Path, name: str, files: dict[str, bytes], clips: dict[str, bytes]
) -> None:
    with serving_site(files) as site:
        site.cuts, site.stalls = [5_000, 10_000, 15_000, 20_000, 22_000], True
        for cut in site.cuts:
            with fetching(name, tmp_path, site) as process:
                until(lambda cut=cut: has_grown(tmp_path, cut))
                process.kill()
        starts = {start for _, start in site.requests}
        assert starts.issuperset({0, *site.cuts[:-1]})
        site.cuts = []
        with fetching(name, tmp_path, site) as process:
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert audio(tmp_path) == clips


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@DATASETS
def test_an_interrupt_ends_it_at_once(
    tmp_path: Path,
    number: signal.Signals,
    name: str,
    files: dict[str, bytes],
    clips: dict[str, bytes],
) -> None:
    with serving_site(files) as site:
        site.cuts, site.stalls = [20_000], True
        with fetching(name, tmp_path, site) as process:
            until(lambda: has_grown(tmp_path, 20_000))
            process.send_signal(number)
            # Less than the time-out of the requests that wait for the silent server.
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said.strip()) == (130, "shard-tools: interrupted")
        assert has_grown(tmp_path, 20_000)
        site.cuts = []
        with fetching(name, tmp_path, site) as process:
            process.communicate(timeout=60)
        assert process.returncode == 0
    assert audio(tmp_path) == clips

"""The `mstag` command, as users start it; what needs torch mostly in this process, for speed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
from shared_data import REPOSITORY
from tiny_tagger import TAGS, THRESHOLDS, make_bundle, make_wav

from mstag.cli import entry


def mstag(
    *arguments: str, cwd: Path = REPOSITORY, stubs: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own; packages in ``stubs`` hide the real ones."""
    places = [*([str(stubs)] if stubs else []), str(REPOSITORY)]
    return subprocess.run(
        [sys.executable, "-m", "mstag", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), **environment},
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def make_stub(folder: Path, name: str, code: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    return folder


class Here(Protocol):
    """The command in this process, where torch is there already."""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["mstag", *arguments])
        with pytest.raises(SystemExit) as end:
            entry()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def music_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a trained run and three files, one of them no music."""
    make_bundle(tmp_path / "runs" / "old" / "best", seed=1)
    os.utime(tmp_path / "runs" / "old" / "best" / "tagger.json", (1, 1))
    make_bundle(tmp_path / "runs" / "new" / "best")
    make_wav(tmp_path / "music" / "a.wav", 2.7)
    make_wav(tmp_path / "music" / "b" / "c.wav", 1, seed=1)
    (tmp_path / "music" / "text.mp3").write_text("not music")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- tag --------------------------------------------------------------------------------------


def test_tag_as_a_user_starts_it(music_folder: Path) -> None:
    stubs = music_folder / "stubs"
    for name in ("wandb", "sklearn", "matplotlib", "webdataset", "music21"):
        make_stub(stubs, name, "raise AssertionError('tagging does not need this')")
    done = mstag("tag", "music", "none", "--threshold", "0", cwd=music_folder, stubs=stubs)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"mstag: using {Path('runs/new/best')}, trained on synthetic: its tags mean what they mean "
        "there, and its scores are no probabilities",
        "mstag: 2 tagged, 2 not:",
        "mstag: error: music/text.mp3: cannot be decoded as audio: it is text",
        "mstag: error: none: no such file or folder",
    ]
    lines = done.stdout.splitlines()
    assert lines[0] == "music/a.wav  (0:03)"
    assert lines[1 + len(TAGS)] == "music/b/c.wav  (0:01)"
    assert len(lines) == 2 * (1 + len(TAGS))


def test_json_has_every_tag_and_a_line_for_each_path(music_folder: Path, here: Here) -> None:
    every = ("--format", "json", "--threshold", "0")
    done = here("tag", "./music", "music/a.wav", *every, "--model", "runs/new")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    paths = ["./music/a.wav", "./music/b/c.wav", "./music/text.mp3", "music/a.wav"]
    assert [row["path"] for row in rows] == paths
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    assert [len(row["tags"]) for row in rows] == [5, 5, 0, 5]
    assert rows[0]["tags"] == rows[3]["tags"]
    scores = [tag["score"] for tag in rows[0]["tags"]]
    assert scores == sorted(scores, reverse=True)
    assert rows[0]["duration_s"] == pytest.approx(2.7 * 64 * 128 / 8000, abs=1e-3)
    usual = here("tag", "music/a.wav", "--format", "json")
    assert usual.returncode == 0
    own = dict(zip(TAGS, THRESHOLDS, strict=True))
    fitting = [tag for tag in rows[0]["tags"] if tag["score"] >= own[tag["tag"]]]
    assert 0 < len(fitting) < 5
    assert json.loads(usual.stdout)["tags"] == fitting


def test_csv_top_and_thresholds(music_folder: Path, here: Here) -> None:
    top = here("tag", "music/a.wav", "--format", "csv", "--top", "2").stdout.splitlines()
    assert len(top) == 3
    assert top[0] == "path,tag,score"
    assert float(top[1].rsplit(",", 1)[1]) >= float(top[2].rsplit(",", 1)[1])
    own = here("tag", "music/a.wav", "--format", "json", "--threshold", "own")
    named = {tag["tag"]: tag["score"] for tag in json.loads(own.stdout)["tags"]}
    assert "slow" not in named, "its own threshold is 0.9"
    assert "guitar" in named, "its own threshold is 0.1"


def test_the_taggram_is_a_picture_of_one_file(music_folder: Path, here: Here) -> None:
    done = here("tag", "music/a.wav", "--taggram", "out/a.png")
    assert done.returncode == 0
    assert (music_folder / "out" / "a.png").read_bytes().startswith(b"\x89PNG")
    several = here("tag", "music", "--taggram", "out/b.png")
    assert (several.returncode, "name a folder" in several.stderr) == (2, True)


def test_names_that_the_terminal_cannot_show_stop_nothing(music_folder: Path) -> None:
    odd = os.fsdecode(b"music/\xc3\xa9\xe9.wav")
    try:
        Path("music/a.wav").rename(odd)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    done = mstag("tag", odd, "--format", "csv", cwd=music_folder, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert "music/\u00e9\\udce9.wav,guitar" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["tag"], 2, "Missing argument"),
        (["tag", "music", "--threshold", "1.5"], 2, "not in the range"),
        (["tag", "music", "--threshold", "nan"], 2, "not a score"),
        (["tag", "music", "--threshold", "high"], 2, "not a valid float"),
        (["tag", "music", "--top", "0"], 2, "not in the range"),
        (["tag", "music", "--format", "xml"], 2, "'xml'"),
        (["tag", "music", "--model", "none"], 1, "not a trained model"),
        (["tag", "none"], 1, "no such file"),
        (["export", "runs/new", "--to", "tf", "--out", "a.tf"], 1, "known: onnx, onnx-mel, pt2"),
        (["export", "runs/new", "--to", "onnx", "--out", "a.pt2"], 1, "must end in .onnx"),
        (["export", "none", "--to", "onnx", "--out", "a.onnx"], 1, "not a trained model"),
        (["report", "none"], 1, "not a run"),
        (["dashboard", "none"], 1, "no such folder"),
        (["serve", "--model", "none"], 1, "not a trained model"),
    ],
)
def test_mistakes(
    music_folder: Path, here: Here, arguments: list[str], code: int, why: str
) -> None:
    done = here(*arguments)
    assert done.returncode == code
    assert why in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: " if code == 2 else "mstag: error: ")
    assert done.stdout == ""


def test_without_a_trained_tagger_it_says_what_to_do(tmp_path: Path) -> None:
    make_wav(tmp_path / "a.wav")
    done = mstag("tag", "a.wav", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mstag: error: no trained tagger in runs/*/best: train one")
    assert done.stderr.count("\n") == 1


# ---- report, dashboard ------------------------------------------------------------------------


def make_run(run: Path, *sessions: str) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"clips_seen": 20, "train/loss": 0.5}\n')
    (run / "config.toml").write_text('[dataset]\nname = "demo"\n')
    for session in sessions:
        (run / "wandb" / session).mkdir(parents=True)
    return run


def test_report_is_written_into_the_run(tmp_path: Path, here: Here) -> None:
    run = make_run(tmp_path / "one")
    done = here("report", str(run))
    assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html"))
    assert "<h1>mstag: one</h1>" in (run / "report.html").read_text()
    out = tmp_path / "both.html"
    other = make_run(tmp_path / "two")
    assert here("report", str(run), str(other), "--out", str(out)).returncode == 0
    assert "mstag: one, two" in out.read_text()


ONLINE, OFFLINE = "run-20260101_120000-abc", "offline-run-20260101_110000-abc"


def test_dashboard_of_an_online_run_opens_the_browser(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", OFFLINE, ONLINE)
    (run / "wandb" / "url").write_text("https://wandb.example.org/me/mstag/runs/abc\n")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = mstag("dashboard", str(run), BROWSER=str(browser))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "https://wandb.example.org/me/mstag/runs/abc\n"
    assert (tmp_path / "opened").read_text() == done.stdout


@pytest.mark.parametrize(
    ("sessions", "url"),
    [([ONLINE], "file:///etc/passwd"), ([ONLINE], ""), ([], "")],
)
def test_dashboard_of_a_run_without_a_page_names_the_report(
    tmp_path: Path, sessions: list[str], url: str
) -> None:
    run = make_run(tmp_path / "run", *sessions)
    if url:
        (run / "wandb" / "url").write_text(url)
    done = mstag("dashboard", str(run), BROWSER="false")
    assert (done.returncode, done.stdout) == (0, f"as a page:   mstag report {run}\n")


def test_dashboard_of_an_offline_run_says_the_three_commands(tmp_path: Path) -> None:
    older = "run-20251231_120000-abc"
    run = make_run(tmp_path / "run", older, OFFLINE)
    (run / "wandb" / "url").write_text("https://wandb.example.org/")
    session = run / "wandb" / OFFLINE
    done = mstag("dashboard", str(run))
    assert done.stdout.splitlines() == [
        f"look at it:  wandb leet {session}",
        f"upload it:   wandb sync {session}",
        f"as a page:   mstag report {run}",
    ]


def test_dashboard_in_a_terminal_becomes_wandbs_viewer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", OFFLINE)
    stubs = make_stub(tmp_path / "stubs", "wandb", "import sys; print('VIEWER', sys.argv[1:])")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mstag", "dashboard", str(run)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "PYTHONPATH": f"{stubs}{os.pathsep}{REPOSITORY}"},
    )
    os.close(terminal)
    shown = b""
    while b"VIEWER" not in shown or b"]" not in shown:
        shown += os.read(controller, 4096)
    assert process.wait(timeout=60) == 0
    os.close(controller)
    arguments = shown.decode().replace("\r\n", "")
    assert arguments == f"VIEWER ['leet', '{run / 'wandb' / OFFLINE}']"


# ---- doctor -----------------------------------------------------------------------------------


def test_doctor_finds_this_machine_well() -> None:
    done = mstag("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "Python 3.",
        "torch 2.",
        "torchaudio 2.",
        "soundfile",
        "wandb",
        "devices",
        "cores",
    ):
        assert word in done.stdout
    quiet = mstag("doctor", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("package", "code", "words"),
    [
        ("torch", "raise ModuleNotFoundError('none', name='torch')", "torch is not installed"),
        ("torch", "raise OSError('libtorch.so: cannot open\\nfile')", "torch 2."),
        ("torchaudio", "raise ModuleNotFoundError('x', name='torchaudio')", "is not installed"),
        ("torchaudio", "raise OSError('libc10_cuda.so: cannot open')", "does not fit torch 2."),
        ("torchaudio", "raise RuntimeError('built for CUDA 13.0\\nnot 13.2')", "2.11 to 2.14"),
        ("torchaudio", "raise AttributeError('torch has no attribute x')", "does not fit"),
    ],
)
def test_doctor_explains_a_broken_pair_in_one_line(
    tmp_path: Path, package: str, code: str, words: str
) -> None:
    stubs = make_stub(tmp_path, package, code)
    if package == "torchaudio":
        make_stub(tmp_path, "torch", "")  # the real one takes seconds
    for arguments in (["doctor"], ["doctor", "--quiet"]):
        done = mstag(*arguments, stubs=stubs)
        assert done.returncode == 1
        assert done.stderr.startswith("mstag: error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
        assert "pip install" in done.stderr
        assert (done.stdout == "") == (arguments[-1] == "--quiet")


def test_a_broken_torch_is_one_line_in_other_commands(music_folder: Path) -> None:
    stubs = make_stub(music_folder / "stubs", "torch", "raise OSError('libtorch.so: no such file')")
    done = mstag("tag", "music", cwd=music_folder, stubs=stubs)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("run `mstag doctor`")
    assert "Traceback" not in done.stderr


def test_help_lists_the_commands() -> None:
    done = mstag("--help")
    assert done.returncode == 0
    for name in ("tag", "export", "report", "serve", "doctor", "dashboard"):
        assert f"  {name} " in done.stdout
    assert mstag("--version").stdout.startswith("mstag ")

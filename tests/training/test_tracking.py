"""metrics.jsonl and W&B: the same numbers, and nothing that stops a training."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
from make_shards import make_shards
from shared_data import REPOSITORY
from wandb_records import history, recorded, records

from mstag.config import FeatureConfig, WandbConfig
from mstag.training import tracking, wandb_run
from mstag.training.tracking import Tracker
from mstag.training.wandb_run import has_api_key, wanted_mode

OFF = WandbConfig(mode="disabled")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))  # so that Tracker's own is undone


def written(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_written_at_once_and_are_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, OFF, {}) as tracker:
        tracker.log({"step": 1, "train/loss": 0.5, "valid/roc_auc": None})
        assert len(written(tmp_path)) == 1, "a killed run must have what it logged"
        tracker.log({"step": 2, "train/loss": float("nan"), "train/grad_norm": float("inf")})
    assert written(tmp_path) == [
        {"step": 1, "train/loss": 0.5, "valid/roc_auc": None},
        {"step": 2, "train/loss": None, "train/grad_norm": None},
    ]


def test_a_resumed_run_drops_the_lines_of_steps_that_it_repeats(tmp_path: Path) -> None:
    with Tracker(tmp_path, OFF, {}) as tracker:
        for step in range(5):
            tracker.log({"step": step})
    with Tracker(tmp_path, OFF, {}, num_lines=3) as tracker:
        assert tracker.num_lines == 3
        tracker.log({"step": 3})
        assert tracker.num_lines == 4
    assert [line["step"] for line in written(tmp_path)] == [0, 1, 2, 3]
    with Tracker(tmp_path, OFF, {}):
        pass
    assert written(tmp_path) == [], "a new run starts with none"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path, WandbConfig(mode="offline"), {}, active=False) as tracker:
        tracker.log({"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", None, "auto"),
        ("auto", "online", "online"),
        ("auto", "Offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("auto", "nonsense", "auto"),
        ("offline", "online", "offline"),
        ("disabled", "online", "disabled"),
        ("online", "disabled", "online"),
    ],
)
def test_the_config_decides_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, mode: str, environment: str | None, expected: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert wanted_mode(WandbConfig(mode=mode)) == expected


def test_where_keys_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, own = "https://api.forge.coreweave.com", "https://wandb.example.org:8080"
    assert not has_api_key(cloud)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_api_key(cloud)
    assert has_api_key("https://api.wandb.ai")
    assert not has_api_key(own)
    (tmp_path / "netrc").write_text("machine wandb.example.org:8080 login user password key\n")
    assert has_api_key(own)
    assert not has_api_key(cloud)
    (tmp_path / "netrc").write_text("not a netrc\n")
    assert not has_api_key(cloud)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_api_key(cloud)


def test_online_without_a_key_says_so_and_goes_on_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        assert tracker.dashboard.startswith("wandb sync ")
    assert "no API key" in caplog.text


def test_without_wandb_the_numbers_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker(tmp_path, WandbConfig(), {}) as tracker:
        tracker.log({"step": 1})
        assert tracker.dashboard == str(tmp_path / "metrics.jsonl")
    assert len(written(tmp_path)) == 1
    assert caplog.text.count("W&B: off (") == 1


def test_wandb_offline_has_the_same_numbers_also_after_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = [
        {"step": s, "clips_seen": 20 * s, "epoch": s / 4, "train/loss": 1 / (s + 1)}
        for s in range(6)
    ]
    offline = WandbConfig(mode="offline")
    with Tracker(run, offline, {"train": {"seed": 0}}) as tracker:
        for line in lines[:5]:
            tracker.log(line)
        assert os.environ["WANDB_DATA_DIR"] == str(run / "wandb"), "staged files go there"
    run_id = (run / "wandb" / "run-id").read_text()
    with Tracker(run, offline, {}, num_lines=3) as tracker:
        for line in lines[3:]:
            tracker.log(line)
        command = tracker.dashboard
    assert written(run) == lines
    assert (run / "wandb" / "run-id").read_text() == run_id
    assert command.startswith("wandb sync ")
    folder = Path(command.removeprefix("wandb sync "))
    assert folder.parent == run / "wandb"
    assert recorded(folder) == lines, "the newest folder has the whole run"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}, "nothing outside the run"


def test_online_without_a_network_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 2.0)
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it read its environment once, for an earlier test
    with Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        tracker.log({"step": 1})
        assert tracker.dashboard.startswith("wandb sync ")
    assert "cannot go online" in caplog.text
    assert len(written(tmp_path)) == 1


def test_a_server_that_never_answers_holds_the_start_up_for_the_timeout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 2.0)
        wandb.teardown()
        with Tracker(tmp_path, WandbConfig(), {}) as tracker:
            tracker.log({"step": 1})
            assert tracker.dashboard.startswith("wandb sync ")
    wandb.teardown()
    assert "cannot go online" in caplog.text


class OnlineRun:
    """Stands for W&B's object of an online run, of whose lines the servers have some."""

    offline = False
    url = "https://wandb.example.org/me/mstag/runs/abc"

    def __init__(self, held: int = 0, fails_at: int = 10**9) -> None:
        self.starting_step, self.fails_at = held, fails_at
        self.dir = "run/wandb/run-1/files"
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.committed: list[tuple[int, bool]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def log(self, line: dict[str, Any], *, step: int, commit: bool) -> None:
        assert threading.current_thread() is not threading.main_thread(), "training would wait"
        if len(self.sent) >= self.fails_at:
            raise ConnectionError("the line went dead")
        if line:
            self.sent.append((step, line))
        self.committed.append((step, commit))

    def finish(self, *, exit_code: int) -> None:
        assert exit_code == 0
        self.finished += 1


def go_online(monkeypatch: pytest.MonkeyPatch, stand_in: OnlineRun) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_run, "_init", lambda *_: stand_in)


@pytest.mark.parametrize("held", [0, 2, 3, 5])
def test_an_online_run_that_goes_on_has_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """The servers may have fewer lines than the checkpoint knows of, or more."""
    lines = [{"step": step} for step in range(7)]
    with Tracker(tmp_path, OFF, {}) as tracker:
        for line in lines[:5]:
            tracker.log(line)
    online = OnlineRun(held=held)
    go_online(monkeypatch, online)
    with Tracker(tmp_path, WandbConfig(mode="online"), {}, num_lines=3) as tracker:
        for line in lines[3:]:
            tracker.log(line)
    assert online.sent == [(number, lines[number]) for number in range(held, 7)]
    assert all(commit for _, commit in online.committed), "a kill would lose what is held back"


def test_wandb_that_breaks_in_the_middle_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    online = OnlineRun(fails_at=2)
    go_online(monkeypatch, online)
    with Tracker(tmp_path, WandbConfig(mode="online"), {}) as tracker:
        for step in range(5):
            tracker.log({"step": step})
    assert tracker.dashboard == str(tmp_path / "metrics.jsonl")
    assert len(written(tmp_path)) == 5
    assert len(online.sent) == 2
    assert online.finished == 1, "W&B's own process must not be left to the interpreter's end"
    assert caplog.text.count("W&B: stopped logging (the line went dead)") == 1


def test_media_wait_until_they_are_affordable_but_the_last_are_always_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "_init", lambda *_: OnlineRun())
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking.wandb_media, "tag_table", lambda *_: {})
    made: list[str] = []
    monkeypatch.setattr(tracking.wandb_media, "all_media", lambda e, *_: made.append(e) or {})
    now = [0.0]
    evaluation: Any = SimpleNamespace(split="valid", report={})
    store: Any = SimpleNamespace(name="s", manifest=None)
    with Tracker(tmp_path, WandbConfig(), {}, store=store) as tracker:
        tracker._stopwatch = tracking.Stopwatch(lambda: now[0])
        now[0] = 299.0 * tracking.MEDIA_S
        tracker.evaluation({"step": 1}, evaluation, is_best=True)
        assert not made, "three times their cost is more than a hundredth of the time"
        now[0] = 301.0 * tracking.MEDIA_S
        tracker.evaluation({"step": 2}, evaluation)
        assert not made, "not the best"
        tracker.evaluation({"step": 3}, evaluation, is_best=True)
        assert len(made) == 1
        now[0] = 1.0
        tracker.evaluation({"step": 4}, evaluation, is_last=True)
        assert len(made) == 2
    assert all("track/share" in line for line in written(tmp_path))


def test_media_that_fail_leave_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    online = OnlineRun()
    go_online(monkeypatch, online)
    broken: Any = SimpleNamespace(split="valid", report=None)
    store: Any = SimpleNamespace(name="s", manifest=None)
    with Tracker(tmp_path, WandbConfig(), {}, store=store) as tracker:
        tracker.evaluation({"step": 1, "valid/loss": 0.5}, broken, is_last=True)
        tracker.bundle(tmp_path / "nowhere")
    assert written(tmp_path)[0]["valid/loss"] == 0.5
    assert online.sent[0][1]["valid/loss"] == 0.5
    assert caplog.text.count("W&B: left out") >= 3


KILLED = """
import os, signal, sys
from pathlib import Path
from mstag.config import WandbConfig
from mstag.training.wandb_run import WandbRun
run = Path(sys.argv[1])
shown = WandbRun(run, WandbConfig(mode="offline"), {}, job="train", record=run, past=[])
for step in range(8):
    shown.log({"step": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_killed_offline_and_resumed_has_every_line_once(tmp_path: Path) -> None:
    """By the rule: the newest folder takes the place of those before it."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, env=tiny_run.environment()
    )
    assert done.returncode == -signal.SIGKILL
    # What Tracker has written by then: the rest of it takes seconds to be imported.
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(8)))
    time.sleep(1.1)  # W&B names folders by the second
    with Tracker(tmp_path, WandbConfig(mode="offline"), {}, num_lines=5) as tracker:
        for step in range(5, 10):
            tracker.log({"step": step})
    first, newest = sorted((tmp_path / "wandb").glob("offline-run-*"))
    lines = [
        (record["history"]["item"]["_step"], record["history"]["item"]["step"])
        for record in records(newest)
        if record["type"] == "history"
    ]
    assert lines == [(step, step) for step in range(10)]
    # Where both are synced, W&B's step says which lines are the same.
    earlier = [line["step"] for line in recorded(first)]
    assert earlier == list(range(len(earlier)))


# ---- A whole training, read back ------------------------------------------------------------


TRAIN_AND_EVAL = """
import json, runpy, sys
for script, arguments in zip(("train.py", "eval.py"), json.loads(sys.argv[1]), strict=True):
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
"""Both scripts in one process: its start is what costs most."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an offline run that train.py made and eval.py scored; HOME beside it."""
    folder = tmp_path_factory.mktemp("watched")
    make_shards(
        folder / "shards", tiny_run.SIZES, FeatureConfig(n_mels=16, num_frames=128), partial=True
    )
    text = tiny_run.CONFIG.replace("num_frames = 64", "num_frames = 128")
    text = text.replace('"disabled"', '"offline"').replace("[train]", "[train]\nema_decay = 0.5")
    (folder / "tiny.toml").write_text(text)
    (folder / "audio").mkdir()
    for number in (0, 1, 2):
        (folder / "audio" / f"{number}.mp3").write_bytes(b"ID3" + bytes(number))
    for name in ("home", "matplotlib", "tmp"):
        (folder / name).mkdir()
    places = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),  # its own cache, which is no W&B's
        "PYTHONPATH": str(REPOSITORY),  # as a script of the repository has it by itself
    }
    settings = ["model.chunk_frames=64", f"wandb.audio_dir={folder / 'audio'}", "train.epochs=2"]
    script = folder / "train_and_eval.py"
    script.write_text(TRAIN_AND_EVAL)
    scoring = [str(folder / "run"), "--shards", str(folder / "shards")]
    done = tiny_run.run_script(
        str(script), json.dumps([tiny_run.arguments(folder, "run", *settings), scoring]), **places
    )
    assert done.returncode == 0, done.stderr
    assert "dashboard: wandb sync" in done.stdout
    assert "W&B: wandb sync" in done.stderr
    assert "W&B: left out" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def held(trained: Path) -> list[dict[str, Any]]:
    """What W&B holds of the training."""
    (folder,) = (trained / "run" / "wandb").glob("offline-run-*")
    return records(folder)


def table(run: Path, key: str) -> dict[str, Any]:
    """The newest table that was logged under a key."""
    section, split, name = key.split("/")
    tables = run.glob(f"wandb/**/files/media/table/{section}/{split}/{name}_*.table.json")
    content: dict[str, Any] = json.loads(
        max(tables, key=lambda path: path.stat().st_mtime_ns).read_text()
    )
    return content


def test_everything_is_below_the_run(trained: Path) -> None:
    assert list((trained / "home").rglob("*")) == []
    # torch leaves an empty folder of its own.
    left = [path.name for path in (trained / "tmp").rglob("*")]
    assert [name for name in left if not name.startswith("torchinductor")] == []
    names = {path.name for path in trained.iterdir()}
    own = {"shards", "tiny.toml", "audio", "home", "tmp", "matplotlib", "train_and_eval.py"}
    assert names == own | {"run"}


def test_each_line_is_there_once_with_its_axes(trained: Path, held: list[dict[str, Any]]) -> None:
    lines = written(trained / "run")
    shown = history(held)
    assert [row["_step"] for row in shown] == list(range(len(lines)))
    for line, row in zip(lines, shown, strict=True):
        assert line.items() <= row.items()
        assert {"step", "clips_seen", "epoch"} <= set(row)
    axes = {
        record["metric"]["glob_name"]: record["metric"]["step_metric"]
        for record in held
        if record["type"] == "metric" and "glob_name" in record["metric"]
    }
    assert axes.pop("train/*") == "clips_seen"
    assert set(axes) == {"valid/*", "test/*", "data/*", "tags/*", "listen/*", "track/*"}
    assert set(axes.values()) == {"epoch"}


def test_the_scalars_that_explain_a_run(held: list[dict[str, Any]]) -> None:
    keys = set().union(*history(held))
    train = ("loss", "lr", "grad_norm", "clips_per_s", "data_wait", "memory_gb", "utilisation")
    assert {f"train/{key}" for key in train} <= keys
    assert {"train/weight_norm", "train/ema_distance"} <= keys
    assert {"data/seen", "data/dropped", "data/refused"} <= keys
    assert {"valid/loss", "valid/roc_auc", "valid/pr_auc", "test/roc_auc", "test/pr_auc"} <= keys
    memory = [row["train/memory_gb"] for row in history(held) if "train/memory_gb" in row]
    assert 0.05 < memory[0] < 100
    updates: dict[str, Any] = {}
    for record in held:
        if record["type"] == "summary":
            updates |= record["summary"]["update"]
    assert 0 < updates["track/share"] < 1
    assert updates["track/seconds"] > 0


def test_the_settings_of_the_run(held: list[dict[str, Any]]) -> None:
    (run,) = (record["run"] for record in held if record["type"] == "run")
    shown = run["config"]["update"]
    assert (run["display_name"], run["job_type"]) == ("run", "train")
    assert run["run_group"] == shown["recipe"]
    assert shown["train"]["epochs"] == 2
    assert shown["device"] == "cpu"
    assert shown["network"]["weights"] > 0
    assert shown["network"]["flops_per_clip"] > 0
    assert {"digest", "split_rule", "leaks", "oracle_roc_auc", "clips", "tags"} <= set(
        shown["data"]
    )
    if (REPOSITORY / ".git").exists():
        assert set(shown["git"]) == {"commit", "dirty"}


def test_tags_and_curves(trained: Path, held: list[dict[str, Any]]) -> None:
    rows = [row for row in history(held) if "tags/valid/table._type" in flat(row)]
    assert [row["epoch"] for row in rows] == [1, 2], "the table is there each time"
    (first, last), test = (flat(row) for row in rows), flat(history(held)[-1])
    for row, split in ((last, "valid"), (test, "test")):
        for name in ("bars", "curves", "confusion_map"):
            assert row[f"tags/{split}/{name}._type"] == "image-file"
        for name in ("table", "extremes", "confusions"):
            assert row[f"tags/{split}/{name}._type"] == "table-file"
        for name in ("roc", "pr", "calibration", "scores"):
            assert row[f"tags/{split}/{name}_table._type"] == "table-file", "W&B's own charts"
    assert "tags/valid/curves._type" not in first, "they wait for the last one, or for the time"
    tags = table(trained / "run", "tags/valid/table")
    assert tags["columns"] == tracking.wandb_media.TAG_COLUMNS
    assert [row[0] for row in tags["data"]] == [f"tag {i}" for i in range(5)]
    assert any(row[-1] for row in tags["data"]), "what changed since epoch 1"


def test_clips_to_look_at_and_to_listen_to(trained: Path, held: list[dict[str, Any]]) -> None:
    last = flat([row for row in history(held) if "valid/loss" in row][-1])
    assert last["listen/valid/spectrograms.count"] == 6
    assert last["listen/valid/taggrams.count"] == 3
    # With its media a table is part of an artifact.
    staged = [path.read_bytes() for path in (trained / "run/wandb/artifacts/staging").iterdir()]
    tables = [json.loads(content) for content in staged if b'"predicted tags"' in content]
    clips = next(found for found in tables if found["data"][0][0].startswith("valid"))
    assert clips["columns"][:6] == tracking.wandb_media.CLIP_COLUMNS
    wrong = [row[1] for row in clips["data"]]
    assert len(wrong) == sum(tiny_run.SIZES["valid"])
    assert wrong == sorted(wrong, reverse=True), "mistakes first"
    media = [dict(zip(clips["columns"], row, strict=True)) for row in clips["data"]]
    assert all(row["spectrogram"]["_type"] == "image-file" for row in media)
    assert sum(row["taggram"] is not None for row in media) == 3
    played = [row for row in media if row["audio"] is not None]
    assert {row["clip"] for row in played} == {"valid0", "valid1", "valid2"}


def test_the_run_hands_over_data_and_model(trained: Path, held: list[dict[str, Any]]) -> None:
    for found in (held, records(*(trained / "run/wandb/eval/wandb").glob("offline-run-*"))):
        made = {r["artifact"]["type"]: r["artifact"] for r in found if r["type"] == "artifact"}
        data = json.loads(made["dataset"]["metadata"])
        assert made["dataset"]["name"] == "shards-synthetic"
        assert {"digest", "split_rule", "leaks"} <= set(data)
        references = [e for e in made["dataset"]["manifest"]["contents"] if "ref" in e]
        assert len(references) == len(list((trained / "shards").iterdir()))
        assert made["model"]["name"] == "model-run"
        assert json.loads(made["model"]["metadata"])["scores"]["test"]["roc_auc"] > 0
    made = {r["artifact"]["type"]: r["artifact"] for r in held if r["type"] == "artifact"}
    assert set(made["model"]["aliases"]) == {"best", "latest"}


def test_an_evaluation_is_a_run_of_the_same_group(
    trained: Path, held: list[dict[str, Any]]
) -> None:
    found = records(*(trained / "run/wandb/eval/wandb").glob("offline-run-*"))
    (run,) = (record["run"] for record in found if record["type"] == "run")
    assert (run["display_name"], run["job_type"]) == ("run-eval", "eval")
    (training,) = (record["run"] for record in held if record["type"] == "run")
    assert run["run_group"] == training["run_group"]
    (row,) = history(found)
    report = json.loads((trained / "run" / "eval-test.json").read_text())
    assert row["test/roc_auc"] == report["roc_auc"]
    assert flat(row)["listen/test/clips._type"] == "table-file"


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the history with the fields of its media as keys of their own."""
    return {
        f"{key}.{name}" if name else key: inner
        for key, value in row.items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }

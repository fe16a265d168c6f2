"""Following a run: every checkpoint once, whatever happens to it, the watcher or the training."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from click.testing import CliRunner
from wandb_records import history, records

import train
from mstag import config
from mstag.data.store import open_store
from mstag.training import checkpoint, identity, lineage, runs, watch

STEPS = [6, 12, 18]
OPTIONS = {"num_resamples": 0, "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, shards without their test split, and a finished run with all its checkpoints.

    Watching could not look at the test split if it tried.
    """
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    argv = tiny_run.arguments(path, "run", "train.keep_checkpoints=9")
    done = CliRunner().invoke(train.main, argv)
    assert done.exception is None
    blind = shutil.copytree(path / "shards", path / "blind")
    for file in [*blind.glob("test-*"), *blind.glob("*test*")]:
        file.unlink(missing_ok=True)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run that has begun, without a checkpoint yet."""
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(folder / "run/config.toml", path)
    return path


class Story:
    """What happens to a run while its watcher has nothing to do: one event a pause."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.run = run
        self.shown: list[int] = []
        self.clock_s = 0.0

    def train(self, step: int) -> Path:
        """The training saves the checkpoint of a step."""
        name = f"checkpoints/step-{step:08d}.pt"
        (self.run / "checkpoints").mkdir(exist_ok=True)
        return Path(shutil.copy(self.folder / "run" / name, self.run / name))

    def finish(self) -> None:
        (self.run / "finished.json").write_text('{"step": 18}')

    def follow(self, *events: Callable[[], object], patience_s: float = 3600) -> list[int]:
        """Watches until the end; returns the steps whose reports were shown."""
        left = list(events)
        self.shown = []

        def pause(seconds: float) -> None:
            self.clock_s += seconds
            if left:
                left.pop(0)()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch.Patience.__init__, "__defaults__", (lambda: self.clock_s,))
            watch.watch(
                self.run,
                lambda settings: open_store(self.folder / "blind"),
                lambda report: self.shown.append(report["step"]),
                patience_s=patience_s,
                device=torch.device("cpu"),
                options=OPTIONS,
                pause=pause,
            )
        assert not left
        return self.shown


@pytest.fixture
def story(folder: Path, run: Path, caplog: pytest.LogCaptureFixture) -> Story:
    caplog.set_level("INFO", logger="mstag")
    return Story(folder, run)


def recorded(run: Path) -> list[int]:
    return [line["step"] for line in watch.read_record(run)]


def test_each_checkpoint_is_scored_as_training_scored_it(story: Story) -> None:
    shown = story.follow(
        lambda: story.train(6), lambda: (story.train(18), story.train(12)), story.finish
    )
    assert shown == STEPS, "oldest first"
    keys = ("step", "clips_seen", "epoch", "valid/roc_auc", "valid/pr_auc", "valid/loss")
    logged = [
        {key: line[key] for key in keys}
        for line in tiny_run.metrics_of(story.folder / "run")
        if "valid/roc_auc" in line
    ]
    lines = watch.read_record(story.run)
    for line, other in zip(lines, logged, strict=True):
        assert line.pop("valid/loss") == pytest.approx(other.pop("valid/loss"), abs=1e-6)
        assert line == other


def test_a_restarted_watcher_scores_none_twice(story: Story) -> None:
    story.train(6)
    with pytest.raises(KeyboardInterrupt):
        story.follow(interrupt)
    assert recorded(story.run) == [6]
    # Killed while it wrote: the line does not count, and what follows is not glued to it.
    with (story.run / watch.RECORD).open("a") as file:
        file.write('{"step": 12, "valid')
    shown = story.follow(lambda: story.train(12), lambda: (story.train(18), story.finish()))
    assert shown == [12, 18]
    assert recorded(story.run) == STEPS
    assert story.follow() == [], "nothing is left to do"


def interrupt() -> None:
    raise KeyboardInterrupt


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_finite_weights(path: Path) -> None:
    state = checkpoint.load(path)
    next(iter(state["engine"]["model"].values())).view(-1)[0] = float("nan")
    checkpoint.save(path.parent, state, keep=9)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "step-00000012.pt: cut short or damaged"),
        (without_finite_weights, "step-00000012.pt: its weights are not finite"),
    ],
)
def test_a_damaged_checkpoint_is_named_once_and_passed_over(
    story: Story, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], message: str
) -> None:
    shown = story.follow(
        lambda: harm(story.train(12)), lambda: None, lambda: (story.train(18), story.finish())
    )
    assert shown == [18]
    assert caplog.text.count(message) == 1
    assert "passed over" in caplog.text


def test_a_half_copied_checkpoint_is_scored_when_it_is_whole(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    def copy_part(num_bytes: int) -> None:
        path = story.train(12)
        path.write_bytes(path.read_bytes()[:num_bytes])

    shown = story.follow(
        lambda: copy_part(1000),
        lambda: copy_part(100_000),
        lambda: story.train(12),
        lambda: (story.train(18), story.finish()),
    )
    assert shown == [12, 18]
    assert caplog.text.count("cut short or damaged") == 1


def test_removed_checkpoints_are_named(
    story: Story, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training keeps the newest few: those that wait behind a slow score may go."""
    score_split = watch.score.score_split

    def slow(*args: Any, **options: Any) -> Any:
        (story.run / "checkpoints/step-00000012.pt").unlink(missing_ok=True)
        return score_split(*args, **options)

    monkeypatch.setattr(watch.score, "score_split", slow)
    shown = story.follow(lambda: [story.train(step) for step in STEPS], story.finish)
    assert shown == [6, 18]
    assert caplog.text.count("step 12: removed before it could be scored") == 1


def test_averaged_weights_are_scored_where_there_are_any(story: Story) -> None:
    path = story.train(18)
    state = checkpoint.load(path)
    average = checkpoint.load(story.folder / "run/checkpoints/step-00000006.pt")["engine"]["model"]
    assert watch.weights_to_score(state) is state["engine"]["model"]
    state["engine"]["ema"] = {"model": average, "num_updates": 1.0}
    checkpoint.save(path.parent, state, keep=9)
    story.finish()
    assert story.follow() == [18]
    scored = watch.read_record(story.run)[0]["valid/loss"]
    logged = [line for line in tiny_run.metrics_of(story.folder / "run") if "valid/loss" in line]
    assert scored == pytest.approx(logged[0]["valid/loss"], abs=1e-6), "the loss of step 6"


def test_a_run_that_begins_anew_is_watched_anew(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    shown = story.follow(
        lambda: story.train(6),
        lambda: (story.run.rename(story.run.with_name("run.1")), story.run.mkdir()),
        lambda: shutil.copy(story.folder / "run/config.toml", story.run),
        lambda: story.train(6),
        lambda: (story.train(18), story.finish()),
    )
    assert shown == [6, 6, 18]
    assert recorded(story.run.with_name("run.1")) == [6]
    assert recorded(story.run) == [6, 18]
    assert "has been moved aside" in caplog.text


def test_nothing_is_written_before_the_training_has_begun(story: Story) -> None:
    """A folder that holds files but no config is refused by train.py."""
    shutil.rmtree(story.run)
    with pytest.raises(ValueError, match=r"no training has begun there for 0\.1 minutes"):
        story.follow(patience_s=6)
    assert not story.run.exists()


def test_other_shards_are_refused(story: Story) -> None:
    path = story.train(6)
    state = checkpoint.load(path)
    features = config.FeatureConfig(n_mels=17, num_frames=64)
    checkpoint.save(path.parent, state | identity.of_model(features, ["tag 0"]), keep=9)
    with pytest.raises(ValueError, match=r"other features .*features.n_mels: 17 -> 16.*--shards"):
        story.follow()


def test_patience(story: Story) -> None:
    """Whatever changes counts, and how long it takes does not matter."""
    metrics = story.run / "metrics.jsonl"
    write = [lambda n=n: metrics.write_text("{}\n" * n) for n in range(5)]  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"has changed \(?for 0\.05 minutes .* before its first"):
        story.follow(*write, patience_s=3)
    assert story.clock_s == (5 + 2) * watch.POLL_EVERY_S
    story.clock_s = 0
    story.train(6)
    with pytest.raises(ValueError, match="seems dead after step 6"):
        story.follow(patience_s=3)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_finished_run_without_its_last_checkpoint(story: Story, how: str) -> None:
    story.train(12)
    if how == "damaged":
        damage(story.train(18))
    story.finish()
    with pytest.raises(ValueError, match=r"its last checkpoint \(step 18\) could not be scored"):
        story.follow()
    assert story.shown == [12]
    assert story.clock_s < 2 * watch.GRACE_S
    # A shared folder that was late with it.
    assert story.follow(lambda: None, lambda: story.train(18)) == [18]


def test_wandb_shows_it_beside_the_training(
    story: Story, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # so that the run's own is undone
    text = (story.run / "config.toml").read_text().replace('"disabled"', '"offline"')
    (story.run / "config.toml").write_text(text)
    story.train(6)
    with pytest.raises(KeyboardInterrupt):
        story.follow(interrupt)
    story.follow(lambda: (story.train(18), story.finish()))
    sessions = sorted(story.run.glob("wandb/watch/wandb/offline-run-*"))
    # offline-run-TIME-ID, and a number behind it where two began within a second.
    assert len({path.name.split("-")[3] for path in sessions}) == 1, "one W&B run"
    assert list(story.run.glob("wandb/*run-*")) == [], "the training's place is the training's"
    found = records(sessions[-1])
    shown = [{k: v for k, v in row.items() if not k.startswith("_")} for row in history(found)]
    assert shown == watch.read_record(story.run), "the newest folder has all of it"
    about = next(record["run"] for record in found if record["type"] == "run")
    assert about["display_name"] == "run-watch"
    assert about["job_type"] == "watch"
    recipe = lineage.recipe(runs.read_config(story.run))
    assert about["run_group"] == recipe == about["config"]["update"]["recipe"], "the training's"
    assert "leaks" in about["config"]["update"]["data"]
    data = next(record["artifact"] for record in found if record["type"] == "artifact")
    assert data["name"] == "shards-synthetic"


def start_watching(folder: Path, run: str, *argv: str) -> subprocess.Popen[str]:
    places = [str(folder / run), "--shards", str(folder / "blind")]
    return tiny_run.start("eval.py", *places, "--watch", "--num-resamples", "0", *argv)


def wait_until(come: Callable[[], bool]) -> None:
    for _ in range(6000):
        if come():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_real_processes_killed_and_restarted(folder: Path) -> None:
    run = folder / "lived"
    settings = ("train.checkpoint_every_s=0", "train.keep_checkpoints=50")
    train_argv = tiny_run.arguments(folder, "lived", *settings)

    # Before there is a run: waits.
    first = start_watching(folder, "lived")
    assert first.stderr is not None
    assert "waiting for a training" in first.stderr.readline()
    assert not run.exists()

    # Side by side, until the training is killed and Ctrl-C ends the watcher.
    training = tiny_run.start("train.py", *train_argv)
    wait_until(lambda: len(checkpoint.paths(run / "checkpoints")) >= 6)
    training.kill()
    training.communicate()
    wait_until(lambda: len(recorded(run)) >= 2)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert out.count("ROC-AUC") == len(recorded(run))
    assert "Traceback" not in err
    assert not (run / "finished.json").exists(), "killed too late to show anything"
    damage(checkpoint.paths(run / "checkpoints")[0])
    broken = checkpoint.step_of(checkpoint.paths(run / "checkpoints")[0])

    # Another scores what is left, and then gives up on the dead training.
    argv = [str(run), "--shards", str(folder / "blind"), "--watch", "--num-resamples", "0"]
    second = CliRunner().invoke(tiny_run.load_eval().main, [*argv, "--patience", "0.02"])
    assert f"seems dead after step {broken}; the same train.py command" in str(second.exception)
    assert recorded(run) == list(range(1, broken))

    # Training goes on, and a third ends with it.
    third = start_watching(folder, "lived", "--json", "-")
    assert CliRunner().invoke(train.main, train_argv).exception is None
    out, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    assert sorted(recorded(run)) == list(range(1, 19)), "each once"
    reports = [json.loads(line) for line in out.splitlines()]
    assert [report["step"] for report in reports] == recorded(run)[broken - 1 :]
    assert {report["split"] for report in reports} == {"valid"}

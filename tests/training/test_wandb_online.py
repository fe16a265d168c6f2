"""The real W&B client, online, with servers of our own on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from make_shards import make_shards
from shared_data import REPOSITORY
from wandb_server import Server, wandb_server

from mstag import config, metrics
from mstag.config import WandbConfig
from mstag.data.store import open_store
from mstag.models.predict import Predictions
from mstag.training import lineage, tracking, workspace
from mstag.training.tracking import Tracker
from mstag.training.wandb_media import Evaluation

FEATURES = config.FeatureConfig(n_mels=16, num_frames=64)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Servers, and an account on them."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))  # so that Tracker's own are undone
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as standing_in:
        monkeypatch.setenv("WANDB_BASE_URL", standing_in.address)
        wandb.teardown()  # it read its environment once, for an earlier test
        yield standing_in
        wandb.teardown()


def make_evaluation(split: str) -> Evaluation:
    """Of four clips that the model gets wrong."""
    labels = np.eye(5, dtype=np.uint8)[:4]
    scores = np.full(labels.shape, 0.3, np.float32)
    known = Predictions([f"c{i}" for i in range(4)], scores, labels, None)
    names = [f"tag {i}" for i in range(5)]
    report = metrics.evaluate(known.labels, known.scores, names, known.mask, num_resamples=0)
    return Evaluation({"split": split, "loss": 0.6, **report}, known)


def test_a_run_its_resumption_and_its_evaluation(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_shards(tmp_path / "shards", {"train": [4], "valid": [2], "test": [2]}, FEATURES)
    store = open_store(tmp_path / "shards")
    (run / "best").mkdir(parents=True)
    (run / "best" / "tagger.json").write_text('{"scores": {"epoch": 1}}')
    settings = lineage.run_settings(config.Config(), store)
    online = WandbConfig()
    lines = [{"step": step, "epoch": step / 4, "train/loss": 0.5} for step in range(7)]

    with Tracker(run, online, settings, store=store) as tracker:
        for line in lines[:5]:
            tracker.log(line)
        page = tracker.dashboard
    run_id = page.rsplit("/", 1)[1]
    assert page == f"{server.address}/me/mstag/runs/{run_id}"
    assert [line["step"] for line in server.lines[run_id]] == [0, 1, 2, 3, 4]

    # It was killed, and its checkpoint knows of three lines.
    with Tracker(run, online, settings, num_lines=3, store=store) as tracker:
        for line in lines[3:]:
            tracker.log(line)
        tracker.evaluation({"epoch": 2}, make_evaluation("test"), is_last=True)
        tracker.bundle(run / "best")
    arrived = server.lines[run_id]
    assert [line["_step"] for line in arrived] == list(range(8)), "each once"
    assert [line.get("step") for line in arrived] == [*range(7), None]
    assert {key: arrived[5][key] for key in lines[5]} == lines[5]
    assert {"tags/test/table", "tags/test/curves", "tags/test/calibration_table"} <= set(arrived[7])
    charts = json.loads(server.runs[run_id]["config"])["_wandb"]["value"]["visualize"]
    assert charts["tags/test/calibration"]["panel_type"] == "Vega2"

    # An evaluation of its own takes in both, and the model is the one that was trained.
    tracking.show_evaluation(run, settings, online, store, make_evaluation("test"), epoch=2.0)
    (other,) = set(server.runs) - {run_id}
    assert server.runs[other]["jobType"] == "eval"
    assert server.runs[other]["groupName"] == server.runs[run_id]["groupName"] != "run"
    used = {run: {server.name_of(a) for who, a in server.used if who == run} for run in server.runs}
    assert used == {run_id: {"shards-synthetic"}, other: {"shards-synthetic", "model-run"}}
    (model,) = (a for a in server.artifacts.values() if a["artifactTypeName"] == "model")
    assert model["runs"] == [run_id, None], "one version, made by the training alone"
    assert {alias["alias"] for alias in model["aliases"]} == {"best", "latest"}
    assert model["state"] == "COMMITTED"

    saved = workspace.save(run, page)
    assert saved.startswith(f"{server.address}/me/mstag?nw=")
    assert workspace.save(run, page) == saved
    assert workspace.save(tmp_path / "another run", page) == saved, "one of a project"
    ((name, view),) = server.views.items()
    assert name == f"nw-{saved.partition('=')[2]}-v"
    sections = view["section"]["panelBankConfig"]["sections"]
    shown = [section["name"] for section in sections if section["panels"]]
    assert shown == ["Score", "Loss", "Tags", "Listen", "Speed", "Data"]


ONLINE = """
import sys, threading, time
from pathlib import Path
import wandb
from mstag.config import WandbConfig
from mstag.training import wandb_run
from mstag.training.wandb_run import WandbRun
wandb_run.DRAIN_TIMEOUT_S, wandb_run.FINISH_TIMEOUT_S, wandb_run.STALL_S = 25.0, 4.0, 2.0
run = Path(sys.argv[1])
shown = WandbRun(run, WandbConfig(mode="online"), {}, job="train", record=run / "m", past=[])
shown.log({"step": 0})
print(shown.where, flush=True)
input()
started = time.monotonic()
for step in range(1, 6):
    table = wandb.Table(columns=["a"], data=[[step]])
    shown.log({"step": step}, {"tags/table": table, "tags/other": table})
print(time.monotonic() - started, flush=True)
shown.finish(failed=False)
"""


@pytest.mark.slow
def test_servers_that_stop_answering_hold_nothing_up_and_lose_no_number(tmp_path: Path) -> None:
    """Measured on W&B 0.31: each table takes 19 s when the servers do not answer."""
    with wandb_server() as server:
        account = tiny_run.environment(
            WANDB_API_KEY="0" * 40, WANDB_BASE_URL=server.address, HOME=str(tmp_path / "home")
        )
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", ONLINE, str(tmp_path)],
            cwd=REPOSITORY,
            env=account,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            where = process.stdout.readline().strip()
            server.is_dead.set()
            out, err = process.communicate("\n", timeout=120)
        took_s = time.monotonic() - started
        assert where.startswith(f"{server.address}/me/mstag/runs/"), where + err
        assert process.returncode == 0, err
        assert float(out) < 2, "logging waited for the servers"
        assert took_s < 100
        (folder,) = (tmp_path / "wandb").glob("run-*-*")
        command = f"wandb sync --include-online {folder}"
        assert f"`{command}` uploads what is missing" in err
        run_id = where.rsplit("/", 1)[1]
        assert len(server.lines.get(run_id, [])) < 6, "not dead soon enough to show anything"

        server.is_dead.clear()
        synced = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,  # where it leaves its log
            env=account,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert synced.returncode == 0, synced.stdout + synced.stderr
        arrived = server.lines[run_id]
        assert [(line["_step"], line["step"]) for line in arrived] == [(n, n) for n in range(6)]


@pytest.mark.slow
def test_a_sweep_of_wandb_trains_what_was_asked_for(tmp_path: Path) -> None:
    """W&B's agent looks after its trial every 5 s."""
    path = tiny_run.make_config(tmp_path)
    path.write_text(path.read_text().replace("epochs = 3", "epochs = 1"))
    path.write_text(path.read_text().replace('"disabled"', '"auto"'))
    parameters = "parameters: {train.batch_size: {values: [6, 4]}}"
    (tmp_path / "sweep.yaml").write_text(f"program: train.py\nmethod: random\n{parameters}\n")
    # Where it is started there is no checkout: only the script, and a place for runs.
    (tmp_path / "train.py").symlink_to(REPOSITORY / "train.py")
    with wandb_server() as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mstag", "sweep", "sweep.yaml", "--config", path.name),
                *("--shards", "shards", "--out", "runs/synthetic-sweep", "--count", "1"),
            ],
            cwd=tmp_path,
            env=tiny_run.environment(
                WANDB_API_KEY="0" * 40,
                WANDB_BASE_URL=server.address,
                HOME=str(tmp_path / "home"),
                PYTHONPATH=str(REPOSITORY),
            ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        run = tmp_path / "runs" / "synthetic-sweep" / "trial1"
        assert (run / "finished.json").exists(), done.stdout + done.stderr
        assert "batch_size = 6" in (run / "config.toml").read_text()
        assert server.runs["trial1"]["sweep"] == "sweep1"
        assert any("valid/roc_auc" in line for line in server.lines["trial1"])

"""Tracking: the same numbers in metrics.jsonl, which is the record, and in W&B, a view of it.

Nothing here stops or holds up a training: W&B that is missing, unreachable or broken is
said once, and metrics.jsonl goes on.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO
from urllib.parse import urlsplit

from mstag import files
from mstag.config import WANDB_MODES, WandbConfig

log = logging.getLogger("mstag")

INIT_TIMEOUT_S = 30.0
"""How long the start waits for W&B's servers before it goes on offline."""
FINISH_TIMEOUT_S = 60.0
"""How long the end waits for the last uploads."""
URL = Path("wandb") / "url"
"""Where a run folder keeps the address of its W&B page."""


class Tracker:
    """Logs the lines of a training. Leaving its ``with`` block ends it.

    Args:
        run: the run folder.
        config: ``[wandb]``.
        settings: what W&B shows as the run's config.
        num_lines: how many lines of metrics.jsonl the resumed run has behind it; later ones
            come from steps that will be done again, and are dropped.
        active: False on all ranks but the first: nothing is written or sent.
    """

    def __init__(
        self,
        run: Path,
        config: WandbConfig,
        settings: dict[str, Any],
        *,
        num_lines: int = 0,
        active: bool = True,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.num_lines = 0
        self._file: TextIO | None = None
        self._shown: WandbRun | None = None
        if not active:
            return
        lines = _keep_lines(self.path, num_lines)
        self.num_lines = len(lines)
        self._file = self.path.open("a", encoding="utf-8")
        past = [json.loads(line) for line in lines]
        self._shown = WandbRun(run, config, settings, job="train", record=self.path, past=past)

    def log(self, values: dict[str, float | int | None]) -> None:
        """Records one line; NaN and infinities become null, as JSON has neither."""
        if self._file is None:
            return
        line = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.num_lines += 1
        if self._shown is not None:
            self._shown.log(line)

    @property
    def dashboard(self) -> str:
        """Where to look at the run: a URL, or the command that uploads an offline run."""
        return str(self.path) if self._shown is None else self._shown.where

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._shown is not None:
            self._shown.finish(failed=kind is not None)


class WandbRun:
    """A W&B run that shows what a file of JSON lines records; W&B's absence is no error.

    Args:
        run: the run folder.
        config: ``[wandb]``.
        settings: what W&B shows as the run's config.
        job: "train", or "watch" for the run NAME-watch that stands beside it in its group.
        record: the file of lines, for messages.
        past: its lines so far.
    """

    def __init__(
        self,
        run: Path,
        config: WandbConfig,
        settings: dict[str, Any],
        *,
        job: Literal["train", "watch"],
        record: Path,
        past: list[dict[str, Any]],
    ) -> None:
        self._record = record
        self._wandb = _start_wandb(run, config, settings, job, record)
        # A W&B run that starts from nothing is given the past: an offline folder is then
        # complete by itself. Synced after an earlier one, its replayed steps are dropped.
        if self._wandb is not None and not self._wandb.resumed:
            for line in past:
                self.log(line)

    def log(self, line: dict[str, Any]) -> None:
        """Shows one line; values that are None are left out."""
        if self._wandb is None:
            return
        try:
            # Never step=: our axes are clips_seen and epoch, and W&B drops a step that is
            # lower than its last one, as after a resume.
            self._wandb.log({key: value for key, value in line.items() if value is not None})
        except Exception as error:
            log.warning(f"W&B: stopped logging ({error}); {self._record.name} goes on")
            self._wandb = None

    @property
    def where(self) -> str:
        """A URL, the command that uploads an offline run, or the file of lines."""
        if self._wandb is None:
            return str(self._record)
        if self._wandb.offline:
            return f"wandb sync {Path(self._wandb.dir).parent}"
        return str(self._wandb.url)

    def finish(self, *, failed: bool) -> None:
        """Ends the W&B run, waiting for its last uploads."""
        if self._wandb is None:
            return
        try:
            self._wandb.finish(exit_code=int(failed))
        except Exception as problem:
            log.warning(f"W&B: could not end its run ({problem})")
        self._wandb = None


def wanted_mode(config: WandbConfig) -> str:
    """online, offline, disabled or auto: the config's word, or else WANDB_MODE's."""
    if config.mode != "auto":
        return config.mode
    older_words = {"dryrun": "offline", "run": "online"}
    mode = os.environ.get("WANDB_MODE", "auto").lower()
    mode = older_words.get(mode, mode)
    return mode if mode in WANDB_MODES else "auto"


def has_api_key(base_url: str) -> bool:
    """Whether W&B would find credentials without asking: environment, or the netrc file.

    Args:
        base_url: W&B's server. Its cloud has had two names, and keys may be under either.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    hosts = {host, "api.wandb.ai"} if host.endswith("forge.coreweave.com") else {host}
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        machines = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(hosts & set(machines))


def can_go_online(config: WandbConfig) -> bool:
    """Whether a run would be logged to W&B's servers: wanted or not ruled out, and with a key."""
    if wanted_mode(config) in ("offline", "disabled"):
        return False
    try:
        import wandb
    except ImportError:
        return False
    return has_api_key(wandb.setup().settings.base_url)


def read_url(run: Path) -> str | None:
    """The address of a run's W&B page; None where it was never online."""
    try:
        url = (run / URL).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    # A browser would open other things too, and a run folder may be somebody else's.
    return url if url.startswith(("https://", "http://")) else None


def _start_wandb(
    run: Path, config: WandbConfig, settings: dict[str, Any], job: str, record: Path
) -> Any:
    """A W&B run, or None where tracking is ``record`` alone; never asks, never raises."""
    mode = wanted_mode(config)
    if mode == "disabled":
        return None
    name = run.absolute().name
    names = {
        "name": name if job == "train" else f"{name}-{job}",
        "group": config.group or name,
        "job_type": job,
    }
    # A folder of its own for what watches: two processes would fight over W&B's links, and
    # the training's files are found by their names.
    home = run if job == "train" else run / "wandb" / job
    # Read by wandb when it is imported: media and artifacts would be staged in the home.
    os.environ["WANDB_DATA_DIR"] = str((home / "wandb").absolute())
    try:
        home.mkdir(parents=True, exist_ok=True)
        import wandb

        if mode != "offline" and not has_api_key(wandb.setup().settings.base_url):
            # wandb.init would ask for a key on a terminal, and fail elsewhere.
            if mode == "online":
                log.warning("W&B: there is no API key (`wandb login` takes one): offline")
            mode = "offline"
        if mode != "offline":
            try:
                started = _init(home, names, config, settings, "online")
                files.write_text(home / URL, f"{started.url}\n")
                return started
            except Exception as error:
                log.warning(f"W&B: cannot go online ({_short(error)}): offline")
                wandb.teardown()  # it still holds the id of the run that failed
        return _init(home, names, config, settings, "offline")
    except Exception as error:  # a package that is missing or broken raises anything
        log.warning(f"W&B: off ({_short(error)}); the numbers are in {record}")
        return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _init(
    home: Path,
    names: dict[str, str],
    config: WandbConfig,
    settings: dict[str, Any],
    mode: Literal["online", "offline"],
) -> Any:
    import wandb

    started = wandb.init(
        mode=mode,
        id=_run_id(home),
        resume="allow",
        name=names["name"],
        project=config.project,
        entity=config.entity or None,
        group=names["group"],
        job_type=names["job_type"],
        dir=home,
        config=settings,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        ),
    )
    started.define_metric("clips_seen")
    started.define_metric("epoch")
    started.define_metric("train/*", step_metric="clips_seen")
    started.define_metric("valid/*", step_metric="epoch")
    started.define_metric("test/*", step_metric="epoch")
    # "max" alone would leave a dict without the last value in the summary.
    started.define_metric("valid/roc_auc", step_metric="epoch", summary="max,last")
    started.define_metric("valid/pr_auc", step_metric="epoch", summary="max,last")
    return started


def _run_id(home: Path) -> str:
    """The id under which W&B knows a run, drawn once and kept beside W&B's own files."""
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]  # an agent of a W&B sweep has drawn it
    path = home / "wandb" / "run-id"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        run_id = secrets.token_hex(4)
        files.write_text(path, run_id + "\n")
        return run_id


def _keep_lines(path: Path, num_lines: int) -> list[str]:
    """Cuts a file down to its first lines and returns them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:num_lines]
    except FileNotFoundError:
        lines = []
    files.write_text(path, "".join(line + "\n" for line in lines))
    return lines

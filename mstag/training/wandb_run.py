"""A W&B run that stands beside a file of JSON lines: where it can be, what it holds, its end.

W&B's own step is the number of the line in that file. A run that goes on after a kill offers
all of its lines again, and those that W&B's run has already are left out, so that every line
is there once. An offline run cannot be asked: its newest folder holds all lines, and takes
the place of the folders before it.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mstag import files
from mstag.config import WANDB_MODES, WandbConfig

log = logging.getLogger("mstag")

INIT_TIMEOUT_S = 30.0
"""How long the start waits for W&B's servers before it goes on offline."""
DRAIN_TIMEOUT_S = 25.0
"""How long the end waits for calls that wait for the servers,"""
FINISH_TIMEOUT_S = 40.0
"""and then for the last uploads."""
STALL_S = 10.0
"""A call that takes longer has met servers that do not answer."""
URL = Path("wandb") / "url"
"""Where a run folder keeps the address of its W&B page."""

Line = dict[str, Any]


class WandbRun:
    """A W&B run that shows what a file of JSON lines records; W&B's absence is no error.

    Args:
        run: the run folder.
        config: ``[wandb]``.
        settings: what W&B shows as the run's config; its "recipe" is the group of the run,
            unless ``config`` names one.
        job: "train", or "watch" or "eval" for the runs NAME-watch and NAME-eval that stand
            beside it in its group.
        record: the file of lines, for messages.
        past: its lines so far.
    """

    def __init__(
        self,
        run: Path,
        config: WandbConfig,
        settings: dict[str, Any],
        *,
        job: Literal["train", "watch", "eval"],
        record: Path,
        past: list[dict[str, Any]],
    ) -> None:
        self._record = record
        self._wandb = _start_wandb(run, config, settings, job, record)
        self.is_alive = self._wandb is not None
        """Whether what is logged still arrives somewhere."""
        self._takes_media = True
        self._next_line = 0
        # What W&B's servers have of a run that goes on; an offline one starts from nothing.
        self._num_held = self._wandb.starting_step if self.is_alive else 0
        # Online, some of W&B's calls wait for its servers: all are made aside, in their order.
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        if self.is_alive and not self._wandb.offline:
            self._start_thread(self._make_calls)
        for line in past:
            self.log(line)

    def log(self, line: Line, media: Line | None = None) -> None:
        """Shows the next line; values that are None are left out, and media stand beside it."""
        number, self._next_line = self._next_line, self._next_line + 1
        if self.is_alive and number >= self._num_held:
            shown = {key: value for key, value in line.items() if value is not None}
            self._call(lambda: self._log(number, shown, media or {}))

    def summarize(self, values: Line) -> None:
        """Shows values of the run as a whole."""
        self._call(lambda: guarded(lambda: self._wandb.summary.update(values), "summary"))

    def use(self, make: Callable[[], list[Any]]) -> None:
        """Names the artifacts that the run takes in.

        Offline they cannot be named as inputs, and are handed over with the run.
        """
        if not self.is_alive:
            return
        run = self._wandb
        if run.offline:
            guarded(lambda: [run.log_artifact(artifact) for artifact in make()], "artifact")
            return
        # Not with the other calls: W&B waits for as long as its servers take.
        self._start_thread(
            lambda: guarded(lambda: [run.use_artifact(a) for a in make()], "artifact")
        )

    def hand_over(self, make: Callable[[], Any], aliases: list[str]) -> None:
        """Uploads an artifact that the run has made."""

        def upload() -> None:
            if self._takes_media:
                with self._noticing_stalls():
                    guarded(lambda: self._wandb.log_artifact(make(), aliases=aliases), "artifact")

        self._call(upload)

    def _log(self, number: int, shown: Line, media: Line) -> None:
        # A row is committed at once: what is held back would be lost by a kill.
        try:
            self._wandb.log(shown, step=number, commit=not media)
            for key, value in media.items():
                self._try(number, key, value)
            if media:
                self._wandb.log({}, step=number, commit=True)
        except Exception as error:
            log.warning(f"W&B: stopped logging ({_short(error)}); {self._record.name} goes on")
            self.is_alive = False

    def _try(self, number: int, key: str, value: Any) -> None:
        """Adds a table or picture to a row, whose numbers must not fail with it."""
        if self._takes_media:
            with self._noticing_stalls():
                guarded(
                    lambda: self._wandb.log({key: value}, step=number, commit=False),
                    f"table or picture, {key}",
                )

    @contextmanager
    def _noticing_stalls(self) -> Iterator[None]:
        """Numbers do not wait for W&B's servers, but tables and artifacts do, each time."""
        started = time.monotonic()
        yield
        if time.monotonic() - started > STALL_S and self._takes_media:
            self._takes_media = False
            log.warning("W&B: its servers hardly answer: no more tables and pictures, numbers only")

    def _call(self, action: Callable[[], None]) -> None:
        if not self.is_alive:
            return
        if self._threads:
            self._calls.put(action)
        else:
            action()

    def _make_calls(self) -> None:
        while (action := self._calls.get()) is not None:
            if self.is_alive:
                action()

    def _start_thread(self, target: Callable[[], Any]) -> None:
        # Daemons: what still waits for the servers does not hold up the interpreter's end.
        thread = threading.Thread(target=target, daemon=True, name="wandb")
        self._threads.append(thread)
        thread.start()

    @property
    def where(self) -> str:
        """A URL, the command that uploads an offline run, or the file of lines."""
        if not self.is_alive:
            return str(self._record)
        return self._sync if self._wandb.offline else str(self._wandb.url)

    @property
    def _sync(self) -> str:
        # Without the option, W&B passes over what was begun online and says so in a whisper.
        option = "" if self._wandb.offline else "--include-online "
        return f"wandb sync {option}{Path(self._wandb.dir).parent}"

    def finish(self, *, failed: bool) -> None:
        """Ends the W&B run, waiting for its last uploads."""
        if self._wandb is None:
            return
        self._calls.put(None)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            self._wandb.finish(exit_code=int(failed))
        except Exception as problem:
            log.warning(
                f"W&B: could not end its run ({_short(problem)}); later, `{self._sync}` uploads "
                "what is missing"
            )
        self.is_alive, self._wandb = False, None


def guarded(action: Callable[[], Any], what: str) -> Any:
    """What an action returns; None, and one warning, where it fails."""
    try:
        return action()
    except Exception as error:
        log.warning(f"W&B: left out a {what} ({_short(error)})")
        return None


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
        "group": config.group or settings.get("recipe") or name,
        "job_type": job,
    }
    # A folder of its own for what watches: two processes would fight over W&B's links, and
    # the training's files are found by their names.
    home = run if job == "train" else run / "wandb" / job
    # Read by wandb when it is imported: media and artifacts would be staged in the home.
    os.environ["WANDB_DATA_DIR"] = str((home / "wandb").absolute())
    # Its log files would go to the user's folder.
    os.environ["WANDB_CACHE_DIR"] = str((home / "wandb" / "cache").absolute())
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
        id=secrets.token_hex(4) if names["job_type"] == "eval" else _run_id(home),
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
            finish_timeout_raises=True,
        ),
    )
    started.define_metric("clips_seen")
    started.define_metric("epoch")
    started.define_metric("train/*", step_metric="clips_seen")
    for section in ("valid", "test", "data", "tags", "listen", "track"):
        started.define_metric(f"{section}/*", step_metric="epoch")
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

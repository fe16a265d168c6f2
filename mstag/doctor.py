"""Is this machine fit for mstag? Packages, devices, cores; what is wrong, in one line."""

from __future__ import annotations

import importlib
import platform
import warnings
from dataclasses import dataclass, field
from importlib import metadata

from mstag.console import one_line
from mstag.runtime import available_cores

FITTING = "torchaudio 2.11 works with torch 2.11 to 2.14"
REMEDY = "install the pair again: pip install --force-reinstall -c constraints.txt torch torchaudio"
OPTIONAL = {
    "soundfile": "decodes audio; without it there is no packing and no tagging",
    "webdataset": "writes shards; without it there is no packing",
    "wandb": "tracks runs; without it there is metrics.jsonl alone",
}


@dataclass(slots=True)
class Diagnosis:
    """What was found, a line each, and the one thing that is wrong, if any."""

    lines: list[str] = field(default_factory=list)
    problem: str | None = None


def examine() -> Diagnosis:
    """Looks at everything; imports torch and torchaudio, and survives what that raises."""
    found = Diagnosis([f"Python {platform.python_version()}, {platform.platform(terse=True)}"])
    found.problem = _torch_problem()
    found.lines += [f"{name} {_version(name) or 'missing'}" for name in ("torch", "torchaudio")]
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        found.lines.append(f"{name} {version}" if version else f"{name} missing: it {purpose}")
    if found.problem is None:
        found.lines.append(_devices())
    found.lines.append(f"cores: {available_cores()}")
    return found


def _torch_problem() -> str | None:
    """Why the pair cannot be used, on one line, or None."""
    for name in ("torch", "torchaudio"):
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)
        # A broken build raises what it likes: OSError and RuntimeError have been seen.
        except Exception as error:
            return _explained(name, error)
    return None


def _explained(name: str, error: Exception) -> str:
    version = _version(name)
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return (
            f"{name} is not installed: run `make setup`, or pip install -c constraints.txt {name}"
        )
    reason = one_line(error)
    reason = reason if len(reason) <= 200 else reason[:200] + "..."
    if name == "torchaudio":
        return (
            f"torchaudio {version or '(no version)'} does not fit torch "
            f"{_version('torch') or '(no version)'} ({reason}): {FITTING}, and a CPU-only torch "
            f"needs a CPU-only torchaudio; {REMEDY}"
        )
    return f"torch {version or '(no version)'} cannot be imported ({reason}); {REMEDY}"


def _version(name: str) -> str | None:
    """The installed version, found without importing the package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> str:
    import torch

    # A driver that is too old is a warning, and then no GPU.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = (
            [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if torch.cuda.is_available()
            else []
        )
    if names:
        return f"devices: cpu, {', '.join(names)}"
    why = f" ({one_line(Exception(str(caught[0].message)))[:200]})" if caught else ""
    return f"devices: cpu; no GPU that torch can use{why}"

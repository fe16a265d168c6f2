"""What hearing audio takes besides the network, looked for before anything is heard."""

from __future__ import annotations

import importlib.util

PACKAGES = ("numba", "soundfile", "soxr")
"""For spectrograms, to decode, to resample. :class:`mstag.data.features.LogMel` itself refuses
features whose recipe is unknown."""


def require_packages() -> None:
    """Refuses to load a tagger that could not hear.

    Raises:
        ValueError: names the package.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"the package {name} is not installed, without which audio cannot become "
                f"spectrograms: pip install {name}"
            )

"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadlines: the machine may be busy. The same examples every time: a red run is red again.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

# Tests run one per core; torch's own threads would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

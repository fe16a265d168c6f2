"""`python -m mstag` is `mstag`."""

from mstag.cli import entry

entry()

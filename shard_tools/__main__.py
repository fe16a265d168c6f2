"""`python -m shard_tools` is `shard-tools`."""

from shard_tools.cli import entry

entry()

"""shard-tools: a folder of music and a table of tags -> shards that can be trusted."""

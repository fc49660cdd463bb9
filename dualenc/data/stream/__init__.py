"""Shards that are not local, read from their start to their end."""

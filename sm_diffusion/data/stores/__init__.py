"""Token ids on disk and in memory: caches, shards, mixtures, streams, windows of equal length."""

"""A server that keeps nothing and passes snapshots on."""

"""What `cluster-dash-server` does besides serving; `cli` calls it."""

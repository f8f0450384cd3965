"""What Prometheus reads: names, labels and text of metrics."""

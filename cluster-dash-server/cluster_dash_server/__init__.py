"""The server of cluster-dash: takes the snapshots of all hosts and shows the cluster."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load `create_app` when it is asked for: commands that only look at settings start without Flask."""
    if name == "create_app":
        from cluster_dash_server.app import create_app

        return create_app
    raise AttributeError(name)

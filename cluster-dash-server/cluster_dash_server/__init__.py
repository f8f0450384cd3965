"""The server of cluster-dash: takes the snapshots of all hosts and shows the cluster."""


def __getattr__(name: str) -> object:
    if name == "create_app":
        from cluster_dash_server.app import create_app

        return create_app
    raise AttributeError(name)

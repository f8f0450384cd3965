import os
from pathlib import Path

import pytest

from cluster_dash_server.history.folder import NETWORK_FILE_SYSTEMS, FolderHeld, file_system, take

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:25 / {folder} rw,relatime shared:9 - nfs4 storage:/home rw
40 22 0:31 / {folder}er rw - tmpfs tmpfs rw
nonsense
"""


def test_a_folder_is_one_servers(tmp_path: Path) -> None:
    lock = take(tmp_path)
    with pytest.raises(FolderHeld, match=rf"{tmp_path} belongs to another server, pid {os.getpid()} on "):
        take(tmp_path)
    os.close(lock)
    os.close(take(tmp_path))


def test_a_file_system_of_a_network_is_known_by_the_nearest_mount(tmp_path: Path) -> None:
    inside = tmp_path / "cluster-dash"
    inside.mkdir()

    assert file_system(inside, MOUNTS.format(folder=tmp_path)) == "nfs4"
    assert file_system(tmp_path.parent, MOUNTS.format(folder=tmp_path)) == "ext4"
    assert "nfs4" in NETWORK_FILE_SYSTEMS
    assert file_system(tmp_path, "") is None

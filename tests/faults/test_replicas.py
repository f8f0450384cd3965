"""Two replicas behind the nginx of etc/, while parts of the site are killed and stand still under load."""

import ssl
import time
import urllib.request
from pathlib import Path

import pytest

from tests.faults.crew import Crew
from tests.faults.replicas import Looking, Site
from tests.nginx import make_certificates
from tests.processes import wait_until

pytestmark = pytest.mark.needs("nginx")


@pytest.mark.slow
@pytest.mark.needs("openssl")
def test_no_post_and_no_page_fails_while_a_replica_is_killed_and_one_hangs(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    def look() -> int:
        with urllib.request.urlopen(f"{site.url}/api/v1/cluster", timeout=60, context=trusted) as answer:
            return int(answer.status)

    with (
        Site(tmp_path, environment={"CLUSTER_DASH_HISTORY__KIND": "none"}, tls=tmp_path) as site,
        Crew(site.url, moles=40, gpus=1, interval_seconds=2.0, folder=None, ca_file=str(tmp_path / "ca.pem")) as crew,
    ):
        crew.start()
        wait_until(lambda: len(crew.log.first_live) == 40, 60, "each is live")

        def more(posts: int) -> None:
            wanted = len(crew.log.live_seconds) + posts
            wait_until(lambda: len(crew.log.live_seconds) >= wanted, 60, "posts are answered")

        with Looking(look) as looked:
            with site.replicas[1].paused():
                time.sleep(7)
            more(60)
            with site.replicas[0].paused():
                more(60)  # meanwhile some have gone to it
                site.replicas[0].kill()
            more(60)
            site.replicas[0].start()
            more(60)
    assert crew.log.failures == []
    assert {answer for _, answer in looked.found} == {200}

"""A notice, and how this site words it."""

from zoneinfo import ZoneInfo

import pytest

from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.wording import Wording


@pytest.fixture
def wording() -> Wording:
    return Wording(site="lab", zone=ZoneInfo("Europe/Berlin"))


@pytest.fixture
def notice() -> Notice:
    return Notice(
        key="a:firing",
        kind="firing",
        alert="a",
        rule="gpu-lost",
        severity="critical",
        title="gpu03: GPU 2 is lost – völlig",
        facts=(("where", "gpu03, GPU 2"), ("next step", "drain the node")),
        text="",
        link="https://dash.lab/host/gpu03",
        actions=(("I need it", "https://dash.lab/needed/x"),),
        labels={"host": "gpu03", "gpu": "2", "empty": "", "0rack": "r1"},
        begun_at=1_795_000_000.0,
        ended_at=None,
    )

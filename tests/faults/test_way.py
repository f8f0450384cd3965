"""Everything that a network does, one after the other, between moles and a server: all arrives, and once."""

import time
from pathlib import Path

import pytest

from cluster_dash_mole.senders.http import exchange
from tests.faults.crew import Crew
from tests.faults.oracle import Oracle
from tests.faults.proxy import FaultProxy, Weather
from tests.processes import start_server, wait_until

WEATHERS = {
    "refuses": Weather(refuse=True),
    "slow": Weather(delay_seconds=0.2, bytes_per_second=20_000),
    "cuts requests": Weather(cut_request=500),
    "cuts answers": Weather(truncate_answer=60),
    "swallows all": Weather(blackhole=True),
    "half open": Weather(half_open=True),
    "loses half of the answers": Weather(drop_answers=0.5),
    "says all twice": Weather(duplicate=1.0),
    "all at once": Weather(delay_seconds=0.05, drop_answers=0.3, duplicate=0.3),
}
WORDS = ("no connection to", "without an answer", "in mid-answer", "in time")


@pytest.mark.clocked
def test_whatever_the_way_does_each_snapshot_arrives_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "READ_SECONDS", 1.0)  # 15 s in the field
    oracle = Oracle()
    with (
        start_server("--data", tmp_path / "data") as server,
        FaultProxy(int(server.url.rpartition(":")[2]), watch=oracle.watch) as proxy,
        Crew(proxy.url, moles=4, gpus=1, interval_seconds=0.5, folder=tmp_path / "spools") as crew,
    ):
        crew.start()
        wait_until(lambda: len(crew.log.first_live) == 4, 20, "each is live")

        def failures() -> set[str]:
            return {text for _, _, text in list(crew.log.failures)}

        for _ in range(4):  # a machine that stands still may miss what the way does
            for weather in WEATHERS.values():
                proxy.weather = weather
                time.sleep(2.5)
            if all(any(word in text for text in failures()) for word in WORDS[1:]):
                break
        proxy.weather = Weather()
        wait_until(lambda: crew.waiting == 0, 60, "all has arrived")
        time.sleep(1.5)
        # the oracle sees the end of a connection later than the mole does
        crew.__exit__()
        wait_until(lambda: set(oracle.sent) >= set(crew.sent) - newest(crew), 20, "the oracle has heard of all")
        server.stop()
    verdict = oracle.judge(tmp_path / "data")
    assert (verdict.missing, verdict.double, verdict.changed, verdict.lost) == ([], [], [], [])
    assert verdict.rows >= 4 * 2 * 2.5 * len(WEATHERS) * 0.5
    assert all(any(word in text for word in WORDS) for text in failures()), failures()
    assert all(any(word in text for text in failures()) for word in WORDS[1:]), failures()


def newest(crew: Crew) -> set[object]:
    last: dict[str, int] = {}
    for who in crew.sent:
        last[who.hostname] = max(last.get(who.hostname, 0), who.seq)
    return {who for who in crew.sent if who.seq >= last[who.hostname] - 2}

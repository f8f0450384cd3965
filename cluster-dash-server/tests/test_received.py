"""What became of posts: the rate, and one line for each reason of refusals."""

import threading
from typing import Any

import pytest

from cluster_dash_server import received
from cluster_dash_server.ingest import Answer, refused
from cluster_dash_server.received import Reception, subject_of

TAKEN = Answer(status=200, body={"success": True, "msg": "stored result"})


@pytest.fixture
def reception(clock: Any) -> Reception:
    return Reception(clock)


def test_the_rate_is_that_of_the_last_minute(reception: Reception, clock: Any) -> None:
    for _ in range(120):
        clock.now += 1
        for _ in range(3):
            reception.note(TAKEN)
    clock.now += 1
    assert (reception.so_far().per_second, reception.so_far().taken) == (3.0, 360)
    clock.now += 30
    assert reception.so_far().per_second == pytest.approx(1.5)
    clock.now += 31
    assert reception.so_far().per_second == 0


def test_in_its_first_minute_the_rate_is_that_since_the_start(reception: Reception, clock: Any) -> None:
    for _ in range(10):
        reception.note(TAKEN)
        clock.now += 1
    assert reception.so_far().per_second == 1.0


def test_each_limit_that_refused_has_one_line(reception: Reception, clock: Any) -> None:
    for number in range(5):
        reception.note(refused(429, f"hostname: there are {number} hosts already: [limits] max_hosts"))
    clock.now += 7
    reception.note(refused(429, "hostname: more than 600 new hosts in a minute: [limits] new_hosts_per_minute"))
    for index in range(3):
        reception.note(refused(400, f"gpu.{index}_H100_abc.gpu_util: 101 is greater than the maximum of 100"))
    said = [(each.status, each.subject, each.count) for each in reception.so_far().refusals]
    assert said == [
        (400, "gpu.*.gpu_util", 3),
        (429, "[limits] new_hosts_per_minute", 1),
        (429, "[limits] max_hosts", 5),
    ]
    last = reception.so_far().refusals[-1]
    assert (last.first_at, last.last_at) == (clock.now - 7, clock.now - 7)
    assert last.text == "hostname: there are 4 hosts already: [limits] max_hosts"


def test_each_line_of_a_batch_counts_for_itself(reception: Reception) -> None:
    rejected = [{"line": 1, "status": 422, "msg": "gpu: 65 entries, limit 64"}]
    reception.note(Answer(status=200, body={"success": True, "accepted": 2, "duplicates": 1, "rejected": rejected}))
    reception.note(Answer(status=200, body={"success": True, "msg": "stored result", "duplicate": True}))
    so_far = reception.so_far()
    assert (so_far.taken, so_far.duplicate, so_far.refused) == (2, 2, 1)
    assert [each.subject for each in so_far.refusals] == ["gpu"]


def test_reasons_are_bounded(reception: Reception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "MOST_REASONS", 3)
    for number in range(10):
        reception.note(refused(400, f"field{number}: missing"))
    assert [each.subject for each in reception.so_far().refusals] == ["field9", "field8", "field7"]


@pytest.mark.parametrize("text", ["", ": ", "a.b.c.d", "\x1b[31m.x.y: z", "[", "no colon at all" * 40])
def test_any_text_has_a_subject_that_can_be_shown(text: str) -> None:
    assert subject_of(text).isprintable() or not subject_of(text)
    assert len(subject_of(text)) <= 80


def test_posts_of_many_threads_are_all_counted(reception: Reception) -> None:
    def post() -> None:
        for _ in range(500):
            reception.note(TAKEN)
            reception.note(refused(401, "auth_code: not known here"))

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (reception.so_far().taken, reception.so_far().refusals[0].count) == (2000, 2000)

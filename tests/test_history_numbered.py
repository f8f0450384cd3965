"""What rows of history refer to has numbers in a real PostgreSQL; most rows refer to what the one before them did."""

import contextlib
from array import array
from dataclasses import replace

import pytest

from cluster_dash_server.history.postgresql.numbered import PART, SCHEMA, USED, Names
from cluster_dash_server.postgresql import Database, PostgresqlError
from cluster_dash_server.store import Figures, GpuId, Holder

pytestmark = pytest.mark.needs("postgres")
GPU = GpuId(0, "GPU-1", "H100", 81_559)
FIRST = Figures(
    host="gpu01",
    at=1_700_000_000.0,
    boot_id="a boot",
    seq=1,
    oldest_seq=1,
    gpus=(GPU,),
    values=array("f"),
    holders=(Holder(0, "alice", None),),
    holder_mem=array("f"),
)


def test_a_row_has_the_same_numbers_whether_the_one_before_it_referred_to_the_same_or_not(database_url: str) -> None:
    changed = (
        replace(FIRST, holders=(Holder(0, "bob", None),)),
        replace(FIRST, holders=()),
        replace(FIRST, gpus=(GPU, GPU._replace(gpu=1, uuid="GPU-2"))),
        replace(FIRST, boot_id="another"),
        replace(FIRST, boot_id=None, seq=None),
        replace(FIRST, host="gpu02"),
    )
    rows = [FIRST, replace(FIRST, seq=2), *(row for each in changed for row in (each, each)), FIRST]
    with contextlib.closing(Database(database_url)) as database:
        database.expects(PART, SCHEMA)
        names = Names(database)
        one_by_one = [names.ids([row])[0] for row in rows]
        at_once, by_who_knows_none = names.ids(rows), [Names(database).ids([row])[0] for row in rows]
    assert one_by_one == at_once == by_who_knows_none
    assert len(set(one_by_one)) == 1 + len(changed)


def test_once_somebody_was_forgotten_all_is_asked_for_anew(database_url: str) -> None:
    with contextlib.closing(Database(database_url)) as database:
        database.expects(PART, SCHEMA)
        names = Names(database)
        (before,) = names.ids([FIRST])
        with database.transaction() as db:
            db.execute("UPDATE holdings SET text = '[]', is_whole = false WHERE id = ?", (before.holding,))
        names.begin_anew(1)
        (after,) = names.ids([FIRST])
    assert after.holding != before.holding
    assert after._replace(holding=before.holding) == before


@pytest.mark.parametrize("table", USED)
def test_what_is_dropped_between_looking_and_asking_is_tried_again_and_is_no_bad_value(
    table: str, database_url: str
) -> None:
    with contextlib.closing(Database(database_url)) as database:
        database.expects(PART, SCHEMA)
        Names(database).ids([FIRST])
        with database.transaction() as db:  # as another replica that prunes
            db.execute(
                "CREATE FUNCTION prune() RETURNS trigger AS "
                "'BEGIN EXECUTE ''DELETE FROM '' || TG_TABLE_NAME; RETURN NULL; END' LANGUAGE plpgsql"
            )
            db.execute(f"CREATE TRIGGER pruned AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION prune()")
        names = Names(database)
        with pytest.raises(PostgresqlError, match=f"^{table}: some were dropped as old") as gone:
            names.ids([FIRST])
        assert not gone.value.is_of_values
        with database.transaction() as db:
            db.execute(f"DROP TRIGGER pruned ON {table}")
        assert names.ids([FIRST]) == Names(database).ids([FIRST])

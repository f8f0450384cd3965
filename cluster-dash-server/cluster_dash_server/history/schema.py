"""The file of history: its tables and its version."""

VERSION = 1
"""The form of the file. Another one needs a step in `MIGRATIONS`; a newer one is refused."""
APPLICATION_ID = 0x636C6461  # "clda": says to `file` and to us whose file this is

TABLES = """
-- names, and what blobs refer to
CREATE TABLE hosts (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE layouts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE holdings (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
-- which snapshots are here: seqs is JSON, [[first, last], …]
CREATE TABLE boots (id INTEGER PRIMARY KEY, host INTEGER NOT NULL, boot_id TEXT NOT NULL, seqs TEXT NOT NULL,
  newest_at REAL NOT NULL, UNIQUE (host, boot_id));
-- rows as they come: figures is float32, the values and then the holders' memory
CREATE TABLE hot (id INTEGER PRIMARY KEY, host INTEGER NOT NULL, hour INTEGER NOT NULL, at REAL NOT NULL, boot INTEGER,
  seq INTEGER, layout INTEGER NOT NULL, holding INTEGER NOT NULL, figures BLOB NOT NULL);
CREATE INDEX hot_hours ON hot (host, hour);
-- an hour of rows of a host, sealed; a day of its minutes; a day of its hours
CREATE TABLE sealed (host INTEGER NOT NULL, hour INTEGER NOT NULL, layout INTEGER NOT NULL, rows BLOB NOT NULL,
  PRIMARY KEY (host, hour, layout));
CREATE TABLE minutes (host INTEGER NOT NULL, day INTEGER NOT NULL, layout INTEGER NOT NULL, slots BLOB NOT NULL,
  PRIMARY KEY (host, day, layout));
CREATE TABLE hours (host INTEGER NOT NULL, day INTEGER NOT NULL, layout INTEGER NOT NULL, slots BLOB NOT NULL,
  PRIMARY KEY (host, day, layout));
-- the cluster (model '') and each model: a minute's share; an hour's (minutes, least, mean, most) of
-- each metric, float64
CREATE TABLE cluster_minutes (minute INTEGER NOT NULL, model TEXT NOT NULL, share BLOB NOT NULL,
  PRIMARY KEY (minute, model)) WITHOUT ROWID;
CREATE TABLE cluster_hours (hour INTEGER NOT NULL, model TEXT NOT NULL, figures BLOB NOT NULL,
  PRIMARY KEY (model, hour)) WITHOUT ROWID;
-- GPU-seconds; user '' is all together
CREATE TABLE usage_hours (hour INTEGER NOT NULL, host INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (hour, host, user, model)) WITHOUT ROWID;
CREATE TABLE usage_days (day INTEGER NOT NULL, host INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (day, host, user, model)) WITHOUT ROWID;
CREATE TABLE user_hours (hour INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (hour, user, model)) WITHOUT ROWID;
CREATE TABLE user_days (day INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (day, user, model)) WITHOUT ROWID;
-- who had which GPU of a host in an hour
CREATE TABLE uses (host INTEGER NOT NULL, hour INTEGER NOT NULL, stretches BLOB NOT NULL, PRIMARY KEY (host, hour));
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, host TEXT NOT NULL, gpu TEXT, kind TEXT NOT NULL,
  code TEXT, text TEXT NOT NULL, told INTEGER NOT NULL, boot_id TEXT, seq INTEGER);
CREATE INDEX events_at ON events (at);
-- the newest snapshot of each host, to begin with after a restart
CREATE TABLE last (host TEXT PRIMARY KEY, received_at REAL NOT NULL, skew_seconds REAL, packed BLOB NOT NULL,
  known BLOB NOT NULL);
"""

MIGRATIONS: dict[int, str] = {}
"""The SQL that makes version n + 1 of version n."""

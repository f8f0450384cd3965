"""The engine that replicas on several machines share: Redis 6.2 or newer, or Valkey, alone or behind Sentinel.

An exchange is one script, so that nobody sees half of it, and then one command for the rows that it names: for a script
Redis would copy each row twice more, and look at each byte of it. A row that is newer by then is named again by the
next script. All keys share a hash tag. `meta` has the epoch, the version, and the run_id of the Redis that began the
epoch: one that was started anew, or took over, may lack what was last put, and begins another.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from cluster_dash_server.sharing.engine import (
    MOST_CHANGES,
    MOST_OFFERS,
    Answer,
    Away,
    Change,
    Offer,
    Order,
    text_of,
)

SECONDS = 2.0
"""How long Redis may take to answer, and to be connected to."""
SENTINEL, SENTINEL_PORT = "redis+sentinel", 26_379
_ROW = "{cd:0}:row"
_KEYS = ["{cd:0}:meta", _ROW, "{cd:0}:order", "{cd:0}:changed"]

_BEGIN = """
if redis.replicate_commands then redis.replicate_commands() end  -- Redis 6: INFO and TIME before a write
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'run', 'whole_from')
local version = tonumber(meta[2]) or 0
"""
_EXCHANGE = (
    _BEGIN
    + """
-- whole numbers as texts: a seq may have more digits than a double has
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
local function is_newer(one, other)
  local seq, boot = string.match(one, '^%d+ %d+ (%d*) (.*)$')
  local other_seq, other_boot = string.match(other, '^%d+ %d+ (%d*) (.*)$')
  local is_counted = boot ~= '' and boot == other_boot and seq ~= '' and other_seq ~= ''
  if is_counted and seq ~= other_seq then return above(seq, other_seq) end
  local at, edition = string.match(one, '^(%d+) (%d+)')
  local other_at, other_edition = string.match(other, '^(%d+) (%d+)')
  if not is_counted and at ~= other_at then return above(at, other_at) end
  return above(edition, other_edition)
end

local new_epoch, epoch, since, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local rows_kept = redis.call('HLEN', KEYS[2])
local is_torn = redis.call('HLEN', KEYS[3]) ~= rows_kept or redis.call('ZCARD', KEYS[4]) ~= rows_kept
  or (rows_kept > 0 and not meta[1])
if is_torn then redis.call('DEL', KEYS[2], KEYS[3], KEYS[4]) end  -- a key was evicted: replicas offer all anew
if is_torn or not meta[1] or meta[3] ~= run or (meta[1] == epoch and since > version) then
  meta[1] = new_epoch
  redis.call('HSET', KEYS[1], 'epoch', new_epoch, 'run', run, 'version', version)
end
local whole_from = tonumber(meta[4]) or 0
if meta[1] ~= epoch then
  return {meta[1], version, whole_from, time[1], time[2], 1, {}, {}}
end

local changed = {}  -- keys, and the version of each behind it
if since < version then
  changed = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  if #changed == 2 * most then
    return {meta[1], tonumber(changed[2 * most]), whole_from, time[1], time[2], 0, changed, {}}
  end
end

local taken = {}
if #ARGV > 4 then
  local keys = {}
  for place = 5, #ARGV, 3 do keys[#keys + 1] = ARGV[place] end
  local orders = redis.call('HMGET', KEYS[3], unpack(keys))
  local new_orders, new_rows, scores = {}, {}, {}
  for number, key in ipairs(keys) do
    local place = 2 + 3 * number
    local order, row = ARGV[place + 1], ARGV[place + 2]
    if not orders[number] or is_newer(order, orders[number]) then
      version = version + 1
      taken[number] = version
      local last = #new_orders
      new_orders[last + 1], new_orders[last + 2] = key, order
      new_rows[last + 1], new_rows[last + 2] = key, row
      scores[last + 1], scores[last + 2] = string.format('%d', version), key
    else
      taken[number] = 0
    end
  end
  if #scores > 0 then
    redis.call('HSET', KEYS[2], unpack(new_rows))
    redis.call('HSET', KEYS[3], unpack(new_orders))
    redis.call('ZADD', KEYS[4], unpack(scores))
    redis.call('HSET', KEYS[1], 'version', version)
  end
end
return {meta[1], version, whole_from, time[1], time[2], 1, changed, taken}
"""
)
_DROP = """
local whole_from = tonumber(redis.call('HGET', KEYS[1], 'whole_from')) or 0
for place = 1, #ARGV, 2 do
  local key = ARGV[place]
  if redis.call('HGET', KEYS[3], key) == ARGV[place + 1] then
    if not string.find(key, '/', 1, true) then  -- of hosts alone views must know which went
      whole_from = math.max(whole_from, tonumber(redis.call('ZSCORE', KEYS[4], key) or 0))
    end
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[4], key)
  end
end
redis.call('HSET', KEYS[1], 'whole_from', whole_from)
return 1
"""


def without_secret(url: str) -> str:
    """Return an address as it may be shown: without what stands before the @, and after the question mark."""
    return re.sub(r"//[^/]*@", "//***@", url.partition("?")[0])


def client_of(url: str) -> redis.Redis:
    """Return a client for an address; nothing is connected yet.

    Raises:
        ValueError: it is no address of a Redis; the text shows no secret.
    """
    # its own retries would hold the one thread that ticks, which tries again anyway
    options: dict[str, Any] = {
        "socket_timeout": SECONDS,
        "socket_connect_timeout": SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "encoding_errors": "surrogatepass",
        "command_packer": _Packer(),
    }
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:  # its first half would be taken for a port, and shown
        raise ValueError("a password that holds / ? # or @ is written with %2F %3F %23 %40 for them")
    if parts.scheme == SENTINEL:
        return _behind_sentinel(parts, options)
    return redis.Redis.from_url(url, **options)


def _behind_sentinel(parts: SplitResult, options: dict[str, Any]) -> redis.Redis:
    who, _, places = parts.netloc.rpartition("@")
    name, _, password = who.partition(":")
    master, _, database = parts.path.strip("/").partition("/")
    sentinels = [_place(each) for each in places.split(",")]
    if not master or not all(host for host, _ in sentinels):
        raise ValueError("expected redis+sentinel://[:PASSWORD@]HOST[:PORT][,HOST…]/MASTER[/DATABASE]")
    secret = parse_qs(parts.query).get("sentinel_password", [None])[0]
    of_sentinels = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS, "password": secret}
    asked: Any = Sentinel(sentinels, sentinel_kwargs=of_sentinels, **options)  # type: ignore[no-untyped-call]
    client: redis.Redis = asked.master_for(
        master, username=unquote(name) or None, password=unquote(password) or None, db=int(database or 0)
    )
    return client


def _place(text: str) -> tuple[str, int]:
    """Return host and port of `HOST`, `HOST:PORT`, `[::1]:PORT`."""
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(\d+))?", text)
    return ("", 0) if found is None else (found[1].strip("[]"), int(found[2] or SENTINEL_PORT))


class _Packer:
    """Writes a command as one piece: redis-py's own writer sends two rows at a time, and asks the kernel for each."""

    def pack(self, *args: Any) -> list[bytes]:
        """Return what goes over the wire."""
        said = [*args[0].encode().split(), *map(self._encoded, args[1:])]
        parts = [b"*%d\r\n" % len(said)]
        for each in said:
            parts += (b"$%d\r\n" % len(each), each, b"\r\n")
        return [b"".join(parts)]

    def _encoded(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


class RedisEngine:
    """See `engine.Engine`; used by one thread at a time.

    Args:
        url: `redis://`, `rediss://` or `redis+sentinel://`.

    Raises:
        ValueError: it is no such address.
    """

    def __init__(self, url: str) -> None:
        self._where = without_secret(url)
        self._client = client_of(url)
        self._exchange = self._client.register_script(_EXCHANGE)
        self._drop = self._client.register_script(_DROP)

    def exchange(self, epoch: str, since: int, offers: Sequence[Offer]) -> Answer:
        """See `Engine`."""
        said: list[Any] = [secrets.token_hex(6), epoch, since, MOST_CHANGES]
        for offer in offers[:MOST_OFFERS]:
            said += (offer.key, text_of(offer.order), offer.row)
        answer = self._asked(lambda: self._exchange(keys=_KEYS, args=said))
        epoch, version, whole_from, seconds, microseconds, is_all, changed, taken = answer
        return Answer(
            epoch=_text(epoch),
            version=version,
            whole_from=whole_from,
            at=int(seconds) + int(microseconds) / 1e6,
            changes=self._changes(changed[::2], changed[1::2]) if changed else [],
            is_all=is_all == 1,
            taken=[number or None for number in taken],
        )

    def _changes(self, keys: Sequence[bytes], versions: Sequence[bytes]) -> list[Change]:
        """Return the rows of keys."""
        rows: list[bytes | None] = self._asked(lambda: self._client.hmget(_ROW, keys))
        return [
            Change(_text(key), int(version), row)
            for key, version, row in zip(keys, versions, rows, strict=True)
            if row is not None  # it was dropped in between
        ]

    def check(self) -> str:
        """Return what there is, in words.

        Raises:
            Away: it does not answer, or may not be asked.
        """
        try:
            version = self._client.info("server")["redis_version"]
            policy = self._client.info("memory").get("maxmemory_policy", "")
        except (redis.RedisError, OSError) as error:
            raise Away(f"{self._where}: {_why(error)}") from error
        answer = self.exchange("", 0, ())
        said = f"{self._where} answers, Redis {version}, {answer.version} changes so far"
        if not policy.startswith("allkeys"):
            return said
        return f"{said}; by its policy {policy} it may evict what is shared: set maxmemory-policy noeviction"

    def drop(self, orders: Mapping[str, Order]) -> None:
        """See `Engine`."""
        waiting = [part for key, order in orders.items() for part in (key, text_of(order))]
        for first in range(0, len(waiting), 2 * MOST_OFFERS):
            some = waiting[first : first + 2 * MOST_OFFERS]
            self._asked(lambda some=some: self._drop(keys=_KEYS, args=some))  # type: ignore[misc]

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (redis.RedisError, OSError) as error:
            # a connection of before may lead to one that is master no more
            self._client.connection_pool.disconnect()
            raise Away(f"{self._where}: {_why(error)}") from error

    def close(self) -> None:
        """See `Engine`."""
        self._client.close()


def _text(key: Any) -> str:
    return str(key, "utf-8", "surrogatepass")


def _why(error: Exception) -> str:
    if isinstance(error, MasterNotFoundError):
        return "its Sentinels name no master"
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return f"no answer within {SECONDS:g} s"
    beneath: BaseException | None = error
    while beneath is not None:
        if isinstance(beneath, OSError) and beneath.strerror:
            return beneath.strerror.lower()
        beneath = beneath.__cause__ or beneath.__context__
    return str(error).rstrip(".") or type(error).__name__

"""The parts of a mole, built of its configuration."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster_dash_mole import collectors
from cluster_dash_mole.batches import Source
from cluster_dash_mole.config import Config, ConfigError
from cluster_dash_mole.host import Host, SnapshotCounter, read_host
from cluster_dash_mole.mole import Clock, Collector, Mole, Sender, SystemClock
from cluster_dash_mole.senders import GoogleSheetsSender, HttpSender, StdoutSender
from cluster_dash_mole.spool import SPOOL, Spool, SpoolFromTheFuture

log = logging.getLogger(__name__)

ONE_SHOT_INTERVAL = 20.0  # gives a driver that sleeps the full 10 s to answer
ONE_SHOT_CPU_SECONDS = 0.25  # a busy share needs two readings


def senders(config: Config, environ: Mapping[str, str]) -> list[tuple[Sender, float]]:
    """Return each sender in use, with its least interval in s."""
    found: list[tuple[Sender, float]] = []
    if config.json_sender.use:
        settings = config.json_sender
        try:
            http = HttpSender(
                address=settings.address_in,
                auth_code=settings.auth_code,
                clock=SystemClock(),
                environ=environ,
                ca_file=settings.ca_file,
                allow_plaintext=settings.allow_plaintext,
            )
        except (ValueError, OSError) as error:  # a malformed address or proxy; a ca_file that holds no certificate
            raise ConfigError(f"{config.source}: Json_Sender_Logger: {error}") from error
        found.append((http, settings.min_interval_in_secs))
    if config.google_sheets.use:
        sheets = GoogleSheetsSender(
            key_file=config.google_sheets.service_account_file_path,
            spreadsheet_id=config.google_sheets.spreadsheets_id,
            worksheet_name=config.google_sheets.worksheet_name,
        )
        found.append((sheets, config.google_sheets.min_interval_in_secs))
    if config.stdout.use:
        found.append((StdoutSender(), config.stdout.min_interval_in_secs))
    if not found and not config.listen.use:
        raise ConfigError(f"{config.source}: no sender is in use: expected use = true in [Json_Sender_Logger]")
    return found


def listeners(config: Config, clock: Clock) -> list[Sender]:
    """Return what answers Prometheus, each on a port of its own."""
    settings = config.listen
    if not settings.use:
        return []
    from cluster_dash_mole.senders.listen import GpuPage, ListenSender, Page, SlurmPage  # a server of its own: memory

    pages: dict[str, Page] = {
        "address": GpuPage(interval=config.poll.poll_interval_in_secs, hostname_label=settings.hostname_label)
    }
    if settings.slurm_address:
        if not config.slurm.use:
            raise ConfigError(f"{config.source}: Listen.slurm_address: nothing to tell without use = true in [Slurm]")
        pages["slurm_address"] = SlurmPage(interval=config.slurm.interval_in_secs, users=settings.slurm_users)
    found: list[Sender] = []
    for key, page in pages.items():
        address = getattr(settings, key)
        try:
            listener = ListenSender(address, page, clock=clock, name=f"listen_{key}")
        except ValueError as error:
            raise ConfigError(f"{config.source}: Listen.{key}: {error}") from error
        except OSError as error:
            raise ConfigError(f"{config.source}: Listen.{key}: {address}: {error.strerror}") from error
        log.info("answers Prometheus on port %d: /metrics", listener.port)
        found.append(listener)
    return found


def spool(config: Config, host: Host, counter: SnapshotCounter, folder: Path) -> Spool:
    """Return what holds snapshots until a server keeps them: in memory alone where the folder is another mole's."""
    most_bytes = int(config.json_sender.spool_mb * 2**20)
    source = Source(host.hostname, host.boot_id or "")
    if not counter.owns_folder:
        return Spool(None, most_bytes=0, source=source)
    try:
        return Spool(folder / SPOOL, most_bytes=most_bytes, source=source, last_seq=counter.last)
    except SpoolFromTheFuture as error:
        log.error("spool: %s: left alone; what the server does not take is kept in memory: move it away", error)
        return Spool(None, most_bytes=0, source=source)


def slurm(config: Config, *, at_once: bool) -> Callable[[], Collector] | None:
    """Return what makes the collector for Slurm, None where this mole does not ask it."""
    settings = config.slurm
    if not settings.use:
        return None
    return collectors.slurm(
        clock=SystemClock(), interval=settings.interval_in_secs, folder=settings.bin_folder, at_once=at_once
    )


def host(config: Config) -> Host:
    """Return who this host is, by the name that it was given, else by its own."""
    return read_host(hostname=config.host.name or None, ephemeral=config.host.ephemeral)


def one_shot(config: Config) -> Mole:
    """Return a mole for a single snapshot: without an identity, as it must not take the place of the real one's."""
    clock = SystemClock()
    mole = Mole(
        host=host(config),
        collectors=collectors.build(interval=ONE_SHOT_INTERVAL, clock=clock, slurm=slurm(config, at_once=True)),
        lanes=[],
        interval=ONE_SHOT_INTERVAL,
        clock=clock,
        labels=config.labels,
    )
    clock.sleep(ONE_SHOT_CPU_SECONDS)
    return mole

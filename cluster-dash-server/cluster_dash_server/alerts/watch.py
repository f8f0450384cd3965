"""The loop that acts: looks at what has changed, evaluates, and keeps what came of it in the book."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from cluster_dash_server.alerts.book import Addressed, Book, BookError, Maintenance, Silence, Transition
from cluster_dash_server.alerts.coming import Coming, coming
from cluster_dash_server.alerts.disks import Before, Disklog
from cluster_dash_server.alerts.evaluate import Step, evaluate, follow
from cluster_dash_server.alerts.look import Looker, labels_of, waiting_jobs
from cluster_dash_server.alerts.routing import Owners, addressees, at_once, notice_of, silenced_until
from cluster_dash_server.alerts.rules import Rule, RulesError
from cluster_dash_server.alerts.state import Finding, Key, Running, State, Subject, View, recall, with_waiting
from cluster_dash_server.cluster import Cluster, HostView, KnownHost
from cluster_dash_server.events import EventLog
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.states import silence

log = logging.getLogger(__name__)

ROUND_SECONDS = 5.0
LOOK_SECONDS = 60.0
"""A host is looked at when it changes, when its state does by time alone, and at least so often."""
GRACE_INTERVALS, GRACE_SECONDS = 3, 120.0
"""After a start nothing is said of a host that has not posted yet, for so many of its intervals, at least so long."""
NEW_GRACE_SECONDS = 900.0
"""For so long after a start a host that nobody remembers may still come back: three intervals of the first agents."""
PAUSE_SECONDS = 60.0
"""A loop that was held up for so long (suspend, a stopped process) begins as after a start: it was the server that did
not listen."""
REMEMBERED_SECONDS = 2 * 86_400.0
SIZES_SECONDS = 60.0

Said = Callable[[float], Iterable[tuple[str, str | None, str]]]
"""Tells facts of the cluster and of this server that hold at a time: the fact, what it is about, and in words."""


class Watch:
    """Evaluates in rounds. One thread calls `round`; the others may be called by any.

    Args:
        cluster: the live view.
        events: what happened of late.
        slurm: what Slurm says.
        book: where alerts are kept.
        read_rules: returns the rules that are on; called at once, and to take them up anew.
        clock: Unix s.
        receivers: who may be told.
        owners: who of them, and of the users it concerns, is told when.
        said: what holds of the cluster and this server.
        disks_before: tells of hosts how full their disks were some hours before a time; asked once, at the start.
        public_url: where people reach the dashboard.
        fence: what a round is kept with; None: another replica evaluates, and this one only follows; where it changes,
            what is kept is read anew.
        done: called when a round was done and kept.

    Raises:
        RulesError: rules that cannot be used.
    """

    def __init__(
        self,
        cluster: Cluster,
        events: EventLog,
        slurm: Slurm,
        book: Book,
        read_rules: Callable[[], Sequence[Rule]],
        *,
        clock: Callable[[], float],
        receivers: Sequence[Receiver] = (),
        owners: Owners = at_once,
        said: Said = lambda now: (),
        disks_before: Callable[[float], Mapping[str, Before]] = lambda now: {},
        public_url: str | None = None,
        fence: Callable[[], int | None] = lambda: 0,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.trouble: str | None = None
        """Why nothing is evaluated now; None: it is."""
        self.evaluated_at: float | None = None
        """When a round was last done and kept (Unix s)."""
        self._cluster = cluster
        self._events = events
        self._slurm = slurm
        self._book = book
        self._clock = clock
        self._receivers = receivers
        self._owners = owners
        self._said = said
        self._disks_before: Callable[[float], Mapping[str, Before]] | None = disks_before
        self._public_url = public_url
        self._disks = Disklog()
        self._rules: Sequence[Rule] = ()
        self._looker = Looker((), self._disks)
        self._read_rules = read_rules
        self._new_rules: Sequence[Rule] | None = read_rules()
        self._fence = fence
        self._done = done
        self._state: State | None = None
        self._kept_with: int | None = None  # the fence of what the state goes on from; None: it is to be read
        self._listening_since = float("-inf")
        self._round_at = float("-inf")
        self._change = 0
        self._look_at: dict[str, float] = {}  # by host: when to look again at the latest
        self._found: dict[str, dict[Key, Finding]] = {}  # by host: what was found at the last look
        self._sizes: tuple[float, dict[tuple[str, str], int]] = (float("-inf"), {})
        self._rounds = threading.Lock()  # held during a round
        self._wakes = threading.Event()
        self._stops = False
        self._thread: threading.Thread | None = None

    def reload(self) -> Sequence[Rule]:
        """Take up the rules anew, from the next round on.

        Raises:
            RulesError: they cannot be used; those from before stay in force.
            BookError: other replicas could not be told to do the same.
        """
        rules = self._new_rules = self._read_rules()
        log.info("%d rules of alerts are on", len(rules))
        self._book.begin_anew()
        return rules

    def start(self) -> None:
        """Evaluate from now on, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, when the round under way is done."""
        self._stops = True
        self._wakes.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Have the next round begin now."""
        self._wakes.set()

    def _run(self) -> None:
        while True:
            self._wakes.wait(ROUND_SECONDS)
            self._wakes.clear()
            if self._stops:
                return
            try:
                self.round()
            except Exception as error:  # whatever it is: alerts must not end for good while the server lives
                if not isinstance(error, BookError):
                    log.exception("a fault in evaluating alerts")
                self._say(str(error) or type(error).__name__)
            else:
                self._say(None)

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is None:
                log.info("alerts are evaluated again")
            else:
                log.error("alerts are not evaluated: %s", trouble)
        self.trouble = trouble

    def between_rounds(self, change: Callable[[], None]) -> None:
        """Change what is kept while no round is under way; the next one begins with what is kept then.

        Raises:
            BookError: as `change` does.
        """
        with self._rounds:
            change()
            self._state = self._kept_with = None
            self._found.clear()
            self.look_at_all()

    def coming(self) -> list[Coming]:
        """Return what is about to be an alert; empty before the first round."""
        state = self._state
        return [] if state is None else coming(self._rules, state, self._clock())

    def look_at_all(self) -> None:
        """Look at every host in the next round, changed or not."""
        self._look_at = dict.fromkeys(self._look_at, float("-inf"))

    # ------------------------------------------------------------------------------------------------- a round

    def round(self) -> None:
        """Look, evaluate, and keep what came of it.

        Raises:
            BookError: it cannot be kept; then the next round comes to it again.
        """
        with self._rounds:
            self._round(self._clock())

    def _round(self, now: float) -> None:
        fence = self._fence()
        if fence is not None and fence != self._kept_with:
            self._take_up(fence, now)
        if not 0 <= now - self._round_at <= PAUSE_SECONDS:
            self._listening_since = now
            self.look_at_all()
        self._round_at = now
        if self._new_rules is not None:
            self._rules, self._new_rules = self._new_rules, None
            self._looker = Looker(self._rules, self._disks)
            self.look_at_all()
        if self._disks_before is not None and self._looker.wants("disk_full_in"):
            ask, self._disks_before = self._disks_before, None
            self._disks.begin_with(ask(now))
        self._look_around(now)
        moment = _Moment(self, now)
        state = self._state or State()
        if fence is None:
            self._kept_with = None
            self._state = follow(self._rules, moment.view(), state, now)
        else:
            state, steps = evaluate(self._rules, moment.view(), state, now)
            if steps:
                rules = {rule.name: rule for rule in self._rules}
                self._kept_with = None  # where it breaks off, only the book knows what was kept
                self._book.commit([self._transition(step, rules, moment) for step in steps], fence)
                self._kept_with = fence
            self._state = state
        self.evaluated_at = now
        self._done()

    def _take_up(self, fence: int, now: float) -> None:
        """Go on from what is kept, and from what this replica has seen to wait for its time."""
        state = recall(self._book.remembered(now - REMEMBERED_SECONDS))
        self._state = state if self._state is None else with_waiting(state, self._state)
        self._kept_with = fence
        if fence:  # another replica may have been told of other rules
            try:
                self._new_rules = self._read_rules()
            except RulesError as error:
                log.error("the rules from before are still in force: %s", error)

    def _look_around(self, now: float) -> None:
        """Look at the hosts that have changed, or may have by time alone."""
        change = self._cluster.changes
        names = set(self._cluster.changed_since(self._change))
        self._change = change
        names.update([name for name, at in self._look_at.items() if at <= now])
        known = self._cluster.names()
        if len(known) != len(self._look_at):
            for name in self._look_at.keys() - known:
                del self._look_at[name]
                self._found.pop(name, None)
            self._disks.keep(known)
        for each in self._cluster.known(names):
            name = each.seen.host
            self._disks.note(name, each.seen.disks, now)
            host: HostView | None = None
            if self.is_heard(each, now) and self._may_find(each, now):
                host = self._cluster.host(name, now)
            found = {} if host is None else self._looker.host(host, now)
            if found:
                self._found[name] = found
            else:
                self._found.pop(name, None)
            next_at = self._cluster.next_change_at(name, now)
            self._look_at[name] = now + LOOK_SECONDS if next_at is None else min(next_at, now + LOOK_SECONDS)

    def _may_find(self, known: KnownHost, now: float) -> bool:
        silent_seconds = now - known.seen.received_at
        return silence(silent_seconds, known.interval_seconds, self._cluster.thresholds) is not None or (
            self._looker.may_find(known, self._cluster.node(known.seen.host, now), now)
        )

    def is_heard(self, host: HostView | KnownHost, now: float) -> bool:
        """Say whether this life of the server has listened for long enough to judge a host."""
        grace = max(GRACE_SECONDS, GRACE_INTERVALS * host.interval_seconds)
        return host.seen.received_at >= self._listening_since or now - self._listening_since > grace

    def _transition(self, step: Step, rules: Mapping[str, Rule], moment: "_Moment") -> Transition:
        running, now = step.running, moment.now
        notices: Sequence[Addressed] = ()
        if step.is_told or step.joined:
            notice = notice_of(
                running.alert, "resolved" if step.kind == "ended" else "firing", running.told, self._public_url
            )
            receivers = addressees(step, rules, self._receivers, moment.host, now)
            notices = self._owners(running.alert, notice, receivers, now)
        return Transition(
            kind=step.kind,
            alert=running.alert,
            at=now,
            memory=running.memory(),
            notices=tuple(notices),
            takes_back=step.takes_back,
        )

    def found(self, moment: "_Moment") -> dict[Key, Finding]:
        """Return all that holds."""
        found: dict[Key, Finding] = {}
        for each in self._found.values():
            found.update(each)
        now = moment.now
        back = self._looker.event_seconds
        if back:
            found.update(self._looker.events(self._events.newest(begin=now - back), moment.host, now))
        said = list(self._said(now))
        if self._looker.wants("jobs_wait"):
            for picture in self._slurm.pictures(now):
                if not picture.is_late(now):
                    said += waiting_jobs(picture)
        found.update(self._looker.cluster(said))
        return found

    def sizes(self, now: float) -> dict[tuple[str, str], int]:
        """Return how many hosts have each label."""
        if now - self._sizes[0] > SIZES_SECONDS:
            sizes: dict[tuple[str, str], int] = {}
            for host in self._cluster.hosts(now):
                for label in labels_of(host).items():
                    sizes[label] = sizes.get(label, 0) + 1
            self._sizes = now, sizes
        return self._sizes[1]

    def is_unknown(self, rule: str, subject: Subject, moment: "_Moment") -> bool:
        """Say whether nobody knows if a condition holds."""
        if subject.host is None:
            return False
        host = moment.host(subject.host)
        if host is None:
            return self.is_new
        if not self.is_heard(host, moment.now):
            return True
        return self._looker.is_unknown(rule, subject, host, moment.now)

    @property
    def is_new(self) -> bool:
        """Whether hosts that nobody remembers may still come back after the start."""
        return self._round_at - self._listening_since <= NEW_GRACE_SECONDS

    @property
    def book(self) -> Book:
        """Where alerts are kept."""
        return self._book

    @property
    def cluster(self) -> Cluster:
        """The live view."""
        return self._cluster


class _Moment:
    """What one round knows: each host is looked up once."""

    def __init__(self, watch: Watch, now: float) -> None:
        self.now = now
        self._watch = watch
        self._hosts: dict[str, HostView | None] = {}
        self._silences: list[Silence] = watch.book.silences(now)
        self._maintenance = [(_matching(each), each) for each in watch.book.maintenance(now)]

    def view(self) -> View:
        """Return what there is to judge."""
        watch, now = self._watch, self.now
        silences = self._silences

        def silenced(running: Running) -> float | None:
            return silenced_until(running, silences, self.host, now) if silences else None

        return View(
            found=watch.found(self),
            hosts=len(watch.cluster),
            is_unknown=lambda rule, subject: watch.is_unknown(rule, subject, self),
            gone=self.gone,
            labels=self.labels,
            sizes=lambda: watch.sizes(now),
            silenced=silenced,
        )

    def host(self, name: str) -> HostView | None:
        """Return a host as it stands, None where it is not known."""
        if name not in self._hosts:
            self._hosts[name] = self._watch.cluster.host(name, self.now)
        return self._hosts[name]

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of a host."""
        host = self.host(name)
        return {} if host is None else labels_of(host)

    def gone(self, name: str) -> str | None:
        """Return why a host raises nothing; None: it may."""
        for means, maintenance in self._maintenance:
            if means(name):
                reason = f": {maintenance.reason}" if maintenance.reason else ""
                return f"maintenance, by {maintenance.by}{reason}"
        if not self._watch.cluster.knows(name) and not self._watch.is_new:
            return "the host was forgotten"
        return None


def _matching(maintenance: Maintenance) -> Callable[[str], bool]:
    try:
        return matcher(maintenance.hosts)
    except HostlistError:  # it was checked when it was made: a host is called so
        return lambda name: name == maintenance.hosts

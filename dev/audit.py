"""`make audit`: what is known to be vulnerable of all that the lock files name, by pip-audit.

Its data is on the internet. Where that cannot be reached, as behind a mirror that has packages only, nothing was
audited, and that is said in words: `SKIPPED`. Ends with 1 where something is known of a package, else with 0.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).resolve().parent.parent
TOOL = TOP / ".tools" / "audit"
REQUIREMENTS = TOP / "dev" / "audit-requirements.txt"
LOCKS = (
    *("cluster-dash-server/requirements.lock", "cluster-dash-mole/requirements.lock"),
    *(
        "cluster-dash-server/requirements-replicas.lock",
        "cluster-dash-mole/requirements-sheets.lock",
        "requirements.lock",
    ),
)
MOST_SECONDS = 300
"""For one lock file: a network that swallows what it is sent must not hold up who asks."""


class Verdict(NamedTuple):
    """What was found of one lock file; where nothing was audited, `audited` is 0 and `why` says why."""

    audited: int
    known: Sequence[str]
    why: str = ""


def main(locks: Sequence[str] = LOCKS) -> int:
    """Audit the lock files, and say what was found."""
    trouble = _make_tool()
    worst = 0
    for lock in locks:
        verdict = Verdict(0, (), trouble) if trouble else audit(TOP / lock)
        if not verdict.audited:
            print(f"audit: SKIPPED {lock}: {verdict.why}")
            continue
        beside = f"; {verdict.why}" if verdict.why else ""
        print(f"audit: {lock}: {verdict.audited} packages, {len(verdict.known) or 'no'} known vulnerabilities{beside}")
        for line in verdict.known:
            print(f"    {line}")
            worst = 1
    return worst


def audit(lock: Path) -> Verdict:
    """Ask pip-audit about a lock file."""
    command: list[str | Path] = [
        TOOL / "bin" / "pip-audit",
        "-r",
        lock,
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(0, (), f"no answer within {MOST_SECONDS} s")
    return verdict_of(done.stdout, done.stderr)


def verdict_of(stdout: str, stderr: str) -> Verdict:
    """Read what pip-audit says: JSON, or the error that kept it from asking."""
    try:
        packages: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Verdict(0, (), next(reversed(stderr.strip().splitlines()), "pip-audit says nothing")[:300])
    audited = [package for package in packages if "skip_reason" not in package]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if not audited:
        return Verdict(0, (), "the data on vulnerabilities is not reachable from here")
    known = [
        f"{package['name']} {package['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'none'}"
        for package in audited
        for each in package.get("vulns", ())
    ]
    return Verdict(len(audited), known, f"not known there: {', '.join(unknown)}" if unknown else "")


def _make_tool() -> str:
    """Install pip-audit where it is not yet, or another version; return what kept that from being done."""
    pinned = REQUIREMENTS.read_text()
    mark = TOOL / "installed"
    if mark.exists() and mark.read_text() == pinned:
        return ""
    uv = TOP / "dev" / "uv"
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, TOOL],
        [uv, "pip", "sync", "--quiet", "--python", TOOL, "--require-hashes", REQUIREMENTS],
    ]
    for command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return f"pip-audit cannot be installed within {MOST_SECONDS} s"
        if done.returncode != 0:
            said = next(reversed(done.stderr.strip().splitlines()), "uv says nothing")
            return f"pip-audit cannot be installed: {said[:300]}"
    mark.write_text(pinned)
    return ""


if __name__ == "__main__":
    sys.exit(main())

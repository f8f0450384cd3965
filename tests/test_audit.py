"""`make audit` says what is known to be vulnerable, and never takes an audit that could not be made for a good one."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from dev import audit
from dev.audit import Verdict, verdict_of


def report(*packages: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


FINE = {"name": "flask", "version": "3.1.3", "vulns": []}
KNOWN = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}]}
NOT_FOUND = {"name": "zstandard", "skip_reason": "not found, could not be audited"}


@pytest.mark.parametrize(
    ("stdout", "stderr", "verdict"),
    [
        (report(FINE), "", Verdict(1, [])),
        (report(FINE, KNOWN), "Found 1 known vulnerability", Verdict(2, ["old 1.0: PYSEC-1, mended in 1.1"])),
        (report(FINE, NOT_FOUND), "", Verdict(1, [], "not known there: zstandard")),
        (report(NOT_FOUND), "", Verdict(0, (), "the data on vulnerabilities is not reachable from here")),
        ("", "Traceback …\nConnectionError: no route to host", Verdict(0, (), "ConnectionError: no route to host")),
        ("[]", "", Verdict(0, (), "pip-audit says nothing")),
    ],
)
def test_what_pip_audit_says_is_read(stdout: str, stderr: str, verdict: Verdict) -> None:
    assert verdict_of(stdout, stderr) == verdict


@pytest.mark.parametrize(
    ("verdict", "code", "says"),
    [
        (Verdict(0, (), "no network"), 0, "audit: SKIPPED requirements.lock: no network"),
        (Verdict(9, []), 0, "audit: requirements.lock: 9 packages, no known vulnerabilities"),
        (Verdict(9, ["old 1.0: PYSEC-1, mended in 1.1"]), 1, "    old 1.0: PYSEC-1, mended in 1.1"),
    ],
)
def test_a_known_vulnerability_fails_and_an_audit_that_could_not_be_made_is_named(
    verdict: Verdict, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "_make_tool", str)
    monkeypatch.setattr(audit, "audit", lambda lock: verdict)
    assert audit.main(["requirements.lock"]) == code
    assert says in capsys.readouterr().out.splitlines()


def test_every_lock_file_is_audited() -> None:
    top = Path(audit.__file__).parent.parent
    locks = {
        str(path.relative_to(top)) for folder in (top, *top.glob("cluster-dash-*")) for path in folder.glob("*.lock")
    }
    assert locks - {"uv.lock"} == set(audit.LOCKS)

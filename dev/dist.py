"""`make dist`: one archive that installs the server or the mole without git and without internet.

It holds our two wheels, the wheels of all that they need at the versions and hashes of the lock files, and pip itself.
Wheels with compiled parts exist for one Python and one kind of machine each: the archive serves the Pythons below on
machines of the building one's kind, with its glibc or a newer one than the wheels ask for.
"""

import argparse
import concurrent.futures
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import tomllib
from packaging.markers import Marker

TOP = Path(__file__).resolve().parent.parent
PYTHONS = {"server": ("3.11", "3.12", "3.13", "3.14"), "mole": ("3.10", "3.11", "3.12", "3.13", "3.14")}
"""The Pythons that each half is built for; its floor is in its pyproject.toml."""
GLIBC_MINORS = range(5, 29)
"""The glibc 2.x that a wheel may ask for: up to 2.28, that of RHEL 8 and Debian 10."""
PAGES = ("setup.md", "SECURITY.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("etc", "systemd", "docs")
REQUIREMENT = re.compile(
    r"^(?P<pin>[\w.-]+==[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))?(?P<hashes>(?: \\\n +--hash=\S+)+)$", re.M
)


def main() -> None:
    """Build the archive and print its name."""
    parser = argparse.ArgumentParser(description="Make an archive that installs without git and without internet.")
    parser.add_argument("--python", action="append", metavar="3.11", help="serve this Python only; may be given again")
    parser.add_argument("--to", type=Path, default=TOP / "dist", metavar="FOLDER", help="where the archive goes")
    options = parser.parse_args()
    version = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    name = f"cluster-dash-{version}"
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.to, prefix=".building-") as temporary:
        folder = Path(temporary, name)
        (folder / "wheels").mkdir(parents=True)
        for half in PYTHONS:
            _run(
                [Path(sys.executable).with_name("hatchling"), "build", "-t", "wheel", "-d", folder / "wheels"],
                TOP / f"cluster-dash-{half}",
            )
            (folder / f"{half}.lock").write_text(_lock(half, version, folder / "wheels"), encoding="utf-8")
        wanted = list(_downloads(options.python))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda each: _download(folder / "wheels", *each), wanted))
        _pages(folder)
        (folder / "SERVES.txt").write_text(_serves(wanted, folder / "wheels"), encoding="utf-8")
        archive = options.to / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, name, filter=_nobody_s)
    print(f"{archive.relative_to(Path.cwd()) if archive.is_relative_to(Path.cwd()) else archive}")


def _downloads(pythons: list[str] | None) -> Iterator[tuple[str, str]]:
    for half, served in PYTHONS.items():
        for python in served:
            if pythons is None or python in pythons:
                yield half, python


def _download(wheels: Path, half: str, python: str) -> None:
    """Fetch the wheels that a half needs under one Python."""
    lock = (TOP / f"cluster-dash-{half}" / "requirements.lock").read_text(encoding="utf-8")
    of_tools = requirements((TOP / "requirements.lock").read_text(encoding="utf-8"), python)
    with tempfile.TemporaryDirectory() as temporary:
        wanted = Path(temporary, "wanted.txt")
        pins = [*requirements(lock, python), *(text for text in of_tools if text.startswith("pip=="))]
        wanted.write_text("\n".join(pins), encoding="utf-8")
        _run(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq", "--no-deps"),
                *("--require-hashes", "--only-binary=:all:", "--python-version", python, "--dest", temporary),
                *(part for tag in platforms() for part in ("--platform", tag)),
                *("-r", wanted),
            ],
            TOP,
        )
        for wheel in Path(temporary).glob("*.whl"):
            shutil.move(wheel, wheels / wheel.name)  # the same one may come for several Pythons


def _lock(half: str, version: str, wheels: Path) -> str:
    """Return the half's lock file, and our own wheel in it."""
    (wheel,) = wheels.glob(f"cluster_dash_{half}-{version}-*.whl")
    own = f"cluster-dash-{half}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    return (TOP / f"cluster-dash-{half}" / "requirements.lock").read_text(encoding="utf-8") + own


def requirements(lock: str, python: str) -> Iterator[str]:
    """Give the lines of a lock file that count under a Python on this kind of machine, without their markers.

    pip's download would judge the markers by the Python that it runs under.
    """
    under = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    for found in REQUIREMENT.finditer(lock):
        if found["marker"] is None or Marker(found["marker"]).evaluate(under):
            yield found["pin"] + found["hashes"]


def platforms() -> list[str]:
    """Return the wheel tags that are taken, those for the oldest systems first: pip prefers them in this order."""
    machine = platform.machine()
    return ["manylinux2014_" + machine, *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS)]


def _pages(folder: Path) -> None:
    for name in PAGES:
        shutil.copy2(TOP / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("screenshots"))
    shutil.copy2(TOP / "cluster-dash-mole" / "config_example-host.toml", folder / "etc" / "config_example-host.toml")
    shutil.copy2(TOP / "dev" / "install.sh", folder / "install.sh")


def _serves(wanted: Iterable[tuple[str, str]], wheels: Path) -> str:
    # of the tags of a wheel the lowest counts; manylinux2014 is glibc 2.17
    tags = (re.findall(r"manylinux_2_(\d+)_", wheel.name) for wheel in wheels.iterdir())
    asked = [min(map(int, minors)) for minors in tags if minors]
    glibc = f"glibc 2.{max(asked, default=17)} or newer (ldd --version)"
    lines = [f"This archive installs on Linux, {platform.machine()}, {glibc}."]
    for half in PYTHONS:
        lines.append(f"{half}: Python {', '.join(python for each, python in wanted if each == half) or 'none'}")
    return "\n".join(lines) + "\n"


def _nobody_s(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave the builder's name and umask out."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _run(command: list[str | Path], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()

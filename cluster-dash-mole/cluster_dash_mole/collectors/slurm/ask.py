"""Running Slurm's commands: the one place of the mole where a command is run, and each only reads."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cluster_dash_mole.snapshot import clean

_FOREIGN = ("SQUEUE_", "SINFO_", "SACCT_", "SLURM_CLUSTERS", "SLURM_JSON", "SLURM_YAML", "SLURM_TIME_FORMAT")
"""Variables that change what the commands print."""


class AskError(Exception):
    """A command gave no answer; the text says which, and why."""


class Commands:
    """Runs Slurm's commands, each in a process group of its own that is killed when its time is up.

    Args:
        folder: where they are; "": in PATH.
        environ: the environment to run them in.
    """

    def __init__(self, folder: str, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = {name: text for name, text in environ.items() if not name.startswith(_FOREIGN)}
        # moments as Unix s; arrays without ellipsis
        self._environ |= {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}

    def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]:
        """Run a command; return what it printed, at its beginning, to be closed by the caller.

        Raises:
            AskError: there is no such command, it failed, or it did not end in time.
        """
        name = command[0]
        program = str(Path(self._folder, name)) if self._folder else shutil.which(name, path=self._environ.get("PATH"))
        if program is None or not os.access(program, os.X_OK):
            where = self._folder or "PATH"
            raise AskError(f"{name}: not found in {where}: see [Slurm] bin_folder")
        # memory, not a pipe: nobody has to read while it writes, and it may write 20 MB
        said = _file_in_memory("slurm")
        try:
            with _file_in_memory("slurm-errors") as errors:
                self._run([program, *command[1:]], said, errors, limit_seconds)
            said.seek(0)
        except BaseException:  # it goes on from here; only the file must not stay open
            said.close()
            raise
        return said

    def _run(self, command: Sequence[str], said: IO[str], errors: IO[str], limit_seconds: float) -> None:
        name = Path(command[0]).name
        try:
            process = subprocess.Popen(  # noqa: S603 - a fixed argument list, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            raise AskError(f"{name}: {error.strerror}") from error
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            raise AskError(f"{name}: no answer within {limit_seconds:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            errors.seek(0)
            lines = [line.strip() for line in errors.read(65536).splitlines() if line.strip()]
            why = lines[-1] if lines else f"exit status {code}"
            raise AskError(clean(f"{name}: {why.removeprefix(f'{name}: ').removeprefix('error: ')}", 240))


def _file_in_memory(name: str) -> IO[str]:
    return os.fdopen(os.memfd_create(name), "w+", encoding="utf-8", errors="replace", newline="\n")

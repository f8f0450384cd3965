"""Write the versions of a project's lock files into its pyproject.toml as uv constraints.

`uv sync` reads no requirements file; with these constraints it resolves to the locked versions.
Usage: python3 dev/constraints.py [--clear] PROJECT…
"""

import re
import sys
from pathlib import Path

BEGIN = "# versions of requirements.lock, written by dev/lock: do not edit\n"
BLOCK = re.compile(re.escape(BEGIN) + r"\[tool\.uv\]\nconstraint-dependencies = \[\n.*?^\]\n", re.DOTALL | re.MULTILINE)
PIN = re.compile(r"^(?P<pin>[a-zA-Z0-9][^\s;]*==\S+)(?: ; (?P<marker>.*?))?(?: \\)?$", re.MULTILINE)


def constraints(locks: str) -> str:
    """Return the `[tool.uv]` block for the text of lock files."""
    pins = sorted({f"{pin} ; {marker}" if marker else pin for pin, marker in PIN.findall(locks)})
    return BEGIN + "[tool.uv]\nconstraint-dependencies = [\n" + "".join(f'    "{pin}",\n' for pin in pins) + "]\n"


def main(arguments: list[str]) -> None:
    """Rewrite the block in each named project; `--clear` takes it out."""
    clear = "--clear" in arguments
    for name in (argument for argument in arguments if not argument.startswith("--")):
        project = Path(name, "pyproject.toml")
        text = BLOCK.sub("", project.read_text()).rstrip("\n") + "\n"
        if not clear:
            text += "\n" + constraints("".join(lock.read_text() for lock in Path(name).glob("*.lock")))
        project.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])

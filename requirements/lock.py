"""Write the files beside this one: exact versions of everything, with the hashes of all their files on PyPI.

`make lock` keeps what stands there where the ranges of setup.cfg allow it; `make lock UPGRADE=1` takes the newest. One
resolution holds for every platform and every Python from 3.11 on. A layer lists only what those before it do not, so
no version stands in two files; the Makefile says which layers go together.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
LAYERS = ("server", "build", "embedded", "test", "peers", "pins")
"""The first is what setup.cfg requires always; each other is an extra of that name."""
UV = Path(sys.executable).with_name("uv")
OPTIONS = ("--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate")
HEADER = "# Written by `make lock`.\n"


def resolve(extras: tuple[str, ...], *options: str | Path) -> list[str]:
    """Return a pin with its hashes for each package that the service with these extras needs."""
    asked = [part for extra in extras for part in ("--extra", extra)]
    command = [UV, "pip", "compile", *OPTIONS, *options, *asked, "setup.cfg"]
    text = subprocess.run(command, cwd=FOLDER.parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"^\w.*(?:\n .*)*", text, re.M)


def main() -> None:
    """Resolve everything at once, then pick from that for each layer."""
    every = FOLDER / "every.txt"  # uv prefers what stands in its output file
    try:
        every.write_text("".join(path.read_text() for path in sorted(FOLDER.glob("*.txt"))))
        resolve(LAYERS[1:], "--output-file", every, *sys.argv[1:])
        seen: set[str] = set()
        for number, layer in enumerate(LAYERS):
            pins = resolve(LAYERS[1 : number + 1], "--constraint", every)
            (FOLDER / f"{layer}.txt").write_text("\n".join([HEADER, *(pin for pin in pins if pin not in seen), ""]))
            seen.update(pins)
    finally:
        every.unlink()


if __name__ == "__main__":
    main()

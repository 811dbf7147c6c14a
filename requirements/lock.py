"""Regenerate the pinned locks and environment.yml from pyproject.toml.

Run by `make lock`; `make lock UPGRADE=1` moves every pin to the newest version
that pyproject.toml allows, otherwise pins that still fit are kept.

Writes lock.txt (everything), analysis.txt (the torch-free subset for people who
only read results) and environment.yml (the pins of lock.txt for conda users).

The locks must install on any machine from PyPI alone. So no index address is
written, torch's local build tag is dropped, and so are torch's CUDA libraries:
pip takes those that the torch build chosen on that machine asks for.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FULL = ROOT / "requirements" / "lock.txt"
ANALYSIS = ROOT / "requirements" / "analysis.txt"
CONDA = ROOT / "environment.yml"

NOTE = "# Made by `make lock` from pyproject.toml: do not edit by hand.\n"
CONDA_HEADER = """\
# The pins of requirements/lock.txt for conda users:
#   conda env create --file environment.yml && conda activate llm2vec-reproduction
name: llm2vec-reproduction
channels:
  - conda-forge
dependencies:
  - python>=3.11,<3.14
  - pip
  - pip:
"""
COMPILE = (
    *(sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras"),
    *("--allow-unsafe", "--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
)
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;+]+)(?:\+\S+)?$")
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")


def portable(compiled: str) -> list[str]:
    """The pins of pip-compile's output without local version tags and CUDA libraries.

    Raises ValueError for a line that is not a plain pin: it would not install elsewhere.
    """
    pins = []
    for line in compiled.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = PIN.match(line.strip())
        if match is None:
            raise ValueError(f"not a plain `name==version` pin: {line!r}")
        if not CUDA.match(match["name"]):
            pins.append(f"{match['name']}=={match['version']}")
    return pins


def compile_pins(*options: str, seed: Path) -> list[str]:
    """Pins for pyproject.toml under pip-compile's `options`, keeping those of `seed` that fit."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        if seed.exists():
            output.write_text(seed.read_text())
        command = [*COMPILE, *options, "--output-file", str(output), "pyproject.toml"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return portable(output.read_text())


def replace(path: Path, text: str) -> None:
    """Write `path` in one step, so that an interrupted run leaves the old lock whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> None:
    upgrade = ("--upgrade",) if os.environ.get("UPGRADE") else ()
    full = compile_pins("--all-extras", *upgrade, seed=FULL)
    replace(FULL, NOTE + "".join(f"{pin}\n" for pin in full))
    subset = compile_pins("--extra", "analysis", "--constraint", str(FULL), seed=FULL)
    replace(ANALYSIS, NOTE + "".join(f"{pin}\n" for pin in subset))
    pip_section = "".join(f"      - {pin}\n" for pin in [*full, "--editable ."])
    replace(CONDA, NOTE + CONDA_HEADER + pip_section)


if __name__ == "__main__":
    main()

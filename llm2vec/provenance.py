"""Where a number comes from: git commit, versions, machine, command.

The dirty flag is read once, when the process starts, and ignores what measurements write
(``results/``, ``benchmarks/results/``): the first record of a grid must not spoil the second. Nor
does a file that git does not know, unless it lies where code does: a scheduler's log, a mirror, a
profile of one's own change no number.
Without ``.git`` (a tarball, a container), the environment variable ``LLM2VEC_COMMIT`` says which
commit it is: it is taken at its word, changes cannot be seen, and the origin says so
(``commit_source``). Imports no torch.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath

from llm2vec.paths import ROOT

STATED = "stated"  # the source of a commit that git did not say
OUTPUTS = ("results", "benchmarks/results")
# Where an untracked file counts: resources of the package are read, whatever their names; elsewhere
# it is what Python imports or the engine runs. Other folders may hold a whole environment.
PACKAGE = "llm2vec"
CODE_FOLDERS = (".", "analysis", "benchmarks", "experiments")
CODE = (".py", ".pth", ".so", ".pyd", "Snakefile")
SHOWN = 3  # changed files that a warning names
PACKAGES = ("torch", "transformers", "peft", "mteb", "datasets", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Provenance:
    """One measurement's origin. ``started`` is UTC, ISO 8601; ``threads`` are torch's, 0 without;
    ``commit_source`` is empty where git says the commit, ``stated`` where the environment does.

    Processor and threads decide how sums are split, and so the last bits of a score.
    """

    commit: str
    dirty: bool
    command: str
    started: str
    python: str
    platform: str
    cpus: int
    processor: str
    threads: int
    versions: dict[str, str]
    device: str
    dtype: str
    attention_implementation: str
    accelerator: str = ""  # name of the GPU, where it was one
    commit_source: str = ""

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types, for a record; without ``commit_source`` where git said the commit."""
        values = asdict(self)
        if not self.commit_source:
            del values["commit_source"]
        return values


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class _Tree:
    """State of the source tree. ``changed``: what makes it dirty, a file or a reason each."""

    commit: str
    changed: tuple[str, ...] = ()
    source: str = ""  # where the commit is from

    @property
    def dirty(self) -> bool:
        return bool(self.changed)


def git_state() -> tuple[str, bool]:
    """(commit, dirty) of the source tree, read once per process; called before a measurement.

    ``dirty`` is True when a tracked file outside ``OUTPUTS`` is changed or code is untracked; an
    unknown commit is ``unknown`` and counts as dirty. Either is said on standard error, once:
    better before weeks of measuring than after.
    """
    tree = _tree()
    if tree.dirty:
        _warn(tree)
    return tree.commit, tree.dirty


@functools.cache
def _tree() -> _Tree:
    stated = os.environ.get("LLM2VEC_COMMIT", "").strip()
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    if commit is None:
        return _Tree(stated, source=STATED) if stated else _Tree("unknown", ("no git commit",))
    outputs = (f":!{folder}" for folder in OUTPUTS)
    status = _git(
        "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".", *outputs
    )
    if status is None:
        return _Tree(commit.strip(), ("'git status' fails",))
    entries = ((line[:2], line[3:]) for line in status.split("\0") if line)
    return _Tree(
        commit.strip(), tuple(file for mark, file in entries if mark != "??" or _is_code(file))
    )


def _is_code(file: str) -> bool:
    """Whether an untracked file may be what runs."""
    path = PurePosixPath(file)
    folder = path.parts[0] if len(path.parts) > 1 else "."
    return folder == PACKAGE or (folder in CODE_FOLDERS and path.name.endswith(CODE))


@functools.cache
def _warn(tree: _Tree) -> None:
    """One line: what is changed, what comes of it, what to do."""
    shown = ", ".join(tree.changed[:SHOWN])
    more = len(tree.changed) - SHOWN
    what = f"{shown} and {more} more" if more > 0 else shown
    if tree.commit == "unknown":
        cause = "git does not say which commit this is; work in a git clone, or set LLM2VEC_COMMIT"
    else:
        cause = f"not as committed: {what}; commit that or undo it, and start again"
    print(
        f"warning: records made now are marked dirty and fail 'make verify-records': {cause}",
        file=sys.stderr,
    )


def _command() -> str:
    """The command line without absolute paths: they say nothing elsewhere, or too much."""
    interpreter, *arguments = getattr(sys, "orig_argv", sys.argv)
    return shlex.join([Path(interpreter).name, *map(_relative, arguments)])


def _relative(argument: str) -> str:
    """An argument (or the value in ``--option=value``) as a path in the repository or a name."""
    whole = Path(argument).is_absolute()
    option, equals, value = ("", "", argument) if whole else argument.partition("=")
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return option + equals + value


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


@functools.cache
def processor() -> str:
    """Name of the processor, as the system has it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def capture_provenance(
    device: str = "cpu", dtype: str = "float32", attention_implementation: str = "none"
) -> Provenance:
    """Origin of what this process measures; ``device`` and the rest as the encoder reports."""
    tree = _tree()
    torch = sys.modules.get("torch")  # whoever measures with it has loaded it
    return Provenance(
        commit=tree.commit,
        dirty=tree.dirty,
        command=_command(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count() or 0,
        processor=processor(),
        threads=torch.get_num_threads() if torch else 0,
        versions={name: _version(name) for name in PACKAGES},
        device=device,
        dtype=dtype,
        attention_implementation=attention_implementation,
        accelerator=_accelerator(device),
        commit_source=tree.source,
    )


def _accelerator(device: str) -> str:
    """Name of the GPU (of several, ``cuda:0,cuda:1``, the first one's), empty for a CPU."""
    torch, first = sys.modules.get("torch"), device.partition(",")[0]
    if torch and first.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(first)
    return ""

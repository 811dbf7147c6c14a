"""Every path and every environment variable of the project.

Nothing else reads ``os.environ`` for a location. Functions, not constants, so that a test or a
job may set the environment after import.

| variable | meaning | default |
|---|---|---|
| ``LLM2VEC_CACHE`` | downloaded and converted models, extracted corpora, cached features | XDG cache folder + ``llm2vec`` |
| ``LLM2VEC_DATA`` | a local mirror of datasets, parquet laid out by hub id | none |
| ``LLM2VEC_CHECKPOINTS`` | training checkpoints and large adapters | ``checkpoints/`` |
| ``LLM2VEC_COMMIT`` | the git commit, where there is no ``.git`` (a tarball, a container); records made so say ``commit_source: stated`` | read from git |
"""  # noqa: E501

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOURCES = Path(__file__).resolve().parent / "resources"


def _from_env(variable: str) -> Path | None:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser() if value else None


def cache_dir() -> Path:
    """Folder for everything that can be downloaded or computed again."""
    xdg = _from_env("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return _from_env("LLM2VEC_CACHE") or xdg / "llm2vec"


def mirror_dir() -> Path | None:
    """Folder of the local dataset mirror, or None when no mirror is named."""
    return _from_env("LLM2VEC_DATA")


def checkpoints_dir() -> Path:
    """Folder for training runs and adapters that are too large for git."""
    return _from_env("LLM2VEC_CHECKPOINTS") or ROOT / "checkpoints"


def results_dir() -> Path:
    """Folder of the committed evidence."""
    return ROOT / "results"


def shipped_adapters_dir() -> Path:
    """Folder of the adapters that the repository carries."""
    return results_dir() / "adapters"


def build_dir() -> Path:
    """Folder of what a run makes besides evidence: quick results, logs, the engine's state."""
    return ROOT / "build"

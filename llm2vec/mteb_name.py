"""An exported folder under a name of its own in mteb.

    import mteb
    from llm2vec.mteb_name import register

    meta = register("my-encoder", "me/my-encoder")
    model = mteb.get_model("me/my-encoder")
    mteb.evaluate(meta, mteb.get_tasks(["STSBenchmark"]))

By itself mteb knows the names of its registry and of the hub, where an uploaded folder needs
nothing of this, and files the results of every local folder under one name. Here the revision is
a hash of the folder, so that its cache tells two encoders apart. Nothing but mteb and
sentence-transformers takes part in the evaluation.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.models.model_meta import ScoringFunction

from llm2vec.errors import SettingError
from llm2vec.results import hash_of, sha256_file


def register(folder: str | Path, name: str | None = None) -> ModelMeta:
    """Let ``mteb.get_model(name)`` find a folder written by ``llm2vec export``.

    ``name`` has the form ``organisation/model``; default ``local/{name of the folder}``. Returns
    what ``mteb.evaluate`` takes. Raises :class:`SettingError` for a folder that is no exported
    encoder, or a name that mteb cannot use or knows as that of another model.
    """
    folder = Path(folder).resolve()
    name = f"local/{folder.name}" if name is None else name
    if not (folder / "1_Pooling" / "config.json").is_file():
        raise SettingError(f"{folder.name} is no exported encoder; make one with llm2vec export")
    if name.count("/") != 1:
        raise SettingError(f"mteb cannot use the name {name!r}; give one like me/my-encoder")
    known = MODEL_REGISTRY.get(name)
    if known is not None and getattr(known.loader, "func", None) is not _load:
        raise SettingError(f"{name} is a model of mteb; choose another name")
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    MODEL_REGISTRY[name] = ModelMeta.create_empty(
        {
            "name": name,
            "revision": _revision(folder),
            "loader": partial(_load, folder),
            "embed_dim": pooling["embedding_dimension"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": True,
            "framework": ["Sentence Transformers", "PyTorch"],
        }
    )
    return MODEL_REGISTRY[name]


def _load(
    folder: Path, _name: str, revision: str | None = None, **options: Any
) -> SentenceTransformerEncoderWrapper:
    return SentenceTransformerEncoderWrapper(str(folder), **options)


def _revision(folder: Path) -> str:
    """Hash of every file that a vector depends on; the card is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hash_of(
        {str(f.relative_to(folder)): sha256_file(f) for f in files if f.name != "README.md"}
    )

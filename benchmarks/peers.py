"""The published package on its own stack, from PyPI, to measure against: ``make bench-peers``.

    python -m benchmarks.peers

Makes ``build/peer/venv`` (llm2vec 0.2.3 on transformers 4.44.2, with torch of the version that is
used here) and ``build/peer/model``: the embedded SmolLM2-135M with the configuration and tokenizer
files written as that stack reads them. Benchmarks find both and leave the side out where they are
not there; ``python -m benchmarks.peers`` again mends an unfinished build.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from llm2vec.errors import LLM2VecError
from llm2vec.paths import build_dir
from llm2vec.results import write_atomic

MODEL = "smollm2-135m"
# What llm2vec 0.2.3 leaves open is taken from the months of its release: newer ones no longer fit.
PINS = (
    "llm2vec==0.2.3", "transformers==4.44.2", "numpy<2", "peft==0.13.2", "accelerate==0.34.2",
    "pyarrow<21",
)  # fmt: skip
STAMP = "complete.json"


class PeerError(LLM2VecError):
    """The published package could not be installed."""


def folder() -> Path:
    return build_dir() / "peer"


def requirements() -> list[str]:
    """What is installed; torch has the version of this environment, whatever its build."""
    return [f"torch=={metadata.version('torch').partition('+')[0]}", *PINS]


def peer_python() -> Path | None:
    """Python of the published package, or None where it was not built."""
    python = folder() / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    stamp = folder() / STAMP
    if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != requirements():
        return None
    return python


def peer_model() -> Path:
    """Folder of the model as the published stack reads it."""
    return folder() / "model"


# --------------------------------------------------------------------------- the model
def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` with ``rope_theta`` as a plain key."""
    values = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
    rope = config.get("rope_parameters", {})
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    return values | {"torch_dtype": config.get("dtype", "float32")}


def older_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer.json`` with the merges written as ``"a b"`` instead of pairs."""
    model = dict(tokenizer["model"])
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokenizer | {"model": model}


def older_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` that names a class and inputs which the older library knows."""
    dropped = ("backend", "is_local", "local_files_only")
    values = {k: v for k, v in config.items() if k not in dropped}
    return values | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


def write_model(source: Path, target: Path) -> None:
    """The model folder ``source`` in the older layout, whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, change in {
        "config.json": older_config,
        "tokenizer.json": older_tokenizer,
        "tokenizer_config.json": older_tokenizer_config,
    }.items():
        values = change(json.loads((source / name).read_text(encoding="utf-8")))
        write_atomic(partial / name, json.dumps(values, ensure_ascii=False))
    shutil.copyfile(source / "model.safetensors", partial / "model.safetensors")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


# --------------------------------------------------------------------------- the environment
def _call(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        raise PeerError(
            f"'{' '.join(map(str, command[1:4]))} ...' failed, see above. Connect to PyPI and run "
            "the command again; benchmarks run without the published package, too."
        )


def build() -> None:
    """Environment and model; what is complete is left alone."""
    from llm2vec.assets import model_folder

    stamp = folder() / STAMP
    if peer_python() is None:
        stamp.unlink(missing_ok=True)
        venv = folder() / "venv"
        _call(sys.executable, "-m", "venv", venv)
        python = next(p for p in (venv / "bin" / "python", venv / "Scripts" / "python.exe")
                      if p.exists())  # fmt: skip
        _call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
              *requirements())  # fmt: skip
        write_atomic(stamp, json.dumps(requirements()))
    if not (peer_model() / "model.safetensors").is_file():
        write_model(model_folder(MODEL), peer_model())
    print(f"the published package is in {folder().name}/ of the build folder")


def main() -> None:
    """Install the published package and write its model folder."""
    build()


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)

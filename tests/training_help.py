"""Small runs of both objectives on the tiny decoder, in this process or in others."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2vec.registry import MNTP, LoRA, Model, SimCSE, get_variant

ROOT = Path(__file__).resolve().parents[1]
HANGS = 1200  # seconds after which a process is taken for hanging, however busy the machine is
LORA = LoRA(r=4, alpha=8, dropout=0.1)
MNTP_SETTINGS = MNTP(
    steps=6, batch_size=4, block_size=16, learning_rate=1e-2, schedule_steps=50, lora=LORA
)
SIMCSE_SETTINGS = SimCSE(
    steps=4, batch_size=6, max_length=24, learning_rate=1e-2, schedule_steps=50, lora=LORA
)
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "dog", "while", "others", "sleep")
TEXTS = [
    " ".join(WORDS[(i * k) % len(WORDS)] for k in range(3, 6 + i % 9)).capitalize() + f" {i}."
    for i in range(60)
]


def tiny_model(folder: Path) -> Model:
    """Registry entry for a saved tiny decoder."""
    return Model(
        name=str(folder), display="tiny", hub_id=str(folder), revision="unpinned",
        architecture="llama", parameters=1e4, layers=2, hidden_size=32, dtype="float32",
    )  # fmt: skip


def write_texts(folder: Path) -> Path:
    """The training text as a file."""
    file = folder / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return file


def adapter(folder: Path) -> bytes:
    """The adapter's weights as they lie on disk."""
    return (folder / "adapter_model.safetensors").read_bytes()


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a step a line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(
    stage: str,
    model_folder: Path,
    text: Path,
    output: Path,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Train ``mntp`` or a SimCSE variant on the tiny decoder; returns the output folder."""
    from llm2vec.mntp import train_mntp
    from llm2vec.simcse import train_simcse
    from llm2vec.stage import Options

    defaults = {"dtype": "float32", "device": "cpu", "max_tokens": 32, "save_every": 2}
    settings = Options(**defaults | (options or {}))
    model = tiny_model(model_folder)
    if stage == "mntp":
        values = replace(MNTP_SETTINGS, **changes)
        return train_mntp(model, values, MNTP_SETTINGS, output, settings, text)
    values, variant = replace(SIMCSE_SETTINGS, **changes), get_variant(stage)
    return train_simcse(model, variant, values, SIMCSE_SETTINGS, output, settings, text)


def start_process(code: str, arguments: dict[str, Any], **environment: str) -> subprocess.Popen:
    """A Python process with ``arguments`` (JSON) as ``A`` and this module's names at hand."""
    head = (
        "import json, sys\nfrom pathlib import Path\nfrom training_help import *\n"
        "A = json.loads(sys.argv[1])\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", head + code, json.dumps(arguments)],
        env=os.environ
        | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

"""Runs of three short tasks, and an encoder that counts instead of loading a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_mirror import StubEncoder

from llm2vec.evaluation import Run
from llm2vec.registry import get_task

MODEL = "smollm2-135m"
TASK_NAMES = ("STSBenchmark", "STS17", "SICK-R")


class Loader:
    """Stands in for ``load_encoder``; its encoders fail at the call numbered ``fails_at``."""

    def __init__(self) -> None:
        self.encoders: list[StubEncoder] = []
        self.options: list[dict[str, Any]] = []
        self.fails_at: int | None = None
        self.hashes: tuple[str, ...] = ()

    def __call__(self, model: str, variant: str, **options: Any) -> StubEncoder:
        encoder = StubEncoder(model, variant, self.hashes)
        encode = encoder.encode_poolings

        def encode_or_fail(*arguments: Any, **named: Any) -> Any:
            if self.fails_at == len(encoder.calls) + 1:
                raise KeyboardInterrupt
            return encode(*arguments, **named)

        encoder.encode_poolings = encode_or_fail
        self.encoders.append(encoder)
        self.options.append(options)
        return encoder

    @property
    def encoded(self) -> int:
        """Texts that went through the last encoder."""
        return len(self.encoders[-1].pairs)


def three_tasks(run: Run) -> Run:
    return replace(run, tasks=tuple(map(get_task, TASK_NAMES)))


def one_task(run: Run) -> Run:
    return replace(run, tasks=run.tasks[:1], poolings=("mean",))


def add_adapter(tmp_path: Path, stage: str, content: bytes) -> None:
    folder = tmp_path / "checkpoints" / MODEL / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)

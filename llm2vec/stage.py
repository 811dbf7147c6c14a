"""What a training stage is made of, apart from its loop: settings, samples, model.

Sample ``p`` of a run, its order, its mask and its dropout are functions of (seed, ``p``) alone.
Nothing has to be replayed when a killed run goes on, no state of a random generator saved, and
two processes see the samples and masks that one would.

The backbone is in bfloat16 (as published); LoRA's weights stay in float32 and the forward pass
runs under autocast, which costs little and lets small updates count. Precision, attention kernel
and gradient checkpointing: the paper (D.1.1, D.1.2) has bfloat16, flash attention 2 and
checkpointing for the 7B and 8B models alone, the released configurations have them for
Sheared-LLaMA too. Here checkpointing follows the paper, bfloat16 the configurations, and the
attention kernel is torch's own (sdpa), which computes the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset

from llm2vec.batching import GPU_TOKENS, MAX_TOKENS
from llm2vec.errors import SettingError
from llm2vec.registry import MNTP, Model, SimCSE, settings_dict

Settings = MNTP | SimCSE


# --------------------------------------------------------------------------- settings
@dataclass(frozen=True)
class Options:
    """How a run uses the machine; only ``dtype`` changes more than rounding and dropout's draws.

    ``max_tokens``: tokens of one forward pass (padding counted); None = what suits the device.
    ``caching`` (SimCSE): run the forward passes twice instead of keeping their activations.
    ``checkpointing``: the same within a forward pass, layer by layer; None = from two billion
    parameters on. ``device``: cpu or cuda; None = what is there. ``compile``: each layer through
    ``torch.compile``, whose first step waits for the compiler; for a GPU.
    """

    dtype: str = "bfloat16"
    device: str | None = None
    max_tokens: int | None = None
    save_every: int = 20
    caching: bool = True
    checkpointing: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise SettingError(f"unknown dtype {self.dtype!r}. Valid: bfloat16, float32.")
        if self.device not in (None, "cpu", "cuda"):
            raise SettingError(
                f"training runs on cpu or cuda, not {self.device!r}; choose GPUs by "
                "CUDA_VISIBLE_DEVICES, and start several with torchrun"
            )
        if self.save_every < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise SettingError("max_tokens and save_every must be 1 or more")

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu" or not torch.cuda.is_available()

    @property
    def placement(self) -> str:
        """Where this process loads the backbone: its own GPU, or the CPU where FSDP shards it."""
        if self.on_cpu or _sharded():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"

    @property
    def pass_tokens(self) -> int:
        """Tokens of one forward pass: on a CPU few, to stay in memory; on a GPU the whole batch."""
        return self.max_tokens or (MAX_TOKENS if self.on_cpu else GPU_TOKENS)


def with_overrides(settings: Settings, **overrides: Any) -> Settings:
    """The registry's settings with the options that were given (None = not given)."""
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in ("steps", "batch_size", "block_size", "max_length", "learning_rate"):
        if name in given and not given[name] > 0:
            raise SettingError(f"{name} must be above 0, not {given[name]}")
    changed = replace(settings, **given)
    if changed.steps > changed.schedule_steps:
        raise SettingError(
            f"{changed.steps} steps reach beyond the schedule's end ({changed.schedule_steps}), "
            "where the learning rate is 0"
        )
    return changed


def departures(settings: Settings, registry: Settings) -> dict[str, Any]:
    """Where a run leaves the registry's values: {name: {registry, here}}."""
    ours, theirs = settings_dict(settings), settings_dict(registry)
    return {k: {"registry": theirs[k], "here": v} for k, v in ours.items() if v != theirs[k]}


def run_settings(
    model: Model, stage: str, settings: Settings, options: Options, **more: Any
) -> dict[str, Any]:
    """What decides the result of a run, but for its number of steps."""
    values = settings_dict(settings)
    values.pop("steps")
    return {
        "model": model.name, "revision": model.revision, "stage": stage, "dtype": options.dtype,
        "hyperparameters": values, **more,
    }  # fmt: skip


def storage_dtype(options: Options) -> str:
    """dtype in which the backbone is kept: float32 where FSDP shards it and casts by itself."""
    return "float32" if _sharded() else options.dtype


def _sharded() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"  # set by accelerate launch


# --------------------------------------------------------------------------- model
class Stage(nn.Module):
    """A backbone with LoRA whose forward pass runs under autocast."""

    accepts_loss_kwargs = True  # the Trainer then counts the labels of the whole batch

    def __init__(self, backbone: PeftModel, dtype: str = "float32") -> None:
        super().__init__()
        self.backbone = backbone
        self._no_split_modules = backbone.base_model.model._no_split_modules  # units of FSDP
        self.autocast = dtype != "float32"

    def states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states (batch, length, hidden)."""
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            return self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state

    def set_up(self, model: Model, options: Options, dynamic: bool | None = None) -> None:
        """Checkpointing and compiled layers as the options say; see :meth:`compile_layers`."""
        large = model.parameters > 2e9
        if large if options.checkpointing is None else options.checkpointing:
            self.use_checkpointing()
        if options.compile:
            self.compile_layers(dynamic)

    def use_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        self.backbone.base_model.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    def compile_layers(self, dynamic: bool | None = None) -> int:
        """Run every layer through ``torch.compile``, one program for all; the number of layers.

        ``dynamic``: for batches of many shapes. Losses agree with those of the plain layers to
        rounding; dropout draws other numbers.
        """
        layers = [m for m in self.backbone.modules() if type(m).__name__ in self._no_split_modules]
        for layer in layers:
            layer.compile(dynamic=dynamic)
        return len(layers)


# --------------------------------------------------------------------------- data
class Stream(Dataset):
    """The samples of a run in the order in which they are used: epoch after epoch, shuffled.

    Item ``p`` is (p, sample); it depends on the samples, the seed and ``p`` alone.
    """

    def __init__(self, samples: Sequence[Any], length: int, seed: int) -> None:
        self.samples, self.length, self.seed = samples, length, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[int, Any]:
        epoch, index = divmod(position, len(self.samples))
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = epoch, generator.permutation(len(self.samples))
        return position, self.samples[int(self._order[1][index])]


def seed_dropout(seed: int, position: int, part: int = 0) -> None:
    """Make the dropout of a forward pass a function of the seed and of what goes through it."""
    state = np.random.SeedSequence([seed, position, part]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def hash_samples(samples: Sequence[Any]) -> str:
    """16 hex digits that change with any token, or the order, of the training data."""
    digest = hashlib.sha256()
    for row in samples:
        digest.update(np.int64(len(row)).tobytes() + np.asarray(row, np.int32).tobytes())
    return digest.hexdigest()[:16]

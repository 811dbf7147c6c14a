"""What both objectives share: LoRA, the Trainer, checkpoints, the finished adapter (paper 2.2, D.1).

``transformers.Trainer`` runs the loop, so ``torchrun`` and ``accelerate launch`` spread it over
GPUs. Three things are done differently, so that a killed run ends where an undisturbed one does:

* Sample ``p`` of a run, its order, its mask and its dropout are functions of (seed, ``p``) alone.
  Nothing has to be replayed when a run goes on, and no state of a random generator to be saved.
* Checkpoints are safetensors and JSON, written aside and renamed (see ``llm2vec.runs``).
* The learning rate falls over the registry's horizon (three epochs of the paper's corpus), not
  over the steps that are run.

The backbone is in bfloat16 (as published); LoRA's weights stay in float32 and the forward pass
runs under autocast, which costs little and lets small updates count.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llm2vec.errors import SettingError
from llm2vec.provenance import capture_provenance
from llm2vec.registry import MNTP, LoRA, Model, SimCSE, settings_dict
from llm2vec.results import sha256_file, write_atomic
from llm2vec.runs import ADAPTER_WEIGHTS, RunFolder, TrainingError

Settings = MNTP | SimCSE
LAST = 20  # steps whose mean is called the final loss


@dataclass(frozen=True)
class Options:
    """How a run uses the machine; nothing here changes what is learned, but for ``dtype``.

    ``max_tokens``: tokens of one forward pass (padding counted). ``caching`` (SimCSE): run the
    forward passes twice instead of keeping their activations. ``checkpointing``: the same within
    a forward pass, layer by layer; None = from two billion parameters on.
    """

    dtype: str = "bfloat16"
    device: str | None = None
    max_tokens: int = 2048
    save_every: int = 20
    caching: bool = True
    checkpointing: bool | None = None


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


# --------------------------------------------------------------------------- model
def add_lora(backbone: PreTrainedModel, lora: LoRA, seed: int) -> PeftModel:
    """New LoRA matrices in float32 on a frozen backbone; the same ones for the same seed."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
    )
    try:
        model = get_peft_model(backbone, config)
    except ValueError as error:
        raise SettingError(f"LoRA does not fit this backbone: {error}") from error
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # Autocast casts the small matrices; casting the activations to float32 instead would
            # double their memory.
            module.cast_input_dtype_enabled = False
    return model


class Stage(nn.Module):
    """A backbone with LoRA whose forward pass runs under autocast."""

    accepts_loss_kwargs = True  # the Trainer then counts the labels of the whole batch

    def __init__(self, backbone: PeftModel, dtype: str = "float32") -> None:
        super().__init__()
        self.backbone = backbone
        self.autocast = dtype != "float32"

    def states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states (batch, length, hidden)."""
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            return self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state

    def use_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        self.backbone.base_model.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )


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


# --------------------------------------------------------------------------- Trainer
class StageTrainer(Trainer):
    """The Trainer with this project's schedule, checkpoints, metrics and guards.

    Subclasses implement :meth:`training_step` with ``self.settings`` and ``self.options``.
    """

    def __init__(
        self,
        stage: Stage,
        samples: Sequence[Any],
        collate: Callable[[list[tuple[int, Any]]], dict[str, Any]],
        settings: Settings,
        options: Options,
        run: RunFolder,
        micro_batch: int | None = None,
    ) -> None:
        self.settings, self.options, self.run = settings, options, run
        self.tokens, self._bar, self._clock = 0, None, time.monotonic()
        cpu = options.device == "cpu" or not torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(run.run),
            use_cpu=cpu,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            optim="adamw_torch",
            seed=settings.seed,
            save_strategy="steps",
            save_steps=options.save_every,
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=not cpu,
            ddp_find_unused_parameters=False,
        )
        share, rest = divmod(settings.batch_size, arguments.world_size)
        micro_batch = min(micro_batch or share, share) or 1
        if rest or share % micro_batch:
            raise SettingError(
                f"a batch of {settings.batch_size} cannot be split over {arguments.world_size} "
                f"process(es) in micro-batches of {micro_batch}"
            )
        arguments.per_device_train_batch_size = micro_batch
        arguments.gradient_accumulation_steps = share // micro_batch
        stream = Stream(samples, settings.steps * settings.batch_size, settings.seed)
        super().__init__(stage, arguments, data_collator=collate, train_dataset=stream)
        self.pop_callback(PrinterCallback)

    # ----------------------------------------------------------------- order and schedule
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # Stream has shuffled

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Linear to zero at the registry's horizon, whatever number of steps is run."""
        warmup, horizon = self.settings.warmup_steps, self.settings.schedule_steps

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return max(0.0, (horizon - step) / max(1, horizon - warmup))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ----------------------------------------------------------------- guards
    def guard(self, loss: torch.Tensor) -> None:
        """Stop before a loss that is no number reaches the weights."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {float(loss)} in step {self.state.global_step + 1}; the adapter "
                f"of the last checkpoint in {self.run.run} is untouched. Lower --learning-rate or "
                "use --dtype float32."
            )

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.guard(torch.as_tensor(norm))
        return norm

    # ----------------------------------------------------------------- metrics
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line of ``metrics.jsonl`` and one move of the progress bar per step."""
        if "loss" not in logs:
            return  # the Trainer's own summary
        tokens = torch.tensor(self.tokens, device=self.args.device)
        tokens, self.tokens = int(self.accelerator.reduce(tokens, "sum")), 0
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        if not self.is_world_process_zero():
            return
        step = self.state.global_step
        self.run.add_metrics(
            {
                "step": step,
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm", math.nan),
                "learning_rate": logs["learning_rate"],
                "tokens": tokens,
                "seconds": round(seconds, 3),
            }
        )
        if self._bar is None:
            self._bar = tqdm(total=self.args.max_steps, initial=step - 1, unit="step")
        self._bar.set_postfix_str(
            f"loss {logs['loss']:.3f}, {tokens / max(seconds, 1e-9):.0f} tokens/s", refresh=False
        )
        self._bar.update()

    # ----------------------------------------------------------------- checkpoints
    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step = self.state.global_step
        if self.is_fsdp_enabled:  # sharded: the Trainer's own files, moved when all are there
            if self.is_world_process_zero():
                self.run.partial(step).mkdir(parents=True, exist_ok=True)
            self.accelerator.wait_for_everyone()
            self.args.output_dir = str(self.run.partial(step).parent)
            super()._save_checkpoint(model, trial)
            self.args.output_dir = str(self.run.run)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.run.seal(step)
        elif self.is_world_process_zero():
            with self.run.writing_checkpoint(step) as folder:
                save_file(self._lora(), folder / "lora.safetensors")
                save_file(self._moments(), folder / "optimizer.safetensors")
                self.state.save_to_json(str(folder / "trainer_state.json"))
        self.accelerator.wait_for_everyone()

    def _lora(self) -> dict[str, torch.Tensor]:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: p.detach().contiguous() for name, p in named if p.requires_grad}

    def _moments(self) -> dict[str, torch.Tensor]:
        state = self._adam().state
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {
            f"{key}/{name}": value.contiguous()
            for name, p in named
            if p in state
            for key, value in state[p].items()
        }

    def _adam(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = _load_tensors(Path(resume_from_checkpoint) / "lora.safetensors")
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if saved.keys() != named.keys():
            raise TrainingError(f"{resume_from_checkpoint}: of another model; move it away")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        adam, saved = self._adam(), _load_tensors(Path(checkpoint) / "optimizer.safetensors")
        named = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        for entry, value in saved.items():
            key, name = entry.split("/", 1)
            parameter = named[name]
            device = "cpu" if key == "step" else parameter.device
            adam.state[parameter][key] = value.to(device)
        scheduler = self.lr_scheduler
        scheduler.last_epoch = self.state.global_step
        for group, base, factor in zip(
            adam.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: see ``seed_dropout``."""


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{file}: damaged ({error}); delete {file.parent} to start this run again"
        ) from error


# --------------------------------------------------------------------------- the run
def train(trainer: StageTrainer) -> None:
    """Run to the end, from the last checkpoint where there is one."""
    run = trainer.run
    last = run.last_checkpoint()
    step = int(last.name.rpartition("-")[2]) if last else 0
    if trainer.is_world_process_zero():
        run.resume_metrics(step)
    trainer.accelerator.wait_for_everyone()
    if step < trainer.settings.steps:
        trainer._clock = time.monotonic()
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    elif last:
        trainer._load_from_checkpoint(str(last))
    if trainer._bar is not None:
        trainer._bar.close()


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


def save_adapter(
    trainer: StageTrainer, model: Model, registry: Settings, note: dict[str, Any]
) -> None:
    """Write the finished adapter (bfloat16), its config, its provenance and the loss curve.

    ``note`` goes into ``provenance.json`` as it is; the weights are in place before the note
    that declares the run finished. All processes call it, the first one writes.
    """
    stage = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if state is not None:
        state = {k.removeprefix("backbone."): v for k, v in state.items()}
    weights = get_peft_model_state_dict(stage.backbone, state_dict=state)
    if not trainer.is_world_process_zero():
        return
    run, settings = trainer.run, trainer.settings
    folder = run.folder
    weights = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in weights.items()}
    partial = folder / f".{ADAPTER_WEIGHTS}"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(folder / ADAPTER_WEIGHTS)
    write_atomic(folder / "adapter_config.json", _adapter_config(stage.backbone, model))
    run.plot_loss(f"{model.display}, {run.settings['stage']}")
    lines = run.metrics
    samples, steps = len(trainer.train_dataset.samples), settings.steps
    values = {
        **note,
        "model": model.name,
        "stage": run.settings["stage"],
        "steps": steps,
        "epochs": round(steps * settings.batch_size / samples, 4),
        "samples": samples,
        "tokens": int(sum(line["tokens"] for line in lines)),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "final_loss": sum(line["loss"] for line in lines[-LAST:]) / len(lines[-LAST:]),
        "hyperparameters": settings_dict(settings),
        "departures": departures(settings, registry),
        "options": asdict(trainer.options),
        "processes": trainer.args.world_size,
        "adapter_sha256": sha256_file(folder / ADAPTER_WEIGHTS),
        "settings": run.settings,
        "provenance": capture_provenance(
            str(trainer.args.device), trainer.options.dtype,
            str(stage.backbone.config._attn_implementation),
        ).as_dict(),
    }  # fmt: skip
    write_atomic(folder / "provenance.json", json.dumps(values, indent=1, sort_keys=True) + "\n")


def _adapter_config(backbone: PeftModel, model: Model) -> str:
    config = backbone.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": model.hub_id, "inference_mode": True}
    config["revision"] = None
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n"


def hash_samples(samples: Sequence[Any]) -> str:
    """16 hex digits that change with any token, or the order, of the training data."""
    digest = hashlib.sha256()
    for row in samples:
        digest.update(np.int64(len(row)).tobytes() + np.asarray(row, np.int32).tobytes())
    return digest.hexdigest()[:16]

"""The training loop of both objectives, and the adapter it ends in (paper 2.2, D.1).

``transformers.Trainer`` runs the loop, so ``torchrun`` and ``accelerate launch`` spread it over
GPUs; the overridden methods with a leading underscore are those of transformers 5.23, which is
pinned. Different on purpose:

* Checkpoints are safetensors and JSON, written aside and renamed (see ``llm2vec.runs``).
* The learning rate falls over the registry's horizon (three epochs of the paper's corpus), not
  over the steps that are run.
* Random numbers are seeded per micro-batch (see ``llm2vec.stage``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llm2vec.errors import SettingError
from llm2vec.provenance import Provenance, capture_provenance
from llm2vec.registry import Model, settings_dict
from llm2vec.results import sha256_file, write_atomic
from llm2vec.runs import ADAPTER_WEIGHTS, RunFolder, TrainingError
from llm2vec.stage import Options, Settings, Stage, Stream, departures

STARTS = "starts.json"  # in the run's folder, beside its settings
STATE = ("commit", "commit_source", "dirty", "device", "versions")  # of a process that trains
LAST = 20  # steps whose mean is called the final loss


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
        self.starts: list[dict[str, Any]] = []  # of the processes of this run, see train
        arguments = TrainingArguments(
            output_dir=str(run.run),
            use_cpu=options.on_cpu,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            optim="adamw_torch" if options.on_cpu else "adamw_torch_fused",
            seed=settings.seed,
            save_strategy="steps",
            save_steps=options.save_every,
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=not options.on_cpu,
            dataloader_num_workers=0 if options.on_cpu else 2,  # a GPU never waits for masks
            ddp_find_unused_parameters=False,
        )
        # Several visible GPUs and one process: not nn.DataParallel, which would multiply the batch.
        arguments._n_gpu = min(arguments.n_gpu, 1)
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
        self.origin = capture_provenance(  # now: what it says of time is when this process began
            str(self.args.device), options.dtype, str(stage.backbone.config._attn_implementation)
        )

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
            step = self.state.global_step + 1
            raise TrainingError(
                f"the loss became {float(loss.detach())} in step {step}; the last checkpoint in "
                f"{self.run.run} is untouched. Lower --learning-rate or use --dtype float32."
            )

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.guard(norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm))
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
        lora, moments = self.lora(), self._moments()  # gathered by all where they are sharded
        if self.is_world_process_zero():
            with self.run.writing_checkpoint(self.state.global_step) as folder:
                save_file(lora, folder / "lora.safetensors")
                save_file(moments, folder / "optimizer.safetensors")
                self.state.save_to_json(str(folder / "trainer_state.json"))
        self.accelerator.wait_for_everyone()

    def _trained(self) -> dict[str, nn.Parameter]:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def lora(self) -> dict[str, torch.Tensor]:
        """The trained matrices by name, whole and on the CPU; all processes must call it."""
        return {name: _whole(parameter) for name, parameter in self._trained().items()}

    def _moments(self) -> dict[str, torch.Tensor]:
        state = self._adam().state
        return {
            f"{key}/{name}": _whole(value)
            for name, parameter in self._trained().items()
            for key, value in state.get(parameter, {}).items()
        }

    def _adam(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = _load_tensors(Path(resume_from_checkpoint) / "lora.safetensors")
        trained = self._trained()
        if saved.keys() != trained.keys():
            raise TrainingError(f"{resume_from_checkpoint}: of another model; move it away")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(_like(saved[name], parameter))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        adam, trained = self._adam(), self._trained()
        for entry, value in _load_tensors(Path(checkpoint) / "optimizer.safetensors").items():
            key, name = entry.split("/", 1)
            if key != "step":
                value = _like(value, trained[name])
            elif adam.defaults.get("fused"):  # counts steps where the parameters are
                value = value.to(trained[name].device)
            adam.state[trained[name]][key] = value
        scheduler = self.lr_scheduler
        scheduler.last_epoch = self.state.global_step
        for group, base, factor in zip(
            adam.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: see ``seed_dropout``."""


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.cpu().contiguous()


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``value`` on the device of a parameter, sharded as that is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


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
        run.start(step)
        trainer.starts = _note_start(run, step, trainer.origin)
    trainer.accelerator.wait_for_everyone()
    if step < trainer.settings.steps:
        trainer._clock = time.monotonic()
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    elif last:
        trainer._load_from_checkpoint(str(last))
    if trainer._bar is not None:
        trainer._bar.close()


def _note_start(run: RunFolder, step: int, origin: Provenance) -> list[dict[str, Any]]:
    """Step and origin of each process that trained the run, this one the last, kept for the next.

    Without those of whom nothing is left: they began where this one begins, or later.
    """
    file = run.run / STARTS
    try:
        starts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the first start, or of an older version: nothing is known
        starts = []
    starts = [start for start in starts if start["step"] < step]
    starts.append({"step": step, "provenance": origin.as_dict()})
    write_atomic(file, json.dumps(starts, indent=1, sort_keys=True) + "\n")
    return starts


def _attested(starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What an adapter's note says of its origin: the first start, and later ones that differ.

    ``resumed`` names every later start as soon as one is of other code, libraries or device, and
    a first one that is not at step 0: of who trained the steps before it nothing is known.
    """
    states = [
        {name: origin[name] for name in STATE if name in origin}
        for origin in (start["provenance"] for start in starts)
    ]
    values: dict[str, Any] = {"provenance": starts[0]["provenance"]}
    if starts[0]["step"] or any(state != states[0] for state in states):
        values["resumed"] = [
            {"step": start["step"], "started": start["provenance"]["started"]} | state
            for start, state in zip(starts, states, strict=True)
            if start["step"]
        ]
    return values


def save_adapter(
    trainer: StageTrainer, model: Model, registry: Settings, note: dict[str, Any]
) -> None:
    """Write the finished adapter (bfloat16), its config, its provenance and the loss curve.

    ``note`` goes into ``provenance.json`` as it is, and with it the origin of the first process
    that trained the run and of later ones that differ from it. That file declares the run
    finished: an older one goes first, the new one comes last. All processes call it after
    :func:`train`, the first one writes.
    """
    stage = trainer.accelerator.unwrap_model(trainer.model)
    state = {name.removeprefix("backbone."): value for name, value in trainer.lora().items()}
    if not trainer.is_world_process_zero():
        return
    run, settings = trainer.run, trainer.settings
    folder = run.folder
    weights = get_peft_model_state_dict(stage.backbone, state_dict=state)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    partial = folder / f".{ADAPTER_WEIGHTS}"
    save_file(weights, partial, metadata={"format": "pt"})
    (folder / "provenance.json").unlink(missing_ok=True)
    write_atomic(folder / "adapter_config.json", _adapter_config(stage.backbone, model))
    partial.replace(folder / ADAPTER_WEIGHTS)
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
        **_attested(trainer.starts),
    }  # fmt: skip
    write_atomic(folder / "provenance.json", json.dumps(values, indent=1, sort_keys=True) + "\n")


def _adapter_config(backbone: PeftModel, model: Model) -> str:
    config = backbone.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": model.hub_id, "inference_mode": True}
    config["revision"] = None
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n"

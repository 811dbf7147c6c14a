"""The published way of a training step, for ``benchmarks/training.py``; no program of its own.

    PEER/bin/python benchmarks/published_training.py

Runs where the published package is installed. Its PyPI package has no training scripts: this is a
minimal Trainer loop around its model classes and its loss, with logits at every position, the two
views in two passes, padding on the left, pooled over the text alone.
"""

import json
from pathlib import Path

import torch
from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
from llm2vec.models import LlamaBiForMNTP, LlamaBiModel
from peft import LoraConfig, get_peft_model
from protocol import Line, serve, step_clock
from transformers import LlamaConfig, Trainer, TrainingArguments

MODULES = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(kind, folder, dtype, **changes):
    config = LlamaConfig.from_pretrained(folder, **changes)
    config._attn_implementation = "sdpa"
    return kind.from_pretrained(folder, config=config, torch_dtype=getattr(torch, dtype))


def pad_left(rows, pad):
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


class SimCSETrainer(Trainer):
    loss = HardNegativeNLLLoss(scale=20.0)

    def compute_loss(self, model, inputs, return_outputs=False):
        views = []
        for _ in range(2):
            states = model(**inputs).last_hidden_state
            lengths = inputs["attention_mask"].sum(-1)
            views.append(
                torch.stack([s[-n:].mean(0) for s, n in zip(states, lengths, strict=True)])
            )
        return self.loss(*views)


class Side:
    def __init__(self, line):
        self.line = line

    def load(self, file, model):
        shared = json.loads(Path(file).read_text(encoding="utf-8"))
        job = shared["job"]
        lora = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=MODULES
        )
        torch.manual_seed(0)
        if job["stage"] == "mntp":
            network = load(LlamaBiForMNTP, model, job["dtype"])
            network.set_model_for_peft(get_peft_model(network.get_model_for_peft(), lora))
            for name, parameter in network.named_parameters():
                parameter.requires_grad_("lora_" in name)
            batches = [{k: torch.tensor(v) for k, v in b.items()} for b in shared["batches"]]
            kind = Trainer
        else:
            network = load(LlamaBiModel, model, job["dtype"], attention_dropout=0.3)
            network = get_peft_model(network, lora)
            batches = [pad_left(batch["rows"], shared["pad"]) for batch in shared["batches"]]
            kind = SimCSETrainer
        arguments = TrainingArguments(
            output_dir=str(Path(file).with_name("published")),
            per_device_train_batch_size=1, max_steps=len(batches), save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, logging_steps=1, remove_unused_columns=False,
            learning_rate=5e-5,
        )  # fmt: skip
        self.trainer = kind(
            network, arguments, data_collator=lambda rows: rows[0],
            train_dataset=InOrder(batches), callbacks=[],
        )  # fmt: skip
        return {}

    def step(self):
        """All steps: each but the last request is read by the clock; this answers ``end``."""
        self.trainer._get_train_sampler = lambda: torch.utils.data.SequentialSampler(
            self.trainer.train_dataset
        )
        self.trainer.add_callback(step_clock(self.line))
        self.trainer.train()
        return {"losses": [e["loss"] for e in self.trainer.state.log_history if "loss" in e]}


class InOrder(torch.utils.data.Dataset):
    """The batches of the steps, each an item."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


if __name__ == "__main__":
    line = Line()
    side = Side(line)
    serve({"load": side.load, "step": side.step}, line)

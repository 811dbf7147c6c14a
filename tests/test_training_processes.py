"""Training by several processes: gradients of one, sharded weights."""

import json
import socket
from pathlib import Path

import pytest
import torch
from training_help import HANGS, lines, start_process, write_texts


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


# --------------------------------------------------------------------------- several processes
ONE_OF_TWO = """
import torch
from llm2vec.training import StageTrainer
clip = StageTrainer._clip_grad_norm
def keep(self, model):
    grads = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
    if self.is_world_process_zero() and self.state.global_step == 0:
        torch.save(grads, A["grads"])
    return clip(self, model)
StageTrainer._clip_grad_norm = keep
from llm2vec.simcse import SimCSEModel
forward, passes = SimCSEModel.forward, []
def counting(self, *args, **kwargs):
    passes.append(1)
    return forward(self, *args, **kwargs)
SimCSEModel.forward = counting
run(A["stage"], Path(A["model"]), Path(A["text"]), Path(A["out"]), A["options"], steps=2,
    lora=LoRA(r=4, alpha=8, dropout=0.0), **A["changes"])
print("passes", len(passes))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes", "options"),
    [
        ("mntp", {}, {}),
        ("bi-simcse", {"attention_dropout": 0.0}, {"caching": True}),
        ("bi-simcse", {"attention_dropout": 0.0}, {"caching": False}),
    ],
)
def test_two_processes_give_the_gradients_of_one(
    stage: str, changes: dict, options: dict, tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    def start(name: str, processes: int) -> list:
        arguments = {
            "stage": stage, "model": str(tiny_llama_dir), "text": str(text),
            "out": str(tmp_path / name), "grads": str(tmp_path / f"{name}.pt"),
            "changes": changes, "options": options,
        }  # fmt: skip
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(processes), **shared}
            for r in range(processes)
        ]
        return [start_process(ONE_OF_TWO, arguments, **(e if processes > 1 else {})) for e in ranks]

    passes = []
    for process in [*start("one", 1), *start("two", 2)]:
        output, errors = process.communicate(timeout=HANGS)
        assert process.returncode == 0, errors[-2000:]
        passes.append(int(output.split()[-1]))
    # As sharded layers need it, although the sentences of the two are of other lengths.
    assert passes[1] == passes[2] and (stage == "mntp") == (passes[1] == 0)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 28
    largest = max(g.abs().max() for g in one.values())
    assert largest > 1e-3
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], rtol=1e-4, atol=1e-5 * largest), name
    single, double = lines(tmp_path / "one"), lines(tmp_path / "two")
    for key in ("loss", "grad_norm", "learning_rate", "tokens"):
        assert [x[key] for x in double] == pytest.approx([x[key] for x in single], rel=1e-4), key
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2


# --------------------------------------------------------------------------- sharding
SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from llm2vec.loading import load_backbone
from llm2vec.lora import add_lora
from llm2vec.mntp import MNTPModel
from llm2vec.training import _like, _whole

dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
model, _ = load_backbone(A["model"], dtype="float32", device="cpu", head=True)
body = add_lora(model.base_model, LoRA(r=4, alpha=8, dropout=0.0), 0)
for name, p in body.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
stage = MNTPModel(body, model.lm_head)
ids = torch.arange(48).reshape(4, 12) + 5
labels = ids.masked_fill(ids % 3 == 0, -100)
stage(ids, labels).backward()
expected = {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}
weights = {n: p.detach().clone() for n, p in stage.named_parameters() if p.requires_grad}
stage.zero_grad()

mesh = init_device_mesh("cpu", (processes,))
kinds = stage._no_split_modules
for module in list(stage.modules()):
    if type(module).__name__ in kinds:
        fully_shard(module, mesh=mesh)
fully_shard(stage, mesh=mesh)
mine = slice(2 * rank, 2 * rank + 2)
(stage(ids[mine], labels[mine]) * processes).backward()
trained = {n: p for n, p in stage.named_parameters() if p.requires_grad}
assert len(trained) == len(expected) == 28
for n, p in trained.items():
    assert p.to_local().numel() < p.numel(), n  # really sharded
    torch.testing.assert_close(_whole(p.grad), expected[n], rtol=1e-4, atol=1e-4)
    assert torch.equal(_whole(p), weights[n])  # as a checkpoint holds it
    with torch.no_grad():
        p.copy_(_like(weights[n] + 1, p))  # as a checkpoint is loaded
    assert torch.equal(_whole(p), weights[n] + 1)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_model_gives_gradients_and_checkpoints_of_a_whole_one(tiny_llama_dir: Path) -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    arguments = {"model": str(tiny_llama_dir)}
    for process in [start_process(SHARDED, arguments, **shared, **rank) for rank in ranks]:
        _, errors = process.communicate(timeout=HANGS)
        assert process.returncode == 0, errors[-2000:]


def test_sharding_configuration_is_one_that_accelerate_reads(repo_root: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(repo_root / "experiments" / "accelerate" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP" and config.mixed_precision == "bf16"
    assert config.fsdp_config["fsdp_version"] == 2
    # Layers to wrap are not named here, so the model must name them.
    assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config

"""Step 2 of the recipe: masked next token prediction (paper 2.2, D.1.1).

    python experiments/01_train_mntp.py --model smollm2-135m
    torchrun --nproc-per-node 8 experiments/01_train_mntp.py --model mistral-7b
    accelerate launch --config_file experiments/accelerate/fsdp.yaml \
        experiments/01_train_mntp.py --model llama-3-8b

Hyperparameters are the registry's; an option changes one, and the adapter's provenance says so.
A model of the paper trains on Wikitext-103 or, where that cannot be had, not at all (--stand-in).
Writes ``$LLM2VEC_CHECKPOINTS/{model}/mntp/``; killed, the same command goes on.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec import console
from llm2vec.errors import SettingError
from llm2vec.paths import checkpoints_dir
from llm2vec.registry import get_model


def main(
    model: Annotated[str, typer.Option(help="A decoder of the registry.")],
    words: Annotated[
        bool, typer.Option(help="The word-level adapter's setting (Mistral).")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Blocks per step, all GPUs.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens per block.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    mask_probability: Annotated[float | None, typer.Option(help="Share of masked tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order, masks, dropout, LoRA.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Own text: UTF-8, one per line.", exists=True)
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Take other text where the paper's cannot be had.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of adapter and run.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: what is there.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 20,
    checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations; default: above 2e9 parameters.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="Fuse layers (torch.compile); for a GPU.")] = False,
) -> None:
    """Train an MNTP adapter."""
    spec = get_model(model)
    registry = spec.mntp_words if words else spec.mntp
    if registry is None:
        raise SettingError(f"the registry has no such MNTP setting for {model}")
    from llm2vec.mntp import train_mntp  # after the names are checked: torch loads slowly
    from llm2vec.stage import Options, with_overrides

    settings = with_overrides(
        registry, steps=steps, batch_size=batch_size, block_size=block_size, seed=seed,
        learning_rate=learning_rate, mask_probability=mask_probability,
    )  # fmt: skip
    stage = "mntp-words" if words else "mntp"
    options = Options(
        dtype=dtype, device=device, max_tokens=max_tokens, save_every=save_every,
        checkpointing=checkpointing, compile=compile,
    )  # fmt: skip
    folder = output or checkpoints_dir() / model / stage
    print(train_mntp(spec, settings, registry, folder, options, data, stage, stand_in=stand_in))


if __name__ == "__main__":
    console.run(main)

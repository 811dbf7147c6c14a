"""Step 3 of the recipe: unsupervised contrastive learning (paper 2.2, D.1.2).

    python experiments/02_train_simcse.py --model smollm2-135m
    python experiments/02_train_simcse.py --model smollm2-135m --variant uni-simcse
    torchrun --nproc-per-node 8 experiments/02_train_simcse.py --model mistral-7b

``bi-mntp-simcse`` starts from the model's own MNTP adapter (train that first). Hyperparameters
are the registry's; an option changes one, and the adapter's provenance says so. A model of the
paper trains on the sentences of Gao et al. or, where those cannot be had, not at all
(--stand-in). Writes ``$LLM2VEC_CHECKPOINTS/{model}/{mntp-simcse, uni-simcse or bi-simcse}/``;
killed, the same command goes on.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec import console
from llm2vec.errors import SettingError
from llm2vec.paths import checkpoints_dir
from llm2vec.registry import get_model, get_variant


def main(
    model: Annotated[str, typer.Option(help="A decoder of the registry.")],
    variant: Annotated[str, typer.Option(help="bi-mntp-simcse, uni-simcse or bi-simcse.")] = (
        "bi-mntp-simcse"
    ),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences per step, all GPUs.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a sentence.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    attention_dropout: Annotated[float | None, typer.Option(help="On attention weights.")] = None,
    pool_over_padding: Annotated[
        bool | None, typer.Option(help="Average padding too, as the published trainer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order, dropout, LoRA.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Own sentences: UTF-8, one per line.", exists=True)
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Take other text where the paper's cannot be had.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of adapter and run.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: what is there.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    caching: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = True,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 20,
    checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations; default: above 2e9 parameters.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="Fuse layers (torch.compile); for a GPU.")] = False,
) -> None:
    """Train a SimCSE adapter."""
    spec, kind = get_model(model), get_variant(variant)
    if spec.simcse is None:
        raise SettingError(f"the registry has no SimCSE setting for {model}")
    from llm2vec.simcse import train_simcse  # after the names are checked: torch loads slowly
    from llm2vec.stage import Options, with_overrides

    settings = with_overrides(
        spec.simcse, steps=steps, batch_size=batch_size, max_length=max_length, seed=seed,
        learning_rate=learning_rate, attention_dropout=attention_dropout,
        pool_over_padding=pool_over_padding,
    )  # fmt: skip
    options = Options(
        dtype=dtype, device=device, max_tokens=max_tokens, save_every=save_every, caching=caching,
        checkpointing=checkpointing, compile=compile,
    )  # fmt: skip
    folder = output or checkpoints_dir() / model / str(kind.adapter)
    print(train_simcse(
        spec, kind, settings, spec.simcse, folder, options, data, stand_in=stand_in
    ))  # fmt: skip


if __name__ == "__main__":
    console.run(main)

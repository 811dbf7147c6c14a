"""Layer similarity (paper 4.2, Figures 5, 8, 9): how far do states move without a causal mask?

    python experiments/07_layer_similarity.py --model smollm2-135m

writes results/raw/layer_similarity/MODEL/bi/none/wikipedia.json and, beside it, the maps of every
paragraph in wikipedia.npz. `--paragraphs FILE` (text, an empty line between paragraphs) writes
wikipedia@NAME. What differs from the paper on purpose: see llm2vec/layers.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir

RESULTS = results_dir()


def main(
    model: Annotated[str, typer.Option(help="Name of a decoder in the registry.")],
    paragraphs: Annotated[Path | None, typer.Option(help="Text file with own paragraphs.")] = None,
    results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is done.")] = False,
) -> None:
    """Compare causal and bidirectional states of one untrained model, layer by layer."""
    from llm2vec.analyses import measure_layers  # here: --help need not wait for torch

    measure_layers(model, results, paragraphs=paragraphs, device=device, dtype=dtype, force=force)


if __name__ == "__main__":
    run(main)

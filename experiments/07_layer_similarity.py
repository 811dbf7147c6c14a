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
from llm2vec.registry import get_model

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
    entry = get_model(model)

    from tqdm import tqdm

    from llm2vec import layers, representations
    from llm2vec.loading import load_backbone, resolve_device, resolve_dtype
    from llm2vec.provenance import capture_provenance

    resolve_dtype(dtype, entry), resolve_device(device)  # before anything is fetched
    texts = layers.read_paragraphs(paragraphs) if paragraphs else layers.wikipedia_paragraphs()
    key = layers.key_of(entry, texts, dtype)
    settings = layers.settings_of(entry, texts, dtype)
    if not force and representations.is_complete(key, results, layers.SUFFIX, settings):
        typer.echo(f"done before: {key.path(results)}")
        return

    backbone, tokenizer = load_backbone(model, dtype=dtype, device=device)
    origin = capture_provenance(
        str(backbone.device),
        str(backbone.dtype).removeprefix("torch."),
        str(backbone.config._attn_implementation),
    )
    sequences = layers.tokenize(tokenizer, texts.texts)
    with tqdm(total=len(sequences), unit=" paragraphs") as bar:
        found = layers.layer_similarity(backbone, sequences, progress=bar.update)
    record = layers.make_record(found, entry, texts, provenance=origin)
    path = representations.write_with_arrays(record, results, layers.SUFFIX, found.save)
    typer.echo(f"{path}: mean cosine {record.score:.3f} over {record.n} paragraphs")


if __name__ == "__main__":
    run(main)

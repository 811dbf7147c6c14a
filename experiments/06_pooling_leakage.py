"""Pooling leakage (paper 4.1, Figures 4 and 7): does a pooled beginning know what follows it?

    python experiments/06_pooling_leakage.py --model smollm2-135m --variant bi

writes results/raw/pooling_leakage/MODEL/VARIANT/none/triples.json and, beside it, the cosines of
every triple in triples.parquet. `--triples FILE` (JSONL: id, a, b, c, d) writes triples@NAME.
What differs from the paper on purpose: see llm2vec/leakage.py.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm2vec.console import run
from llm2vec.errors import SettingError
from llm2vec.paths import results_dir
from llm2vec.registry import get_model, get_variant, variants_of

RESULTS = results_dir()
Adapters = Literal["own", "published"]


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ..., echo, encoder.")],
    triples: Annotated[Path | None, typer.Option(help="JSONL with own triples.")] = None,
    adapters: Annotated[Adapters, typer.Option(help="Trained here, or the authors'.")] = "own",
    results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is done.")] = False,
) -> None:
    """Compare the pooled beginnings of triples for one model and variant."""
    entry, kind = get_model(model), get_variant(variant)
    if kind.name not in variants_of(entry):
        raise SettingError(
            f"{model} has no variant {variant}. Valid: {', '.join(variants_of(entry))}."
        )

    from tqdm import tqdm

    from llm2vec import leakage, representations
    from llm2vec.adapters import adapter_folders, adapter_hash, published_adapters
    from llm2vec.encoder import load_encoder
    from llm2vec.provenance import capture_provenance

    chosen = leakage.load_triples(triples)
    find = published_adapters if adapters == "published" else adapter_folders
    hashes = tuple(adapter_hash(folder) for folder in find(entry, kind))
    key = leakage.key_of(entry, kind, chosen, dtype)
    settings = leakage.settings_of(entry, kind, chosen, dtype)
    if not force and representations.is_complete(key, results, leakage.SUFFIX, settings, hashes):
        typer.echo(f"done before: {key.path(results)}")
        return

    encoder = load_encoder(model, variant, adapters=adapters, dtype=dtype, device=device)
    dtype = str(encoder.dtype).removeprefix("torch.")
    origin = capture_provenance(str(encoder.device), dtype, encoder.attention_implementation)
    with tqdm(total=len(chosen.triples), unit=" triples") as bar:
        cosines = leakage.prefix_cosines(
            encoder.backbone, encoder.tokenizer, chosen.triples,
            echo=kind.echo, limit=encoder.max_length, progress=bar.update,
        )  # fmt: skip
    leakage.check_cosines(cosines, kind)
    record = leakage.make_record(
        cosines, entry, kind, chosen, adapters=encoder.adapters, provenance=origin
    )
    path = representations.write_with_arrays(record, results, leakage.SUFFIX, cosines.save)
    typer.echo(f"{path}: {record.score:.3f} ranked right, gap {record.scores['gap']:+.4f}")


if __name__ == "__main__":
    run(main)

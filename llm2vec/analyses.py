"""From names to records of the two analyses of the representations (paper section 4).

:mod:`llm2vec.leakage` (Figures 4 and 7) and :mod:`llm2vec.layers` (Figures 5, 8 and 9) know what is
measured; here a model is loaded, run and recorded, once, by ``experiments/06_pooling_leakage.py``
and ``07_layer_similarity.py`` and by whoever makes a record again.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from llm2vec import layers, leakage, representations
from llm2vec.adapters import adapter_folders, adapter_hash, published_adapters
from llm2vec.errors import SettingError
from llm2vec.provenance import capture_provenance, git_state
from llm2vec.registry import get_model, get_variant, variants_of


def measure_leakage(
    model: str,
    variant: str,
    results: Path,
    *,
    triples: Path | None = None,
    adapters: str = "own",
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Path:
    """The record of one model and variant, made unless it is there; ``force``: made in any case.

    Raises a :class:`~llm2vec.errors.LLM2VecError` for names that do not fit and for what cannot be
    had, before anything is measured.
    """
    git_state()  # of the code that runs now, whatever is edited meanwhile
    entry, kind = get_model(model), get_variant(variant)
    if kind.name not in variants_of(entry):
        raise SettingError(
            f"{model} has no variant {variant}. Valid: {', '.join(variants_of(entry))}."
        )
    from llm2vec.encoder import load_encoder  # here, as torch loads slowly

    chosen = leakage.load_triples(triples)
    find = published_adapters if adapters == "published" else adapter_folders
    hashes = tuple(adapter_hash(folder) for folder in find(entry, kind))
    key = leakage.key_of(entry, kind, chosen, dtype, adapters)
    settings = leakage.settings_of(entry, kind, chosen, dtype)
    if not force and representations.is_complete(key, results, leakage.SUFFIX, settings, hashes):
        print(f"done before: {key.path(results)}")
        return key.path(results)

    encoder = load_encoder(model, variant, adapters=adapters, dtype=dtype, device=device)
    origin = capture_provenance(
        str(encoder.device), encoder.precision, encoder.attention_implementation
    )
    with tqdm(total=len(chosen.triples), unit=" triples") as bar:
        cosines = leakage.prefix_cosines(
            encoder.backbone, encoder.tokenizer, chosen.triples,
            echo=kind.echo, limit=encoder.max_length, progress=bar.update,
        )  # fmt: skip
    leakage.check_cosines(cosines, kind)
    record = leakage.make_record(
        cosines, entry, kind, chosen, adapters=encoder.adapters, provenance=origin, whose=adapters
    )
    path = representations.write_with_arrays(record, results, leakage.SUFFIX, cosines.save)
    print(f"{path}: {record.score:.3f} ranked right, gap {record.scores['gap']:+.4f}")
    return path


def measure_layers(
    model: str,
    results: Path,
    *,
    paragraphs: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Path:
    """The record of one untrained model, made unless it is there; ``force``: made in any case."""
    git_state()
    entry = get_model(model)
    from llm2vec.loading import load_backbone, resolve_device, resolve_dtype

    resolve_dtype(dtype, entry), resolve_device(device)  # before anything is fetched
    texts = layers.read_paragraphs(paragraphs) if paragraphs else layers.wikipedia_paragraphs()
    key = layers.key_of(entry, texts, dtype)
    settings = layers.settings_of(entry, texts, dtype)
    if not force and representations.is_complete(key, results, layers.SUFFIX, settings):
        print(f"done before: {key.path(results)}")
        return key.path(results)

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
    print(f"{path}: mean cosine {record.score:.3f} over {record.n} paragraphs")
    return path

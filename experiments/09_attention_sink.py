"""Does the attention sink on the first token dominate mean pooling? (a question of this project)

    python experiments/09_attention_sink.py --model smollm2-135m --variant uni
    python experiments/09_attention_sink.py --model smollm2-135m --variant bi-mntp-simcse

STSBenchmark's pairs, with and without instruction, and the leakage triples, pooled without the
first 0, 1 and 4 positions of the sequence: raw/attention_sink/MODEL/VARIANT/mean/TASK@SETTING.json.
About 62,000 tokens a variant. Killed, the same command goes on.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir

Adapters = Literal["own", "published"]


def main(
    model: Annotated[str, typer.Option(help="A decoder of the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ...; not echo.")],
    adapters: Annotated[Adapters, typer.Option(help="Trained here, or the authors'.")] = "own",
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: the registry's.")] = None,
) -> None:
    """Measure a model and variant; records that are done are left alone."""
    from llm2vec.attention_sink import execute, plan  # here: --help need not wait for torch

    files = execute(plan(model, variant, adapters, dtype), results or results_dir(), device)
    typer.echo(f"{len(files)} records in {files[0].parent}")


if __name__ == "__main__":
    run(main)

"""Word-level probing: chunking, NER, POS (paper 3.1, Table 4, Figure 2).

    python experiments/03_word_probing.py --model smollm2-135m --variant uni
    python experiments/03_word_probing.py --model smollm2-135m --variant bi-mntp --task ner
    python experiments/03_word_probing.py --model minilm-l6 --variant encoder --data mini

Writes ``raw/word_probing/{model}/{variant}/none/{task}.json`` for the paper's word alignment and
``{task}@same.json`` or ``{task}@previous.json`` for the other one. ``--data mini`` takes the
demonstration corpus that comes with the package; its records are called ``mini-{task}``.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ...; baselines: encoder.")],
    task: Annotated[str | None, typer.Option(help="chunking, ner or pos; default all.")] = None,
    data: Annotated[str, typer.Option(help="conll2003, or mini (demonstration).")] = "conll2003",
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
    max_sentences: Annotated[
        int | None, typer.Option(help="A trial: the first so many sentences of each split.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: the registry's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Measure a model and variant under both word alignments; done records are left alone."""
    from llm2vec.word_evaluation import execute, plan  # here: --help need not wait for torch

    planned = plan(
        model, variant, task=task, data=data, dtype=dtype,
        adapters=adapters, max_sentences=max_sentences,
    )  # fmt: skip
    execute(planned, results or results_dir(), device)


if __name__ == "__main__":
    run(main)

"""The README of an exported encoder: how to use it, what it scores, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.adapters import adapter_folder, adapter_hash, stages_of
from llm2vec.architectures import KEEPS_THE_SWITCH
from llm2vec.errors import AdapterError
from llm2vec.paths import results_dir
from llm2vec.provenance import capture_provenance
from llm2vec.registry import PAPER
from llm2vec.results import iter_records, write_atomic

if TYPE_CHECKING:
    from llm2vec.encoder import LLM2Vec
    from llm2vec.registry import Model

PAPER_PAGE = f"https://arxiv.org/abs/{PAPER.removeprefix('arXiv:')}"
CITATION = f"""\
@inproceedings{{behnamghader2024llm2vec,
  title     = {{{{LLM2Vec}}: Large Language Models Are Secretly Powerful Text Encoders}},
  author    = {{BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and
               Bahdanau, Dzmitry and Chapados, Nicolas and Reddy, Siva}},
  booktitle = {{First Conference on Language Modeling}},
  year      = {{2024}},
  url       = {{{PAPER_PAGE}}}
}}"""


@dataclass(frozen=True)
class Score:
    """One line of the card's table; ``score`` is a fraction, ``note`` says what else to know."""

    task: str
    metric: str
    score: float
    note: str = ""


def recorded_scores(encoder: LLM2Vec, results: Path | None = None) -> list[Score]:
    """What this repository has measured for exactly this encoder: weights, variant, pooling."""
    wanted = (encoder.model.name, encoder.variant.name, encoder.pooling, encoder.adapters)
    return [
        Score(r.task, r.metric, r.score, f"data: {r.dataset['source']}, {r.dataset['status']}")
        for r in iter_records(results or results_dir())
        if r.experiment in ("mteb_subset", "mteb_full", "offline_suite")
        and (r.model, r.variant, r.pooling, r.adapters) == wanted
    ]


def write_card(
    encoder: LLM2Vec,
    folder: Path,
    scores: Sequence[Score] | None = None,
    adapters: Sequence[Path] = (),
) -> Path:
    """Write ``README.md``; ``adapters`` are the folders whose provenance it quotes."""
    scores = recorded_scores(encoder) if scores is None else scores
    file = folder / "README.md"
    write_atomic(file, _card(encoder, list(scores), [*adapters] or _own_adapters(encoder)))
    return file


def _own_adapters(encoder: LLM2Vec) -> list[Path]:
    """Folders of this repository's adapters that were merged into the encoder."""
    found = []
    for stage in stages_of(encoder.variant):
        try:
            folder = adapter_folder(encoder.model, stage)
        except AdapterError:
            continue
        if adapter_hash(folder) in encoder.adapters:
            found.append(folder)
    return found


def _hub_id(model: Model) -> str:
    """Name on the hub; empty for a local folder, whose place says nothing elsewhere."""
    local = Path(model.hub_id).exists() or model.hub_id.count("/") != 1
    return "" if local else model.hub_id


def _card(encoder: LLM2Vec, scores: list[Score], adapters: list[Path]) -> str:
    model, variant = encoder.model, encoder.variant
    base = _hub_id(model)
    front = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [llm2vec, sentence-transformers, feature-extraction, text-embeddings]",
        "---",
    ]
    return "\n".join(
        [
            *front, "", f"# {model.display}, {variant.display}", "",
            f"A text encoder made from the decoder {base or model.display} by the recipe of "
            f"[LLM2Vec]({PAPER_PAGE}). Vectors have {encoder.embedding_size} numbers; compare "
            "them by cosine.", "", *_usage(encoder), *_limits(encoder), *_scores(scores),
            *_provenance(encoder, adapters), "## Citation", "", "```bibtex", CITATION, "```", "",
            "The licence of the base model applies.", "",
        ]
    )  # fmt: skip


def _usage(encoder: LLM2Vec) -> list[str]:
    opening = encoder.model.chat[0] if encoder.model.chat else ""
    closed = "\\ue000" if opening else ""
    prompt = json.dumps(f"{opening}Retrieve relevant passages: ")[:-1] + closed + '"'
    return [
        "## Use", "", "```python",
        "from sentence_transformers import SentenceTransformer", "",
        'model = SentenceTransformer("path/to/this/folder")',
        "vectors = model.encode(texts)",
        f"queries = model.encode(questions, prompt={prompt})", "```", "",
        "An instruction ends in a colon and a blank; it is read, not pooled. Documents get none.",
        *(["The prompt repeats the opening of the model's chat format and ends in the mark that "
           "parts it from the text."] if opening else []),
        "", "```python",
        "from llm2vec import LLM2Vec", "",
        'encoder = LLM2Vec.from_pretrained("path/to/this/folder")',
        'vectors = encoder.encode([["Retrieve relevant passages:", question], passage])', "```", "",
        "`transformers.AutoModel` loads it too; needs transformers 5.2 or newer, which honours "
        "`is_causal` in `config.json`. Older versions ignore it and give other vectors."
        + _fixed_attention(encoder), "",
        "| setting | value |", "|---|---|",
        f"| attention | {encoder.variant.attention} |", f"| pooling | {encoder.pooling} |",
        f"| longest input | {encoder.max_length} tokens |",
        f"| dtype | {encoder.precision} |", "",
    ]  # fmt: skip


def _fixed_attention(encoder: LLM2Vec) -> str:
    family = encoder.backbone.config.model_type
    if family not in KEEPS_THE_SWITCH:
        return ""
    return (
        f" `attn_implementation` stays as `config.json` has it ({KEEPS_THE_SWITCH[family]}): with "
        f"sdpa, {family} is causal wherever a batch has no padding."
    )


def _limits(encoder: LLM2Vec) -> list[str]:
    return [
        "## Where SentenceTransformer and LLM2Vec differ", "",
        f"- Texts of more than {encoder.text_max_length} tokens: LLM2Vec cuts them to that length "
        f"by whole words, SentenceTransformer cuts at {encoder.max_length} tokens, the prompt "
        "included.",
        "- With a prompt, a blank that the tokenizer does not join with the text (before a digit "
        "or a line break, say) is pooled by SentenceTransformer.",
        "- An empty text is a vector of zeros there, after a prompt or where the tokenizer adds no "
        "BOS; a batch of nothing else is then refused.", "",
    ]  # fmt: skip


def _scores(scores: list[Score]) -> list[str]:
    if not scores:
        return ["## Scores", "", "None measured.", ""]
    rows = [f"| {s.task} | {s.metric} | {100 * s.score:.2f} | {s.note} |" for s in scores]
    return [
        "## Scores", "", "| task | metric | score x 100 | |", "|---|---|---:|---|", *rows, "",
        "Tasks named Offline... are this project's own, small and no part of MTEB.", "",
    ]  # fmt: skip


def _provenance(encoder: LLM2Vec, adapters: list[Path]) -> list[str]:
    origin = capture_provenance(
        str(encoder.device), encoder.precision, encoder.attention_implementation
    )
    lines = [
        "## Provenance", "",
        f"- base model: {_hub_id(encoder.model) or encoder.model.display}, revision "
        f"{encoder.model.revision}",
        f"- code: commit {origin.commit}{' with changes' if origin.dirty else ''}",
        f"- exported: {origin.started}",
        "- versions: " + ", ".join(f"{k} {v}" for k, v in origin.versions.items()),
        *(f"- adapter sha256: {digest}" for digest in encoder.adapters),
        *(f"- {line}" for folder in adapters for line in _stage(folder)), "",
    ]  # fmt: skip
    return lines


def _stage(folder: Path) -> list[str]:
    """One line on how an adapter was trained, where it says so."""
    note = folder / "provenance.json"
    if not note.is_file():
        return []
    values: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    data = ", ".join(source.get("id", "?") for source in values.get("data", []))
    return [
        f"stage {values.get('stage')}: {values.get('steps')} steps, {values.get('epochs')} epochs "
        f"of {data or 'unknown data'}, final loss {values.get('final_loss', float('nan')):.3f}"
    ]

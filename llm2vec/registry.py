"""Models, variants, poolings, tasks and hyperparameters: the only place where they are written.

A model is added by one entry in ``MODELS``. Revisions are commits of the hub repository; where
none could be looked up the word is ``unpinned``, and every record repeats it. Hyperparameters
name their source beside them: ``paper`` with a section of arXiv 2404.05961, or ``code`` for a
released configuration where the paper is silent; where the two disagree both are given. The
ablations, the datasets that are no tasks and the bands of the verdicts stand beside it
(``registry_*.py``). Imports no torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from llm2vec.errors import UnknownNameError
from llm2vec.paths import RESOURCES

UNPINNED = "unpinned"
PAPER = "arXiv:2404.05961"


# --------------------------------------------------------------------------- hyperparameters
@dataclass(frozen=True)
class LoRA:
    """LoRA of both stages (paper D.1.1, D.1.2; dropout and modules: code)."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip


@dataclass(frozen=True)
class MNTP:
    """Masked next token prediction (paper 2.2, D.1.1)."""

    mask_probability: float = 0.2  # paper D.1.1: LLaMA models 0.2, Mistral 0.8
    masking: Literal["bert", "all"] = "bert"  # paper D.1.1: 80/10/10; Mistral: 100 % mask
    mask_token: str = "_"  # paper 2.2: tokenizers without a mask token
    steps: int = 1000  # paper 2.2
    batch_size: int = 32  # paper 2.2
    block_size: int = 512  # code (max_seq_length)
    learning_rate: float = 5e-5  # code: the Trainer's default, confirmed by the authors
    # The published runs stop at step 1,000 of a linear schedule without warm-up laid out for
    # three epochs of Wikitext-103's train split: about 118,000,000 tokens / 512 / 32 * 3.
    schedule_steps: int = 21_600  # code: num_train_epochs 3, stop_after_n_steps 1000
    warmup_steps: int = 0  # code
    weight_decay: float = 0.0  # code: the Trainer's default
    max_grad_norm: float = 1.0  # code: the Trainer's default
    seed: int = 42  # code: the Trainer's default
    lora: LoRA = field(default_factory=LoRA)


@dataclass(frozen=True)
class SimCSE:
    """Unsupervised contrastive learning (paper 2.2, B.2, D.1.2)."""

    attention_dropout: float = 0.3  # paper D.1.2 "dropout 0.3"; code: on attention weights only
    scale: float = 20.0  # paper B.2 writes lambda; code: 20
    steps: int = 1000  # paper 2.2
    batch_size: int = 128  # paper D.1.2: 128, S-LLaMA 32; released S-LLaMA config: 128
    max_length: int = 128  # code
    learning_rate: float = 3e-5  # code
    # Linear schedule over three epochs of the 1,000,000 sentences: 3 * 10^6 / 128.
    schedule_steps: int = 23_437  # code: num_train_epochs 3, stop_after_n_steps 1000
    warmup_steps: int = 0  # code
    weight_decay: float = 0.0  # code
    max_grad_norm: float = 1.0  # code
    # paper, Figure 1: the mean over the text. The released trainer averages padding as well
    # (its texts carry no separator); True does as it does.
    pool_over_padding: bool = False
    seed: int = 42  # code
    lora: LoRA = field(default_factory=LoRA)


@dataclass(frozen=True)
class Probe:
    """Linear probe of the word-level tasks (paper 3.1, D.1.3)."""

    learning_rate: float = 5e-4  # paper D.1.3
    batch_size: int = 8  # paper D.1.3 (sentences)
    steps: int = 1500  # paper D.1.3; released train config 4,000, test config checkpoint 3,000
    dropout: float = 0.1  # paper D.1.3
    schedule_steps: int = 17_560  # code: linear over ten epochs of 14,041 sentences / 8
    seeds: tuple[int, ...] = (42, 43, 44)  # ours: the paper prints one run
    max_length: int = 512  # code (test)


PROBE = Probe()
STORED = "float16"  # ours: word states on disk
# The probe's optimizer: defaults of the published Trainer that the paper does not mention.
OPTIMIZER: Mapping[str, Any] = MappingProxyType(
    {"optimizer": "AdamW", "weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_steps": 0}
)
MAX_LENGTH = 512  # code: tokens of instruction and text together at evaluation
TEXT_MAX_LENGTH = 400  # code (doc_max_length): text alone, shortened by whole words


# --------------------------------------------------------------------------- models
@dataclass(frozen=True)
class Model:
    """A backbone or an encoder baseline.

    ``chat`` wraps instruction and text as the published evaluation does; its closing part stays
    inside the pooled span, as there. ``published`` maps a stage of the recipe to the authors'
    adapter on the hub and its revision.
    """

    name: str
    display: str
    hub_id: str
    revision: str
    architecture: str
    parameters: float
    layers: int
    hidden_size: int
    kind: Literal["decoder", "encoder"] = "decoder"
    dtype: str = "bfloat16"
    asset: str | None = None
    chat: tuple[str, str] | None = None
    gated: bool = False
    in_paper: bool = True
    own_pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False
    max_length: int = MAX_LENGTH
    mntp: MNTP | None = None
    mntp_words: MNTP | None = None
    simcse: SimCSE | None = None
    published: Mapping[str, tuple[str, str]] = field(default_factory=dict)


_INST = ("[INST] ", " [/INST]")
_LLAMA_3 = ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")

_MODELS = (
    Model(
        "smollm2-135m", "SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct",
        "asset:smollm2-135m", "llama", 134.5e6, 30, 576,
        dtype="float32", asset="smollm2-135m", in_paper=False,
        # The paper's steps and batch; ours: the rate, which 135M parameters need, chosen by
        # training loss within the first epoch of shorter runs.
        mntp=MNTP(learning_rate=1e-3),
        # ours: what two CPU cores can train in half an hour; the rate was chosen on
        # STSBenchmark's validation split (ablations "simcse-lr", "simcse-after-mntp-lr").
        simcse=SimCSE(steps=100, batch_size=32, learning_rate=1e-3),
    ),
    Model(
        "s-llama-1.3b", "S-LLaMA-1.3B", "princeton-nlp/Sheared-LLaMA-1.3B",
        "a4b76938edbf571ea7d7d9904861cbdca08809b4", "llama", 1.345e9, 24, 2048,
        # Batch: paper D.1.2; the released config has 128, and the schedule's horizon is that
        # config's (three epochs in batches of 32 would be 93,750 steps).
        mntp=MNTP(), simcse=SimCSE(batch_size=32),
        published={
            "mntp": ("McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
                     "eb4ee4c1f922be3c5961d26eb954d0755aa9b77c"),
            "mntp-simcse": ("McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-unsup-simcse", UNPINNED),
        },
    ),
    Model(
        "llama-2-7b", "LLaMA-2-7B", "meta-llama/Llama-2-7b-chat-hf",
        "f5db02db724555f92da89c216ac04704f23d4590", "llama", 6.738e9, 32, 4096,
        chat=_INST, gated=True, mntp=MNTP(), simcse=SimCSE(),
        published={
            "mntp": ("McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp", UNPINNED),
            "mntp-simcse": ("McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp-unsup-simcse",
                            "a76944871d169ebe7c97eb921764cd063afed785"),
        },
    ),
    Model(
        "mistral-7b", "Mistral-7B", "mistralai/Mistral-7B-Instruct-v0.2",
        "3ad372fc79158a2148299e3318516c786aeded6c", "mistral", 7.242e9, 32, 4096,
        chat=_INST, mntp=MNTP(mask_probability=0.8, masking="all"),
        mntp_words=MNTP(),  # paper D.1.3; the released word-level config loads the one above
        simcse=SimCSE(),
        published={
            "mntp": ("McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp",
                     "e76f9757923897a0c5204b3075f1062f484d033b"),
            "mntp-simcse": ("McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-unsup-simcse",
                            "2c055a5d77126c0d3dc6cd8ffa30e2908f4f45f8"),
        },
    ),
    Model(
        "llama-3-8b", "LLaMA-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct",
        "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2", "llama", 8.030e9, 32, 4096,
        chat=_LLAMA_3, gated=True, mntp=MNTP(), simcse=SimCSE(),
        published={
            "mntp": ("McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp",
                     "31474e395ada192e8ed1586db6be79fb3b70c9c0"),
            "mntp-simcse": ("McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-unsup-simcse",
                            "1cb7b735326d13a8541db8f57f35da5373f5e9c6"),
        },
    ),
    # Layer similarity only (Figure 9): the other releases of Mistral.
    Model(
        "mistral-7b-v0.1", "Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1",
        "7231864981174d9bee8c7687c24c8344414eae6b", "mistral", 7.242e9, 32, 4096,
    ),
    Model(
        "mistral-7b-instruct-v0.1", "Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.1", "9ab9e76e2b09f9f29ea2d56aa5bd139e4445c59e",
        "mistral", 7.242e9, 32, 4096, chat=_INST,
    ),
    Model(
        "minilm-l6", "MiniLM-L6", "sentence-transformers/all-MiniLM-L6-v2",
        "8b3219a92973c328a8e22fadcfa821b5dc75636a", "bert", 22.7e6, 6, 384,
        kind="encoder", dtype="float32", asset="minilm-l6", in_paper=False,
        own_pooling="mean", normalize=True, max_length=256,
    ),
    Model(
        "bert-base", "BERT-base", "google-bert/bert-base-uncased",
        "86b5e0934494bd15c9632b12f734a8a67f723594", "bert", 109.5e6, 12, 768,
        kind="encoder", dtype="float32", own_pooling="mean",
    ),
    Model(
        "bert-base-simcse", "BERT-base + SimCSE", "princeton-nlp/unsup-simcse-bert-base-uncased",
        UNPINNED, "bert", 109.5e6, 12, 768, kind="encoder", dtype="float32", own_pooling="cls",
    ),
    Model(
        "bert-large", "BERT-large", "google-bert/bert-large-uncased",
        "6da4b6a26a1877e173fca3225479512db81a5e5b", "bert", 335.1e6, 24, 1024,
        kind="encoder", dtype="float32", own_pooling="mean",
    ),
    Model(
        "deberta-v3-large", "DeBERTa-v3-large", "microsoft/deberta-v3-large",
        "64a8c8eab3e352a784c658aef62be1662607476f", "deberta-v2", 434.0e6, 24, 1024,
        kind="encoder", dtype="float32", own_pooling="mean",
    ),
)  # fmt: skip
MODELS: Mapping[str, Model] = MappingProxyType({m.name: m for m in _MODELS})


# --------------------------------------------------------------------------- variants
@dataclass(frozen=True)
class Variant:
    """Attention plus the stages of the recipe that were applied."""

    name: str
    display: str
    attention: Literal["causal", "bidirectional", "own"]
    stages: tuple[Literal["mntp", "simcse"], ...] = ()
    echo: bool = False

    @property
    def adapter(self) -> str | None:
        """Folder name of the last stage's adapter: ``mntp``, ``mntp-simcse``, ``uni-simcse``..."""
        if not self.stages:
            return None
        if "mntp" in self.stages:
            return "-".join(self.stages)
        return "uni-simcse" if self.attention == "causal" else "bi-simcse"


_VARIANTS = (
    Variant("uni", "Uni", "causal"),
    Variant("bi", "Bi", "bidirectional"),
    Variant("bi-mntp", "Bi + MNTP", "bidirectional", ("mntp",)),
    Variant("uni-simcse", "Uni + SimCSE", "causal", ("simcse",)),
    Variant("bi-simcse", "Bi + SimCSE", "bidirectional", ("simcse",)),
    Variant("bi-mntp-simcse", "Bi + MNTP + SimCSE", "bidirectional", ("mntp", "simcse")),
    Variant("echo", "Echo", "causal", echo=True),
    Variant("encoder", "Encoder", "own"),
)
VARIANTS: Mapping[str, Variant] = MappingProxyType({v.name: v for v in _VARIANTS})

POOLINGS = ("eos", "mean", "weighted_mean")
POOLING_DISPLAY = MappingProxyType(
    {"eos": "EOS", "mean": "Mean", "weighted_mean": "W. mean", "none": "own"}
)
DTYPES = ("float32", "bfloat16", "float16", "bfloat16-mixed")  # the last: mixed.py
ADAPTER_SOURCES = ("own", "published")  # trained here or shipped; the authors' on the hub
POOLING_ALIASES = MappingProxyType({"eos_token": "eos", "last_token": "eos"})


# --------------------------------------------------------------------------- tasks and suites
@dataclass(frozen=True)
class Task:
    """An evaluation task of mteb's types; ``instruction`` without final punctuation."""

    name: str
    type: str
    metric: str
    instruction: str
    split: str = "test"
    subset: str = "default"
    dataset: str = "llm2vec/offline"
    revision: str = "built"
    superseded_by: str = ""

    @property
    def symmetric(self) -> bool:
        """Both sides carry the instruction (all but retrieval and reranking; paper 3.2)."""
        return self.type not in ("Retrieval", "Reranking")


def _rows(file: str) -> tuple[dict[str, str], ...]:
    with open(RESOURCES / file, newline="", encoding="utf-8") as handle:
        return tuple(csv.DictReader(handle))


def _task(row: dict[str, str]) -> Task:
    own = {f.name for f in fields(Task)}
    return Task(name=row["task"], **{k: v for k, v in row.items() if k in own})


_MTEB = _rows("mteb_tasks.csv")  # MTEB(eng, v1); instructions: paper Table 10
_OFFLINE = _rows("offline_tasks.csv")  # llm2vec.offline_suite: real texts with real labels
TASKS: Mapping[str, Task] = MappingProxyType(
    {row["task"]: _task(row) for row in (*_MTEB, *_OFFLINE)}
)
WORD_TASKS = ("chunking", "ner", "pos")  # paper 3.1

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "offline": tuple(r["task"] for r in _OFFLINE),
        "subset": tuple(r["task"] for r in _MTEB if r["in_subset"]),  # paper Table 3
        "full": tuple(r["task"] for r in _MTEB),  # paper Table 11
        # What a mirror without the hub can hold exactly; chosen by data, not by score.
        "exact8": (
            "SciFact", "NFCorpus", "Banking77Classification", "EmotionClassification",
            "MassiveIntentClassification", "STS17", "SICK-R", "STSBenchmark",
        ),
        "short6": (
            "STSBenchmark", "STS17", "SICK-R", "EmotionClassification",
            "MassiveIntentClassification", "Banking77Classification",
        ),
    }
)  # fmt: skip

# Tasks that are a mean over datasets (CQADupstack), and these.
_PARTS: dict[str, tuple[Task, ...]] = {}
for _r in _rows("mteb_parts.csv"):
    _whole = TASKS[_r["task"]]
    _part = replace(_whole, name=_r["part"], dataset=_r["dataset"], revision=_r["revision"])
    _PARTS[_whole.name] = (*_PARTS.get(_whole.name, ()), _part)
PARTS: Mapping[str, tuple[Task, ...]] = MappingProxyType(_PARTS)

EXPERIMENTS = (
    "word_probing", "mteb_subset", "mteb_full", "pooling_leakage", "layer_similarity",
    "offline_suite", "ablations", "attention_sink",
)  # fmt: skip


# --------------------------------------------------------------------------- look-ups
def _get(kind: str, table: Mapping[str, Any], name: object) -> Any:
    if not isinstance(name, str) or name not in table:
        raise UnknownNameError(kind, name, table)
    return table[name]


def get_model(name: str) -> Model:
    """The model of that name; :class:`UnknownNameError` lists the valid ones."""
    return _get("model", MODELS, name)


def get_variant(name: str) -> Variant:
    """The variant of that name; :class:`UnknownNameError` lists the valid ones."""
    return _get("variant", VARIANTS, name)


def get_task(name: str) -> Task:
    """The sentence-level task of that name; :class:`UnknownNameError` lists the valid ones.

    The name of a successor (``STSBenchmark.v2``) is refused like any other: its scores cannot be
    compared with the paper's.
    """
    old = next((t.name for t in TASKS.values() if t.superseded_by and t.superseded_by == name), "")
    kind = f"task (mteb's successor of {old}, not comparable with the paper)" if old else "task"
    return _get(kind, TASKS, name)


def get_suite(name: str) -> tuple[str, ...]:
    """Names of the tasks of a suite."""
    return _get("suite", SUITES, name)


def get_pooling(name: str) -> str:
    """Canonical name of a pooling; ``eos_token`` is understood as ``eos``."""
    name = POOLING_ALIASES.get(name, name) if isinstance(name, str) else name
    return _get("pooling", {p: p for p in POOLINGS}, name)


def variants_of(model: Model) -> tuple[str, ...]:
    """Variants that make sense for a model: ``encoder`` for baselines, the rest for decoders."""
    own = model.kind == "encoder"
    return tuple(v.name for v in _VARIANTS if (v.attention == "own") == own)


def settings_dict(settings: Any) -> dict[str, Any]:
    """Hyperparameters of a stage as plain JSON types, for records and their hash."""
    return json.loads(json.dumps(asdict(settings)))

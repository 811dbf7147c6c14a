"""A hub of folders: the real ``datasets`` library reads them, or meets the errors of a real hub."""

import errno
import json
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import httpx  # the one whose errors the installed client raises
from tiny_mirror import DOCUMENTS, JUDGED, MONEY, PAIRS, QUERIES, SPORT

Rows = list[dict[str, Any]]


def repository(folder: Path, configs: dict[str, dict[str, Rows]]) -> None:
    """A dataset repository: JSON lines per configuration and split, and a card that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = folder / config / f"{split}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def sts() -> Rows:
    return [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in PAIRS]


def classification() -> dict[str, Rows]:
    def rows(start: int, end: int) -> Rows:
        texts = [(text, 0) for text in SPORT[start:end]] + [(text, 1) for text in MONEY[start:end]]
        return [{"text": text, "label": label} for text, label in texts]

    return {"train": rows(0, 8), "test": rows(8, 12), "validation": rows(0, 2)}


def retrieval(judgements: str = "default") -> dict[str, dict[str, Rows]]:
    return {
        judgements: {
            "test": [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in JUDGED],
            "train": [{"query-id": "q3", "corpus-id": "d2", "score": 1}],
        },
        "corpus": {
            "corpus": [{"_id": i, "title": t, "text": x, "metadata": {"url": "-"}}
                       for i, t, x in DOCUMENTS]
        },
        "queries": {"queries": [{"_id": i, "text": x} for i, x in QUERIES]},
    }  # fmt: skip


def reranking() -> dict[str, dict[str, Rows]]:
    """Every configuration by the name of its split, as mteb uploads reranking tasks."""
    made = retrieval()
    return {
        "corpus": {"test": made["corpus"]["corpus"]},
        "queries": {"test": made["queries"]["queries"]},
        "default": {"test": made["default"]["test"]},
        "top_ranked": {"test": [
            {"query-id": "q1", "corpus-ids": ["d2", "d1"]},
            {"query-id": "q2", "corpus-ids": ["d3", "d4", "d2"]},
        ]},
    }  # fmt: skip


def with_others(task: Any, splits: dict[str, Rows]) -> dict[str, Rows]:
    """All languages in one table, as mteb uploads what it loads "fast"."""
    return {
        split: [row | {"lang": lang} for row in rows for lang in ("xx", task.subset)]
        for split, rows in splits.items()
    }


class FakeHub:
    """``datasets`` finds the repositories of a folder; ``asked`` notes what it was asked for.

    ``branches``: folders of revisions whose content is another than that of the repository.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None, str | None, str]] = []
        self.broken: dict[str, Exception] = {}
        self.branches: dict[tuple[str, str], Path] = {}
        load, configs, splits = (
            datasets.load_dataset, datasets.get_dataset_config_names,
            datasets.get_dataset_split_names,
        )  # fmt: skip

        def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
            self.asked.append((path, name, options.get("split"), options["revision"]))
            if path in self.broken:
                raise self.broken[path]
            split = {"split": options["split"]} if "split" in options else {}
            place = self.branches.get((path, options["revision"]), folder / path)
            return load(str(place), name, **split)

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "datasets-cache")
        patches = {
            "load_dataset": load_dataset,
            "get_dataset_config_names": lambda path, *_, **__: configs(str(folder / path)),
            "get_dataset_split_names": lambda path, config_name=None, **__: splits(
                str(folder / path), config_name
            ),
        }
        for name, stand_in in patches.items():
            monkeypatch.setattr(datasets, name, stand_in)
            monkeypatch.setattr(f"mteb.abstasks.retrieval_dataset_loaders.{name}", stand_in)
        monkeypatch.setattr("mteb.abstasks.abstask.load_dataset", load_dataset)

    def add(self, task: Any) -> None:
        """The data of a task as mteb's repositories on the hub have them."""
        if task.type in ("Retrieval", "Reranking"):
            configs = reranking() if task.type == "Reranking" else retrieval()
        else:
            kind = classification() if task.type == "Classification" else {"test": sts()}
            configs = {"default": kind if task.subset == "default" else with_others(task, kind)}
        repository(self.folder / task.dataset, configs)


def answer(kind: type[Exception], status: int) -> Exception:
    """An error as the hub's client raises it for an answer of the server."""
    request = httpx.Request("GET", "https://hub.example/api")
    text = f"\n\n{status} from the hub"  # the client's messages begin like this
    return kind(text, response=httpx.Response(status, request=request))


REFUSALS: dict[str, Exception] = {
    "gated": answer(errors.GatedRepoError, 401),
    "not granted": answer(errors.GatedRepoError, 403),
    "no revision": answer(errors.RevisionNotFoundError, 404),
    "removed": answer(errors.RepositoryNotFoundError, 404),
    "offline": errors.OfflineModeIsEnabled("offline mode is enabled"),
    "no route": httpx.ConnectError("no route to host"),
    "busy": answer(errors.HfHubHTTPError, 503),
    "too many questions": answer(errors.HfHubHTTPError, 429),
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
}


def cached_copy(cache: Path, dataset: str, configs: dict[str, dict[str, Rows]]) -> None:
    """Fill ``datasets``' own cache (HF_DATASETS_CACHE) as a download of some commit leaves it."""
    owner, _, name = dataset.partition("/")
    source = cache.parent / "downloaded" / name
    repository(source, configs)
    for config in configs:
        datasets.load_dataset(str(source), config, cache_dir=str(cache))
    (cache / name).rename(cache / f"{owner}___{name}")  # what comes from a hub has an owner


def refuse_everything(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Below ``datasets``: whatever it asks of the hub's client ends in this error.

    As in the client, a download says that there is no connection, whatever the reason is, and
    names the reason as its cause; what the hub says of a repository itself comes as it is.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    def refuse_file(*_: object, **__: object) -> NoReturn:
        unanswered = isinstance(error, errors.OfflineModeIsEnabled | httpx.TransportError)
        if unanswered or type(error) is errors.HfHubHTTPError:
            raise errors.LocalEntryNotFoundError("Please check your connection") from error
        raise error

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    for name in ("HfApi.hf_hub_download", "HfApi.snapshot_download", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", refuse_file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse_file)

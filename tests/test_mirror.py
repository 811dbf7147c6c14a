"""A mirror made from the hub: what runs read from it is what the hub has; what fails is named."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_hub import REFUSALS, FakeHub, refuse_everything

from llm2vec import mirror
from llm2vec.errors import DataError, UnknownNameError
from llm2vec.hub import HubError
from llm2vec.manifest import Manifest
from llm2vec.mirror import (
    main,
    mirror_datasets,
    mirror_model,
    state_of,
    wanted_by,
    wanted_for,
)
from llm2vec.mteb_tasks import load_task
from llm2vec.registry import MODELS, PARTS, SUITES, TASKS, UNPINNED, get_task
from llm2vec.results import sha256_file

STS, SCIFACT = get_task("STSBenchmark"), get_task("SciFact")
KINDS = ("STSBenchmark", "STS17", "MassiveIntentClassification", "SciFact", "SciDocsRR")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "repositories", monkeypatch)
    for name in KINDS:
        made.add(get_task(name))
    return made


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


def files_of(*names: str) -> list[mirror.Wanted]:
    return [file for name in names for file in wanted_by(get_task(name))]


def rows_of(root: Path) -> dict[str, dict[str, str]]:
    with open(root / "MANIFEST.csv", newline="") as handle:
        return {f"{row['dataset']}/{row['file']}": row for row in csv.DictReader(handle)}


def content(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in root.rglob("*.parquet")}


# --------------------------------------------------------------------------- what is wanted
def test_every_file_of_the_real_mirror_is_where_a_made_one_would_have_it(mirror: Path) -> None:
    """The layout of a mirror made by hand and of one made here are one layout."""
    wanted = {f"{w.dataset}/{w.file}" for w in wanted_for("subset")}
    there = {p.relative_to(mirror).as_posix() for p in (mirror / "mteb").rglob("*.parquet")}
    unread = {f for f in there if f.endswith(("validation.parquet", "/dev.parquet"))}
    unread |= {f for f in there if f.endswith("train.parquet")} - wanted
    assert there - unread <= wanted


def test_each_suite_asks_for_each_file_once_at_a_pinned_revision() -> None:
    for suite in SUITES:
        files = wanted_for(suite)
        assert len({(f.dataset, f.file) for f in files}) == len(files)
        assert all(len(f.revision) == 40 for f in files)
        assert all(f.dataset.count("/") == 1 for f in files)
    assert wanted_for("offline") == []
    datasets = {f.dataset for f in wanted_for("full")}
    assert {t.dataset for name in SUITES["full"] if (t := TASKS[name]) and name not in PARTS} == (
        datasets - {part.dataset for parts in PARTS.values() for part in parts}
    )


def test_an_unknown_suite_lists_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match="offline, subset, full"):
        wanted_for("everything")


# --------------------------------------------------------------------------- equality
@pytest.mark.parametrize("name", KINDS)
def test_a_task_from_the_mirror_is_the_task_from_the_hub(
    hub: FakeHub, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task(name)
    mirror_datasets(root, files_of(name))
    ours, source = load_task(task)
    assert (source.source, source.status, source.revision) == ("mirror", "exact", task.revision)
    monkeypatch.delenv("LLM2VEC_DATA")
    theirs, source = load_task(task)
    assert source.source == "hub"
    if task.type in ("Retrieval", "Reranking"):
        a, b = ours.dataset["default"]["test"], theirs.dataset["default"]["test"]
        for part in ("corpus", "queries"):
            columns = a[part].column_names
            assert a[part].to_list() == b[part].select_columns(columns).to_list()
        assert a["relevant_docs"] == b["relevant_docs"]
        assert a["top_ranked"] == b["top_ranked"]
        assert (a["top_ranked"] is None) == (task.type == "Retrieval")
    else:
        a, b = (t.dataset if task.subset == "default" else t.dataset[task.subset]
                for t in (ours, theirs))  # fmt: skip
        for split in a:
            assert a[split].to_list() == b[split].to_list()
        assert set(a) == ({"train", "test"} if task.type == "Classification" else {"test"})


def test_the_hub_is_asked_for_the_pinned_revisions(hub: FakeHub, root: Path) -> None:
    mirror_datasets(root, files_of(*KINDS))
    revisions = {t.dataset: t.revision for t in map(get_task, KINDS)}
    assert {path for path, *_ in hub.asked} == set(revisions)
    assert all(revision == revisions[path] for path, *_, revision in hub.asked)


def test_a_language_with_a_configuration_of_its_own(hub: FakeHub, root: Path) -> None:
    from fake_hub import repository, sts

    task = get_task("STS17")
    shutil.rmtree(hub.folder / task.dataset)
    repository(hub.folder / task.dataset, {"xx": {"test": sts()[:1]}, "en-en": {"test": sts()}})
    mirror_datasets(root, files_of("STS17"))
    assert load_task(task)[0].dataset["en-en"]["test"].to_list() == sts()
    shutil.rmtree(hub.folder / task.dataset)
    repository(hub.folder / task.dataset, {"xx": {"test": sts()[:1]}, "yy": {"test": sts()}})
    shutil.rmtree(root / task.dataset)
    with pytest.raises(DataError, match=r"no configuration en-en; it has .*xx.*layout"):
        mirror_datasets(root, files_of("STS17"))


def test_judgements_under_another_name(hub: FakeHub, root: Path) -> None:
    from fake_hub import repository, retrieval

    shutil.rmtree(hub.folder / SCIFACT.dataset)
    repository(hub.folder / SCIFACT.dataset, retrieval("qrels"))
    mirror_datasets(root, files_of("SciFact"))
    assert load_task(SCIFACT)[0].dataset["default"]["test"]["relevant_docs"] == {
        "q1": {"d1": 1}, "q2": {"d3": 1},
    }  # fmt: skip


# --------------------------------------------------------------------------- manifest
def test_the_manifest_tells_each_files_origin_and_digest(hub: FakeHub, root: Path) -> None:
    mirror_datasets(root, files_of("SciFact"))
    rows = rows_of(root)
    assert set(rows) == set(content(root)) and len(rows) == 3
    for name, digest in content(root).items():
        row = rows[name]
        assert (row["sha256"], row["status"]) == (digest, "exact")
        assert (row["source_repo"], row["source_commit"]) == (SCIFACT.dataset, SCIFACT.revision)
        assert int(row["rows"]) == len(pd.read_parquet(root / name))
        assert int(row["bytes"]) == (root / name).stat().st_size
    assert set(pd.read_parquet(root / SCIFACT.dataset / "corpus/corpus.parquet").columns) == {
        "_id", "title", "text",
    }  # fmt: skip


def test_rows_and_columns_of_others_are_kept(hub: FakeHub, root: Path) -> None:
    (root / "MANIFEST.csv").write_text('dataset,file,status,mood\nelse,a.parquet,near,"so, so"\n')
    mirror_datasets(root, files_of("STSBenchmark"))
    rows = rows_of(root)
    assert rows["else/a.parquet"]["mood"] == "so, so"
    assert len(rows) == 2


@pytest.mark.parametrize("text", ["a,b\n1,2\n", 'dataset,file,status\n"open', "dataset,file\n", ""])
def test_a_broken_manifest_stops_before_anything_is_asked(
    hub: FakeHub, root: Path, text: str
) -> None:
    (root / "MANIFEST.csv").write_text(text)
    with pytest.raises(DataError, match=r"MANIFEST\.csv"):
        mirror_datasets(root, files_of("STSBenchmark"))
    assert hub.asked == []
    assert (root / "MANIFEST.csv").read_text() == text


# --------------------------------------------------------------------------- again
def test_what_is_there_is_not_fetched_again(hub: FakeHub, root: Path) -> None:
    mirror_datasets(root, files_of(*KINDS))
    before, hub.asked[:] = content(root), []
    outcome = mirror_datasets(root, files_of(*KINDS))
    assert hub.asked == []
    assert {state: len(found) for state, found in outcome.items()} == {"present": len(before)}
    assert content(root) == before


@pytest.mark.parametrize("damage", ["change", "truncate", "delete", "forget"])
def test_what_is_damaged_or_gone_is_fetched_alone(hub: FakeHub, root: Path, damage: str) -> None:
    mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    before, hub.asked[:] = content(root), []
    file = root / STS.dataset / "test.parquet"
    if damage == "change":
        pd.read_parquet(file).assign(score=0.0).to_parquet(file)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "delete":
        file.unlink()
    else:  # killed after the file came into place, before its row did
        lines = (root / "MANIFEST.csv").read_text().splitlines(keepends=True)
        (root / "MANIFEST.csv").write_text("".join(x for x in lines if STS.dataset not in x))
    outcome = mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    assert [w.dataset for w in outcome["fetched"]] == [STS.dataset]
    assert {path for path, *_ in hub.asked} == {STS.dataset}
    assert content(root) == before


def test_a_file_of_another_revision_is_replaced(hub: FakeHub, root: Path) -> None:
    (want,) = files_of("STSBenchmark")
    mirror_datasets(root, [want])
    newer = mirror.replace(want, revision="f" * 40)
    assert state_of(root, Manifest(root), newer) == "outdated"
    assert set(mirror_datasets(root, [newer])) == {"fetched"}
    assert rows_of(root)[f"{STS.dataset}/test.parquet"]["source_commit"] == "f" * 40


def test_a_file_from_another_source_is_kept_with_its_status(hub: FakeHub, root: Path) -> None:
    from tiny_mirror import add_task

    add_task(root, STS, "reconstructed")
    before = content(root)
    assert set(mirror_datasets(root, files_of("STSBenchmark"))) == {"kept"}
    assert content(root) == before
    assert load_task(STS)[1].status == "reconstructed"


def test_an_unlisted_file_is_never_overwritten(hub: FakeHub, root: Path) -> None:
    file = root / STS.dataset / "test.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"somebody's own work")
    with pytest.raises(DataError, match=r"is in the way: it is not in MANIFEST\.csv"):
        mirror_datasets(root, files_of("STSBenchmark"))
    assert file.read_bytes() == b"somebody's own work"


def test_a_dry_run_asks_and_changes_nothing(hub: FakeHub, root: Path) -> None:
    mirror_datasets(root, files_of("STSBenchmark"))
    hub.asked.clear()
    outcome = mirror_datasets(root, files_of("STSBenchmark", "SciFact"), dry_run=True)
    assert {state: len(found) for state, found in outcome.items()} == {"present": 1, "absent": 3}
    assert hub.asked == []
    assert len(content(root)) == 1


# --------------------------------------------------------------------------- refusals
SAYS = {
    "gated": r"gated on the hub: accept its terms.*HF_TOKEN",
    "not granted": r"gated on the hub",
    "no revision": r"has no revision b0fddb56ed78",
    "removed": r"does not give mteb/stsbenchmark-sts.*removed or renamed",
    "offline": r"cannot be reached.*HF_HUB_OFFLINE",
    "no route": r"cannot be reached",
    "busy": r"busy or down, it does not give mteb/stsbenchmark-sts now \(503\)",
    "too many questions": r"busy or down.*\(429\); run the same command later",
    "disk full": r"no space left.*what is there is kept",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_hub_refuses_is_said_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The error goes through ``datasets``, which wraps it in errors of its own."""
    refuse_everything(monkeypatch, REFUSALS[kind])
    with pytest.raises((HubError, DataError), match=SAYS[kind]) as error:
        mirror_datasets(root, files_of("STSBenchmark"))
    assert "\n" not in str(error.value)
    assert [p for p in root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_model_that_the_hub_refuses(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    refuse_everything(monkeypatch, REFUSALS[kind])
    says = SAYS[kind].replace("b0fddb56ed78", "f5db02db7245")
    says = says.replace("mteb/stsbenchmark-sts", "meta-llama/Llama-2-7b-chat-hf")
    with pytest.raises(HubError, match=says):
        mirror_model(root, MODELS["llama-2-7b"])


def test_one_refusal_does_not_keep_the_rest_away(hub: FakeHub, root: Path) -> None:
    hub.broken[STS.dataset] = REFUSALS["gated"]
    with pytest.raises(DataError, match=r"1 of 4 files could not be had: mteb/stsb.*is gated"):
        mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    assert len(content(root)) == 3
    hub.broken.clear()
    outcome = mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    assert {state: len(found) for state, found in outcome.items()} == {"fetched": 1, "present": 3}


@pytest.mark.parametrize("kind", ["offline", "disk full"])
def test_where_nothing_more_can_succeed_it_stops(hub: FakeHub, root: Path, kind: str) -> None:
    hub.broken[STS.dataset] = REFUSALS[kind]
    with pytest.raises(HubError, match=SAYS[kind]):
        mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    assert [call[0] for call in hub.asked] == [STS.dataset]


def test_a_busy_hub_is_asked_for_the_next_file(hub: FakeHub, root: Path) -> None:
    hub.broken[STS.dataset] = REFUSALS["busy"]
    with pytest.raises(DataError, match=r"1 of 4 files could not be had: the hub is busy"):
        mirror_datasets(root, files_of("STSBenchmark", "SciFact"))
    assert len(content(root)) == 3


def test_a_disk_that_fills_while_writing_leaves_nothing_half(
    hub: FakeHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    def fill(_self: Any, path: Path) -> None:
        Path(path).write_bytes(b"PAR1 and no more")
        raise REFUSALS["disk full"]

    monkeypatch.setattr(Dataset, "to_parquet", fill)
    with pytest.raises(HubError, match="no space left"):
        mirror_datasets(root, files_of("STSBenchmark"))
    assert [p for p in root.rglob("*") if p.is_file()] == []


def test_a_hub_that_lacks_a_column_is_named(hub: FakeHub, root: Path) -> None:
    from fake_hub import repository, retrieval

    made = retrieval()
    made["default"] = {"test": [{"query-id": "q1", "corpus-id": "d1"}]}
    shutil.rmtree(hub.folder / SCIFACT.dataset)
    repository(hub.folder / SCIFACT.dataset, made)
    with pytest.raises(DataError, match=r"mteb/scifact qrels/test\.parquet.*lacks column score"):
        mirror_datasets(root, files_of("SciFact"))
    assert len(content(root)) == 2


# --------------------------------------------------------------------------- models
def test_a_model_comes_with_its_published_adapters(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(repo_id: str, *, revision: str | None, cache_dir: Path, **_: Any) -> str:
        """What the hub's client leaves: blobs, and links to them by revision."""
        asked.append((repo_id, revision))
        base = Path(cache_dir) / f"models--{repo_id.replace('/', '--')}"
        folder = base / "snapshots" / (revision or "c" * 40)
        folder.mkdir(parents=True)
        (base / "blobs").mkdir()
        (base / "blobs" / "abc").write_bytes(b"weights of " + repo_id.encode())
        (folder / "model.safetensors").symlink_to(Path("../../blobs/abc"))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = MODELS["s-llama-1.3b"]
    mirror_model(root, model)
    pinned = [(model.hub_id, model.revision), *model.published.values()]
    assert asked == [(name, None if rev == UNPINNED else rev) for name, rev in pinned]
    rows = rows_of(root)
    assert len(rows) == 3
    for name, row in rows.items():
        assert name.startswith("hub/models--")
        assert row["sha256"] == sha256_file(root / name)
        assert ("unpinned" in row["notes"]) == (row["source_commit"] == "c" * 40)


# --------------------------------------------------------------------------- command line
def test_the_command_says_how_to_use_what_it_made(
    hub: FakeHub, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        mirror.__dict__, "wanted_for", lambda _suite: files_of("STSBenchmark", "SciFact")
    )
    main("short6", str(root))
    said = capsys.readouterr()
    assert f"short6: 4 fetched of 4, in {root}" in said.out
    assert f"export LLM2VEC_DATA={root}" in said.out
    assert "HF_HUB_CACHE" not in said.out
    assert "1 of 4  fetched  mteb/stsbenchmark-sts/test.parquet" in said.err

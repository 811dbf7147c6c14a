"""The published package's call shapes and folder layout; see docs/migrating.md."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_adapters import make_adapter

from llm2vec import LLM2Vec, assets
from llm2vec.adapters import adapter_folder, adapter_hash
from llm2vec.attention import check_attention, set_attention
from llm2vec.encoder import load_encoder
from llm2vec.errors import AdapterError, SettingError, UnknownNameError
from llm2vec.folders import open_checkpoint
from llm2vec.registry import MODELS, VARIANTS

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query:"
QUERIES = [[INSTRUCTION, "how does the fox jump"], [INSTRUCTION, "the dog"]]
DOCUMENTS = ["The quick brown fox jumps over the dog.", "A language model reads."]
PUBLISHED_CONFIG = {
    "pooling_mode": "weighted_mean", "max_length": 64, "doc_max_length": 40,
    "skip_instruction": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `mntp` and `simcse` laid out like the published repositories, beside each other."""
    root = tmp_path_factory.mktemp("published")
    for seed, name in enumerate(("mntp", "simcse"), 1):
        lm, tokenizer = _base(tiny_llama_dir)
        make_adapter(lm, root / name, seed)
        _edit(root / name / "adapter_config.json", base_model_name_or_path=str(tiny_llama_dir))
        if name == "mntp":
            tokenizer.save_pretrained(root / name)
        complete(root / name, tiny_llama_dir)
    return root


def complete(adapter: Path, base: Path) -> None:
    """Beside an adapter what the published repositories have there: a base configuration that asks
    for code of its own, that code, and the settings of the encoder."""
    (adapter / "config.json").write_text((base / "config.json").read_text())
    _edit(
        adapter / "config.json",
        _name_or_path=MODELS["mistral-7b"].hub_id,
        architectures=["LlamaEncoderModel"],
        auto_map={"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"},
    )
    code = f"open({str(adapter / 'it-ran')!r}, 'w')\nraise SystemExit('code of a model ran')\n"
    (adapter / "modeling_llama_encoder.py").write_text(code)
    (adapter / "llm2vec_config.json").write_text(json.dumps(PUBLISHED_CONFIG))


def _base(folder: Path):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _by_hand(base: Path, *adapters: Path) -> torch.nn.Module:
    """Base model with adapters merged by peft alone."""
    from peft import PeftModel

    model = _base(base)[0]
    for folder in adapters:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()


# --------------------------------------------------------------------------- published folders
def test_a_published_folder_loads_without_its_code(published: Path, tiny_llama_dir: Path) -> None:
    encoder = LLM2Vec.from_pretrained(
        str(published / "mntp"),
        peft_model_name_or_path=str(published / "simcse"),
        device_map="cpu",
        torch_dtype=torch.float32,
        merge_peft=True,
    )
    assert not list(published.rglob("it-ran"))
    check_attention(encoder.backbone, True)
    assert (encoder.pooling, encoder.max_length, encoder.text_max_length) == (
        "weighted_mean", 64, 40,
    )  # fmt: skip
    assert encoder.adapters == tuple(adapter_hash(published / n) for n in ("mntp", "simcse"))
    expected = _by_hand(tiny_llama_dir, published / "mntp", published / "simcse")
    set_attention(expected, True)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).last_hidden_state for m in (encoder.backbone, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_each_adapter_counts(published: Path, tiny_llama_dir: Path) -> None:
    mntp, simcse = published / "mntp", published / "simcse"
    vectors = [
        LLM2Vec.from_pretrained(*names, device="cpu").encode(DOCUMENTS)
        for names in ((tiny_llama_dir,), (mntp,), (simcse,), (mntp, simcse))
    ]
    for one in range(4):
        for other in range(one):
            assert (vectors[one] - vectors[other]).abs().max() > 0.01
    extra = LLM2Vec.from_pretrained(mntp, extra_model_name_or_path=[simcse], device="cpu")
    torch.testing.assert_close(extra.encode(DOCUMENTS), vectors[3])


def test_arguments_go_before_the_folders_settings(published: Path) -> None:
    encoder = LLM2Vec.from_pretrained(
        published / "mntp", pooling_mode="eos_token", max_length=32, enable_bidirectional=False,
        doc_max_length=9, device="cpu",
    )  # fmt: skip
    assert (encoder.pooling, encoder.max_length, encoder.text_max_length) == ("eos", 32, 9)
    check_attention(encoder.backbone, False)
    assert len(encoder.tokenize([("", "dog " * 30)])[0].ids) < 12


def test_the_chat_format_is_that_of_the_base_model(published: Path, tmp_path: Path) -> None:
    """The folder's own config may name any model; what counts is where the weights come from."""
    assert LLM2Vec.from_pretrained(published / "mntp", device="cpu").model.chat is None
    assert open_checkpoint(str(published / "mntp")).base.endswith("tiny_llama0")


def test_damaged_or_missing_parts_are_named(published: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter 'org/adapter'.*adapter_config.json"):
        LLM2Vec.from_pretrained(published / "mntp", "org/adapter")
    folder = tmp_path / "mntp"
    folder.mkdir()
    for file in (published / "mntp").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    _edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(AdapterError, match="names no base model"):
        LLM2Vec.from_pretrained(folder)
    (folder / "llm2vec_config.json").write_text("[1]")
    with pytest.raises(SettingError, match=r"llm2vec_config.json: not a JSON object"):
        LLM2Vec.from_pretrained(folder)
    with pytest.raises(SettingError, match="instruction is never pooled"):
        LLM2Vec.from_pretrained(published / "mntp", skip_instruction=False)
    with pytest.raises(UnknownNameError, match="pooling 'bos_token'"):
        LLM2Vec.from_pretrained(published / "mntp", pooling_mode="bos_token")


# --------------------------------------------------------------------------- call shapes
def test_the_readme_of_the_published_package_runs(tiny_llama_dir: Path) -> None:
    l2v = LLM2Vec.from_pretrained(
        tiny_llama_dir, device_map="cpu", torch_dtype=torch.bfloat16, pooling_mode="mean",
        max_length=512, enable_bidirectional=True,
    )  # fmt: skip
    q_reps = l2v.encode(QUERIES)
    d_reps = l2v.encode(DOCUMENTS)
    q_reps_norm = torch.nn.functional.normalize(q_reps, p=2, dim=1)
    d_reps_norm = torch.nn.functional.normalize(d_reps, p=2, dim=1)
    cos_sim = torch.mm(q_reps_norm, d_reps_norm.transpose(0, 1))
    assert cos_sim.shape == (2, 2) and bool(cos_sim.isfinite().all())


def test_names_and_order_of_arguments_are_the_published_ones() -> None:
    def names(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(LLM2Vec.from_pretrained)[:5] == [
        "base_model_name_or_path", "peft_model_name_or_path", "merge_peft",
        "enable_bidirectional", "extra_model_name_or_path",
    ]  # fmt: skip
    assert names(LLM2Vec.encode)[1:] == [
        "sentences", "batch_size", "show_progress_bar", "convert_to_numpy", "convert_to_tensor",
        "device",
    ]  # fmt: skip
    assert names(LLM2Vec.save)[1:] == ["output_path", "merge_before_save", "save_config"]
    assert names(LLM2Vec.__init__)[3:6] == ["pooling_mode", "max_length", "doc_max_length"]


def test_encode_gives_what_is_asked_for(tiny_llama_dir: Path) -> None:
    encoder = LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu")
    tensor = encoder.encode(DOCUMENTS, 1, True, False, False, "cpu")
    array = encoder.encode(DOCUMENTS, batch_size=2, convert_to_numpy=True, device="cpu")
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert tensor.device.type == "cpu" and not tensor.requires_grad
    np.testing.assert_allclose(tensor, array, rtol=0, atol=1e-5)
    both = encoder.encode(DOCUMENTS, convert_to_numpy=True, convert_to_tensor=True)
    assert isinstance(both, torch.Tensor)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        encoder.encode(DOCUMENTS, batch_size=0)


def test_an_encoder_can_be_made_of_a_model_and_a_tokenizer(tiny_llama_dir: Path) -> None:
    model, tokenizer = _base(tiny_llama_dir)
    assert LLM2Vec(model, tokenizer, pooling_mode="mean", max_length=64).variant.name == "uni"
    set_attention(model, True)
    encoder = LLM2Vec(model, tokenizer, "mean", 64)
    assert encoder.variant.name == "bi"
    expected = LLM2Vec.from_pretrained(tiny_llama_dir, max_length=64, device="cpu")
    torch.testing.assert_close(encoder.encode(DOCUMENTS), expected.encode(DOCUMENTS))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_is_saved_comes_back(published: Path, tmp_path: Path, bidirectional: bool) -> None:
    encoder = LLM2Vec.from_pretrained(
        published / "mntp", published / "simcse", enable_bidirectional=bidirectional, device="cpu"
    )
    encoder.save(tmp_path / "saved", merge_before_save=True)
    again = LLM2Vec.from_pretrained(tmp_path / "saved", device="cpu")
    check_attention(again.backbone, bidirectional)
    assert (again.pooling, again.max_length) == ("weighted_mean", 64)
    torch.testing.assert_close(again.encode(QUERIES), encoder.encode(QUERIES), rtol=0, atol=1e-5)
    switched = LLM2Vec.from_pretrained(
        tmp_path / "saved", enable_bidirectional=not bidirectional, device="cpu"
    )
    check_attention(switched.backbone, not bidirectional)


def test_what_was_merged_before_saving_is_still_named(published: Path, tmp_path: Path) -> None:
    mntp, simcse = (adapter_hash(published / name) for name in ("mntp", "simcse"))
    LLM2Vec.from_pretrained(published / "mntp", device="cpu").save(tmp_path / "saved")
    assert LLM2Vec.from_pretrained(tmp_path / "saved", device="cpu").adapters == (mntp,)
    more = LLM2Vec.from_pretrained(tmp_path / "saved", published / "simcse", device="cpu")
    assert more.adapters == (mntp, simcse)


def test_a_revision_beside_an_adapter_is_refused(published: Path) -> None:
    with pytest.raises(SettingError, match=r"revision 'main': .*mntp holds an adapter of"):
        LLM2Vec.from_pretrained(published / "mntp", revision="main", device="cpu")


# --------------------------------------------------------------------------- the real thing
@pytest.mark.slow
def test_the_embedded_model_loads_in_the_published_layout(tmp_path: Path) -> None:
    """SmolLM2's shipped adapters, each in a repository as the authors' are, named by the hub id."""
    model, variant = MODELS["smollm2-135m"], VARIANTS["bi-mntp-simcse"]
    base = assets.model_folder(model.asset)
    for stage in ("mntp", "mntp-simcse"):
        shutil.copytree(adapter_folder(model, stage), tmp_path / stage)
        complete(tmp_path / stage, base)
    encoder = LLM2Vec.from_pretrained(
        tmp_path / "mntp", peft_model_name_or_path=tmp_path / "mntp-simcse",
        torch_dtype=torch.float32, device_map="cpu", pooling_mode="mean", max_length=512,
        doc_max_length=400,
    )  # fmt: skip
    assert not list(tmp_path.rglob("it-ran"))
    expected = load_encoder(model.name, variant.name, device="cpu")
    assert encoder.adapters == expected.adapters
    np.testing.assert_array_equal(encoder.encode(QUERIES), expected.encode(QUERIES))
    untrained = load_encoder(model.name, "bi", device="cpu")
    assert np.abs(untrained.encode(QUERIES) - expected.encode(QUERIES)).max() > 0.01

"""Layer similarity: the same weights with and without the causal mask, layer by layer."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import llm2vec.loading
from llm2vec import layers, representations
from llm2vec.attention import moved_positions
from llm2vec.errors import AttentionError, DataError, SettingError
from llm2vec.layers import LayerSimilarity, Paragraphs, layer_similarity
from llm2vec.provenance import capture_provenance
from llm2vec.registry import get_model
from llm2vec.results import read_record

SEQUENCES = ([3, 50, 7, 120, 9, 33, 4], [5, 90, 6], [11, 12, 13, 14, 200])


def is_causal(backbone: Any) -> bool:
    first = torch.tensor([[3, 4, 5, 6]])
    second = torch.tensor([[3, 4, 5, 99]])
    return not bool(moved_positions(backbone, first, second).any())


@pytest.fixture
def backbone(make_tiny_llama: Any) -> Any:
    return make_tiny_llama(num_hidden_layers=3).model.model


# --------------------------------------------------------------------------- cosines
@pytest.mark.parametrize("attention", [False, True])
def test_a_model_is_like_itself(backbone: Any, attention: bool) -> None:
    found = layer_similarity(backbone, SEQUENCES, bidirectional=(attention, attention))
    real = ~np.isnan(found.similarity)
    np.testing.assert_allclose(found.similarity[real], 1, atol=1e-6)
    np.testing.assert_array_equal(found.norms, found.norms_bi)


def test_only_states_that_see_more_move(backbone: Any) -> None:
    found = layer_similarity(backbone, SEQUENCES)
    assert found.similarity.shape == found.norms.shape == found.norms_bi.shape == (3, 4, 7)
    for similarity, ids in zip(found.similarity, SEQUENCES, strict=True):
        length = len(ids)
        assert np.isnan(similarity[:, length:]).all()
        np.testing.assert_allclose(similarity[0, :length], 1, atol=1e-6)
        # The last token sees everything under either mask: only from the second block on do the
        # states that it reads differ.
        assert similarity[1, length - 1] == pytest.approx(1, abs=1e-5)
        assert (similarity[1, : length - 1] < 1 - 1e-4).all()
        assert (similarity[2:, :length] < 1 - 1e-4).all()
    assert found.lengths.tolist() == [7, 3, 5]
    assert found.cost["tokens"] == 2 * 15
    assert found.cost["padding_tokens"] == 0


def test_cosines_and_norms_equal_those_of_plain_passes(make_tiny_llama: Any) -> None:
    backbone, other = (make_tiny_llama().model.model for _ in range(2))
    other.config.is_causal = False
    for module in other.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    found = layer_similarity(backbone, SEQUENCES)
    ids = torch.tensor([SEQUENCES[0]])
    with torch.no_grad():
        causal, both = (
            torch.stack(m(ids, output_hidden_states=True).hidden_states)[:, 0]
            for m in (backbone, other)
        )
    expected = torch.cosine_similarity(causal, both, dim=-1).numpy()
    np.testing.assert_allclose(found.similarity[0], expected, atol=1e-5)
    np.testing.assert_allclose(found.norms[0], causal.norm(dim=-1).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.norms_bi[0], both.norm(dim=-1).numpy(), rtol=1e-5)
    # The last layer is taken after the final norm: root mean square 1 at unit weights.
    np.testing.assert_allclose(found.norms[0, -1], np.sqrt(32), rtol=1e-3)


def test_backbone_is_left_causal_even_after_an_error(backbone: Any) -> None:
    layer_similarity(backbone, SEQUENCES)
    assert is_causal(backbone)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_similarity(backbone, SEQUENCES, progress=stop)
    assert is_causal(backbone)


def test_attention_that_cannot_be_switched_is_refused(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(backbone).forward

    def always_causal(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.config.is_causal = True
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(backbone), "forward", always_causal)
    with pytest.raises(AttentionError, match="cannot be made bidirectional"):
        layer_similarity(backbone, SEQUENCES)


def test_any_other_difference_between_the_passes_is_refused(backbone: Any) -> None:
    calls = iter(range(1000))

    def drift(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.roll(output, next(calls), dims=-1)

    backbone.embed_tokens.register_forward_hook(drift)
    with pytest.raises(AttentionError, match="embedding layers of the two passes differ"):
        layer_similarity(backbone, SEQUENCES, bidirectional=(True, True))


# --------------------------------------------------------------------------- paragraphs
def paragraph(words: int, start: int = 0) -> str:
    return " ".join(f"w{start + i}" for i in range(words))


def test_chosen_paragraphs_do_not_depend_on_order_or_copies() -> None:
    fitting = [paragraph(90 + i, i) for i in range(30)]
    candidates = [*fitting, paragraph(84), paragraph(126), fitting[0]]
    one = layers.choose_paragraphs(candidates, 10)
    other = layers.choose_paragraphs(candidates[::-1], 10)
    assert one == other
    assert len(set(one.texts)) == 10
    assert set(one.texts) <= set(fitting)
    assert one.setting is None
    assert one.source["revision"] != layers.choose_paragraphs(candidates, 11).source["revision"]
    ranks = sorted(sorted(fitting).index(text) for text in one.texts)
    assert ranks[0] < 10 and ranks[-1] >= 20, "not spread over the articles"


def test_bounds_are_inclusive_and_too_few_is_an_error() -> None:
    candidates = [paragraph(85), paragraph(125), paragraph(84), paragraph(126)]
    chosen = layers.choose_paragraphs(candidates, 2)
    assert sorted(len(t.split()) for t in chosen.texts) == [85, 125]
    with pytest.raises(DataError, match=r"2 of 4 paragraphs have 85 to 125 words, 20 are needed"):
        layers.choose_paragraphs(candidates)


def test_own_file_is_split_at_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n\nOne line\nand another.\n \t\n\nThe second.\n", encoding="utf-8")
    found = layers.read_paragraphs(file)
    assert found.texts == ("One line and another.", "The second.")
    assert (found.setting, found.source["source"]) == ("mine", "file")


def test_bad_files_are_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file, what in {
        tmp_path / "none.txt": "No such file",
        empty: "holds no paragraphs",
        binary: "not UTF-8",
    }.items():
        with pytest.raises(DataError, match=what) as caught:
            layers.read_paragraphs(file)
        assert str(file) in str(caught.value)


def test_tokens_begin_with_the_tokenizers_own_bos(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    (ids,) = layers.tokenize(tokenizer, [paragraph(400)])
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 512
    with pytest.raises(DataError, match="paragraph 2 has fewer than two tokens"):
        layers.tokenize(tokenizer, ["good text", ""])


# --------------------------------------------------------------------------- the record
def known_similarity() -> LayerSimilarity:
    """Two paragraphs of 6 and 2 tokens, two blocks; the second has only sink positions."""
    similarity = np.full((2, 3, 6), np.nan, np.float32)
    similarity[0] = [[1] * 6, [0, 0, 0, 0, 0.5, 1], [0.25] * 6]
    similarity[1, :, :2] = [[1, 1], [0.5, 1], [0, 0.5]]
    return LayerSimilarity(
        similarity, similarity, similarity, np.array([6, 2]), representations.cost(1.0, 16)
    )


def test_summary_of_known_cosines() -> None:
    found = layers.summarise(known_similarity())
    scores = found["scores"]
    assert scores["mean"] == pytest.approx([1, (0.25 + 0.75) / 2, 0.25])
    assert scores["std"] == pytest.approx([0, 0.25, 0])
    # Only the first paragraph has positions after the first four.
    assert scores["mean_without_first"] == pytest.approx([1, 0.75, 0.25])
    assert found["score"] == scores["cosine"] == pytest.approx((0.5 + 0.25) / 2)
    assert scores["cosine_without_first"] == pytest.approx(0.5)
    assert found["interval"] == pytest.approx((0.25, 0.5))
    assert scores["lengths"] == [6, 2]


@pytest.mark.filterwarnings("error")
def test_paragraphs_of_sink_positions_alone_have_no_mean_without_them() -> None:
    known = known_similarity()
    short = LayerSimilarity(*(a[1:] for a in (known.similarity, known.norms, known.norms_bi)),
                            known.lengths[1:], known.cost)  # fmt: skip
    found = layers.summarise(short)
    assert found["scores"]["mean_without_first"] is None
    assert found["interval"] is None
    assert found["score"] == pytest.approx(0.5)


def test_record_and_resume(backbone: Any, tmp_path: Path) -> None:
    model = get_model("smollm2-135m")
    texts = layers.choose_paragraphs([paragraph(90, i) for i in range(3)], 3)
    found = layer_similarity(backbone, SEQUENCES)
    record = layers.make_record(found, model, texts, provenance=capture_provenance())
    path = representations.write_with_arrays(record, tmp_path, layers.SUFFIX, found.save)
    folder = tmp_path / "raw/layer_similarity/smollm2-135m/bi/none"
    assert path == folder / "wikipedia.json"
    assert sorted(p.name for p in folder.iterdir()) == ["wikipedia.json", "wikipedia.npz"]
    with np.load(folder / "wikipedia.npz") as arrays:
        assert set(arrays) == {"similarity", "norms", "norms_bi", "lengths"}
        np.testing.assert_array_equal(arrays["similarity"], found.similarity)
        paragraphs_ = np.nanmean(arrays["similarity"][:, 1:].astype(float), axis=2).mean(1)
    back = read_record(path)
    assert back.score == pytest.approx(paragraphs_.mean())
    assert back.n == 3
    assert len(back.scores["mean"]) == 4
    key, other = layers.key_of(model, texts), Paragraphs(texts.texts, {"revision": "other"})

    def done(texts: Paragraphs, dtype: str | None = None) -> bool:
        settings = layers.settings_of(model, texts, dtype)
        return representations.is_complete(key, tmp_path, layers.SUFFIX, settings)

    assert done(texts)
    assert not done(other)
    assert not done(texts, "bfloat16")
    (folder / "wikipedia.npz").unlink()
    assert not done(texts)


def test_arrays_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        known_similarity().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_encoder_baselines_are_refused() -> None:
    with pytest.raises(SettingError, match="minilm-l6 is an encoder"):
        layers.key_of(get_model("minilm-l6"), Paragraphs(("a",), {"revision": "r"}))


# --------------------------------------------------------------------------- the script
@pytest.fixture
def script(repo_root: Path) -> ModuleType:
    file = repo_root / "experiments" / "07_layer_similarity.py"
    spec = importlib.util.spec_from_file_location("layer_similarity", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_runs_once_unless_forced_or_changed(
    script: ModuleType, tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(model: str, **_: Any) -> tuple[Any, Any]:
        loads.append(model)
        return tiny_llama.model.model, tiny_llama.tokenizer

    monkeypatch.setattr(llm2vec.loading, "load_backbone", load)
    file = tmp_path / "mine.txt"
    file.write_text("The quick brown fox.\n\nThe dog sleeps and sleeps.\n")
    for force in (False, False, True):
        script.main("smollm2-135m", paragraphs=file, results=tmp_path, force=force)
    assert len(loads) == 2
    file.write_text("The quick brown fox.\n\nThe dog reads.\n")
    script.main("smollm2-135m", paragraphs=file, results=tmp_path)
    assert len(loads) == 3
    path = tmp_path / "raw/layer_similarity/smollm2-135m/bi/none/wikipedia@mine.json"
    assert read_record(path).n == 2

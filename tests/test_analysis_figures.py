"""Figures: the data that they draw, that they are not blank, and errors that name the file."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import synthetic_records as made
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis import build, figure_data, figures, style
from analysis.collect import Results, load_results
from analysis.paper import printed
from analysis.style import VARIANT_COLOURS
from llm2vec.errors import RecordError, SettingError
from llm2vec.registry import POOLINGS, SUITES, VARIANTS, WORD_TASKS
from llm2vec.results import NONE


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    return load_results(root)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels, quickly drawn."""
    monkeypatch.setitem(style._SETTINGS, "savefig.dpi", 80)


def bars(axes) -> list[tuple[float, str]]:
    """Height and colour of each bar, from left to right."""
    patches = [p for p in axes.patches if p.get_height() > 0]
    patches.sort(key=lambda patch: patch.get_x())
    return [(round(p.get_height(), 6), to_hex(p.get_facecolor()).upper()) for p in patches]


# --------------------------------------------------------------------------- Figures 2 and 3
def test_figure2_draws_table_4(full: Results) -> None:
    figure = figures.figure2(full, "paper")
    scores = printed(4, full.paper).set_index(["model", "variant", "task"])["score"]
    for axes, task in zip(figure.axes, WORD_TASKS, strict=True):
        expected = [
            (scores[model, variant, task], VARIANT_COLOURS[variant])
            for model in ("s-llama-1.3b", "llama-2-7b", "mistral-7b")
            for variant in ("bi", "bi-mntp", "bi-simcse", "bi-mntp-simcse")
        ]
        assert bars(axes) == expected
        lines = {round(float(line.get_ydata()[0]), 2): line.get_linestyle() for line in axes.lines}
        assert lines == {
            scores["s-llama-1.3b", "uni", task]: "-",
            scores["llama-2-7b", "uni", task]: "-",
            scores["mistral-7b", "uni", task]: "-",
            scores["deberta-v3-large", "encoder", task]: "--",
        }
        low, high = axes.get_ylim()
        assert low < min(expected)[0]
        assert high > max(expected)[0]


def test_figure2_of_records_has_their_scores_and_their_encoder(tmp_path: Path) -> None:
    made.add_words(tmp_path, "smollm2-135m")
    for task in WORD_TASKS:
        made.add(tmp_path, "word_probing", "minilm-l6", "encoder", NONE, task, 0.8)
        made.add(tmp_path, "word_probing", "minilm-l6", "encoder", NONE, f"mini-{task}", 0.1)
    figure = figures.figure2(load_results(tmp_path))
    assert [height for height, _ in bars(figure.axes[0])] == [85.0, 92.0, 91.0]
    lines = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) > 1]
    assert {float(line[0]) for line in lines} == {90.0, 80.0}
    (spread, *_) = figure.axes[0].collections[0].get_segments()  # of the probe's seeds
    assert (spread[1][1] - spread[0][1]) / 2 == pytest.approx(data_of(tmp_path)["std"].iloc[0])
    assert "MiniLM-L6" in {text.get_text() for text in figure.legends[0].get_texts()}


def data_of(root: Path) -> pd.DataFrame:
    return figure_data.bars_of_words(load_results(root))


def test_figure3_draws_table_5(full: Results) -> None:
    figure = figures.figure3(full, "paper")
    scores = printed(5, full.paper).set_index(["model", "variant", "pooling"])["score"]
    models = ("s-llama-1.3b", "llama-2-7b", "mistral-7b")
    for axes, model in zip(figure.axes[:3], models, strict=True):
        expected = [
            (scores[model, variant, pooling], VARIANT_COLOURS[variant])
            for pooling in POOLINGS
            for variant in figure_data.FIGURE3_VARIANTS
        ]
        assert bars(axes) == expected
    assert not figure.axes[3].get_visible()


def test_figures_2_and_3_leave_out_no_variant_of_their_tables(full: Results) -> None:
    """What beats LLM2Vec must be seen beside it."""
    for number, drawn in ((4, {*figure_data.FIGURE2_VARIANTS, "uni"}),
                          (5, set(figure_data.FIGURE3_VARIANTS))):  # fmt: skip
        assert set(printed(number, full.paper)["variant"]) - {"encoder"} == drawn


@pytest.mark.parametrize("source", ["paper", "results"])
def test_every_bar_carries_its_number_within_its_width(full: Results, source) -> None:
    for draw in (figures.figure2, figures.figure3):
        figure = draw(full, source)
        figure.canvas.draw()
        for axes in figure.axes:
            boxes = [p.get_window_extent() for p in axes.patches if p.get_height() > 0]
            texts = [t.get_window_extent() for t in axes.texts]
            assert len(boxes) == len(texts)
            for box, text in zip(sorted(boxes, key=lambda b: b.x0),
                                 sorted(texts, key=lambda t: t.x0), strict=True):  # fmt: skip
                assert box.x0 <= text.x0 + 1 and text.x1 - 1 <= box.x1


def test_a_pooling_has_its_place_whatever_was_measured(tmp_path: Path) -> None:
    for pooling in POOLINGS:
        for task in SUITES["short6"]:
            made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", pooling, task, 0.4)
    axes = figures.figure3(load_results(tmp_path)).axes[0]
    low, high = axes.get_xlim()
    assert low < -0.5 and high > 2.5 and list(axes.get_xticks()) == [0, 1, 2]


def test_figure3_of_records_says_its_tasks_and_draws_no_part_of_a_mean(tmp_path: Path) -> None:
    for task in SUITES["exact8"]:
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", task, 0.4)
    for task in SUITES["short6"]:
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "bi", "mean", task, 0.3)
    data = figure_data.bars_of_poolings(load_results(tmp_path))
    # Two variants are complete over six tasks, only one over eight.
    assert set(data["tasks"]) == {"MTEB, 6 of 15 tasks"}
    assert dict(zip(data["variant"], data["score"], strict=True)) == {"uni": 40.0, "bi": 30.0}
    for task in set(SUITES["exact8"]) - set(SUITES["short6"]):
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "bi", "mean", task, 0.3)
    results = load_results(tmp_path)
    assert set(figure_data.bars_of_poolings(results)["tasks"]) == {"MTEB, 8 of 15 tasks"}
    assert "8 of 15 tasks" in figures.figure3(results).axes[0].get_title()


# --------------------------------------------------------------------------- ablations and sink
def test_follow_ups_draw_the_runs_and_the_positions_left_out(tmp_path: Path) -> None:
    assert figures.follow_ups(load_results(tmp_path)) is None
    for probability, style_, score in ((0.2, "bert", 0.3), (0.8, "bert", 0.4), (0.8, "all", 0.5)):
        made.add(tmp_path, "ablations", "smollm2-135m", "bi-mntp", "mean", "SICK-R", score,
                 setting=f"mntp-masking-{probability}-{style_}",
                 interval=(score - 0.01, score + 0.02))  # fmt: skip
    for seed, score in ((42, 0.6), (43, 0.35)):
        made.add(tmp_path, "ablations", "smollm2-135m", "bi-simcse", "mean", "STSBenchmark", score,
                 setting=f"simcse-dropout-0.1-{seed}", interval=(score, score))  # fmt: skip
    made.add_sink(tmp_path, "smollm2-135m")
    rates, masking, seeds, sink = figures.follow_ups(load_results(tmp_path)).axes
    drawn = [list(bars_.lines[0].get_ydata()) for bars_ in masking.containers]
    assert drawn == [[30.0, 40.0], [50.0]]
    assert [text.get_text() for text in masking.get_legend().get_texts()] == [
        "BERT style", "all masked",
    ]  # fmt: skip
    assert list(seeds.containers[0].lines[0].get_ydata()) == [60.0, 35.0]
    assert len(sink.containers) == 3 and not rates.lines


# What red, green and blue light become for three kinds of vision (Machado et al. 2009).
VISIONS = {
    "all cones": np.eye(3),
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TOLD_APART = 15  # CIE 1976 colour difference; about 2 can just be seen side by side


def seen(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour as somebody with that vision sees it."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    light = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.873]])
    x, y, z = np.cbrt(to_xyz @ np.clip(np.array(VISIONS[vision]) @ light, 0.009, 1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_can_be_told_apart_by_everybody(vision: str) -> None:
    pairs = [(style.POSITIVE, style.NEGATIVE), (style.ALL_POSITIONS, style.LATER_POSITIONS)]
    pairs += list(itertools.combinations(VARIANT_COLOURS.values(), 2))
    for one, other in pairs:
        assert np.linalg.norm(seen(one, vision) - seen(other, vision)) > TOLD_APART, (one, other)
    assert np.linalg.norm(seen("#008000", "no green cones") - seen("#9A6300", "no green cones")) < (
        TOLD_APART
    ), "the measure sees nothing"


def test_a_colour_means_one_thing() -> None:
    assert set(VARIANT_COLOURS) == set(VARIANTS)
    assert len(set(VARIANT_COLOURS.values())) == len(VARIANT_COLOURS)
    others = {style.POSITIVE, style.NEGATIVE, style.ALL_POSITIONS, style.LATER_POSITIONS}
    assert others.isdisjoint(VARIANT_COLOURS.values())


# --------------------------------------------------------------------------- Figures 4 and 7
def test_histograms_count_every_triple(full: Results) -> None:
    data = figure_data.cosines_of_triples(full)
    own = data[data["model"] == "smollm2-135m"]
    edges = figures.histogram_edges(own)
    assert edges[-1] == 1.0
    axes = next(a for a in figures.figure7(full).axes if a.get_title().endswith("+ MNTP"))
    part = own[own["variant"] == "bi-mntp"]
    areas = [p.get_height() * p.get_width() for p in axes.patches if hasattr(p, "get_height")]
    assert sum(areas) == pytest.approx(2), "two densities"
    assert len(part) == 60 and edges[0] < part["cos_pos"].mean()
    causal = own[own["variant"] == "uni"]
    counts = np.histogram(causal["cos_pos"], figures.histogram_edges(causal))[0]
    assert counts[-1] == len(causal)


def test_outliers_go_into_the_first_bin_and_are_counted(tmp_path: Path) -> None:
    made.add_leakage(tmp_path, "smollm2-135m", n=200)
    path = tmp_path / "raw/pooling_leakage/smollm2-135m/bi/none/triples.parquet"
    frame = pd.read_parquet(path)
    frame.loc[:2, "cos_pos"] = -0.5
    frame.to_parquet(path)
    results = load_results(tmp_path)
    edges = figures.histogram_edges(figure_data.cosines_of_triples(results))
    assert edges[0] > 0.7
    axes = figures.figure4(results).axes[0]
    (text,) = (t.get_text() for t in axes.texts)
    below = int((frame[["cos_pos", "cos_neg"]] < edges[0]).to_numpy().sum())
    assert text.endswith(f"\n{below} below {edges[0]:.2f}") and below >= 3
    assert float(axes.lines[1].get_xdata()[0]) == pytest.approx(frame["cos_pos"].mean())


def test_a_model_that_fits_goes_on_in_the_row(tmp_path: Path) -> None:
    made.add_leakage(tmp_path, "smollm2-135m", n=8)
    made.add_leakage(tmp_path, "minilm-l6", n=8)
    for path in (tmp_path / "raw/pooling_leakage/minilm-l6").glob("bi*"):
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "raw/pooling_leakage/smollm2-135m/bi")
    figure = figures.figure7(load_results(tmp_path))
    assert [a.get_title()[:3] for a in figure.axes] == ["(a)", "(b)", "(c)", "(d)"]
    assert all(a.get_xlabel() for a in figure.axes)


def test_figure7_has_a_panel_per_model_and_variant_and_figure4_two(full: Results) -> None:
    titles = [axes.get_title() for axes in figures.figure7(full).axes if axes.get_visible()]
    assert len(titles) == 2 * 4
    assert titles[0] == "(a) SmolLM2-135M\nUni"
    shown = figures.figure4(full)
    assert [axes.get_title()[4:] for axes in shown.axes[:2]] == [
        "SmolLM2-135M\nBi", "SmolLM2-135M\nBi + MNTP",
    ]  # fmt: skip
    data = figure_data.cosines_of_triples(full)
    part = data[(data["model"] == "smollm2-135m") & (data["variant"] == "bi-mntp")]
    gap = (part["cos_pos"] - part["cos_neg"]).mean()
    assert f"gap {gap:+.3f}" in {text.get_text() for text in shown.axes[1].texts}
    means = {round(float(line.get_xdata()[0]), 9) for line in shown.axes[1].lines}
    assert means == {round(part["cos_pos"].mean(), 9), round(part["cos_neg"].mean(), 9)}


# --------------------------------------------------------------------------- Figures 5, 8, 9
def test_maps_are_layer_by_position_without_padding(full: Results) -> None:
    stored = np.load(full.root / "raw/layer_similarity/mistral-7b/bi/none/wikipedia.npz")
    similarity = stored["similarity"]
    for paragraph in (0, 2):
        data = figure_data.maps_of_paragraph(full, paragraph)
        own = data[data["model"] == "mistral-7b"]
        table = own.pivot(index="layer", columns="position", values="cosine").to_numpy()
        length = similarity.shape[2] - 2 * paragraph
        assert table.shape == (similarity.shape[1], length)
        assert table == pytest.approx(similarity[paragraph, :, :length], abs=1e-4)
    image = figures.figure9(full).axes[0].images[0]
    first = figure_data.maps_of_paragraph(full)
    first = first[first["model"] == "mistral-7b"]
    drawn = first.pivot(index="layer", columns="position", values="cosine").to_numpy()
    assert np.array_equal(np.asarray(image.get_array()), drawn)
    assert image.origin == "lower"


def test_layer_means_with_and_without_the_first_positions(tmp_path: Path) -> None:
    similarity = np.full((2, 3, 6), 0.5, dtype=np.float32)
    similarity[:, :, :4] = 1.0  # the sink and its neighbours
    similarity[1, :, 5] = np.nan
    similarity[1, 2, 4] = 0.3
    made.add_layers(tmp_path, "smollm2-135m")
    path = tmp_path / "raw/layer_similarity/smollm2-135m/bi/none/wikipedia.npz"
    np.savez(path, similarity=similarity)
    made.add(tmp_path, "layer_similarity", "smollm2-135m", "bi", NONE, "wikipedia", 0.5, n=2,
             hyperparameters={"first_positions": 4},
             scores={"cosine_without_first": 0.5})  # fmt: skip
    data = figure_data.layer_means(load_results(tmp_path)).set_index(["first", "layer"])
    assert data.loc[("left out", 0), "mean"] == pytest.approx(0.5)
    assert data.loc[("left out", 2), "mean"] == pytest.approx((0.5 + 0.3) / 2)
    assert data.loc[("left out", 2), "std"] == pytest.approx(0.1)
    assert data.loc[("kept", 0), "mean"] == pytest.approx(((4 + 1) / 6 + 4.5 / 5) / 2)


def test_figure5_leaves_other_releases_to_figure9(full: Results) -> None:
    def titles(figure: Figure) -> list[str]:
        return [axes.get_title() for axes in figure.axes if axes.images]

    assert titles(figures.figure5(full)) == [
        "(a) SmolLM2-135M", "(b) S-LLaMA-1.3B", "(c) Mistral-7B",
    ]  # fmt: skip
    assert titles(figures.figure9(full)) == ["(a) Mistral-7B"]
    assert len(titles(figures.figure8(full))) == 6


# --------------------------------------------------------------------------- all of them
def test_figures_are_written_whole_and_not_blank(full: Results, coarse: None) -> None:
    written = build.draw_figures(full)
    assert {path.stem for path in written} == set(figures.FIGURES)
    for path in written:
        if path.suffix == ".png":
            pixels = matplotlib.image.imread(path)[..., :3]
            ink = (pixels.min(axis=2) < 0.98).mean()
            assert 0.02 < ink < 0.95, path.name
            assert len(np.unique(pixels.sum(axis=2).round(3))) > 20, path.name
        else:
            data = path.read_bytes()
            assert data.startswith(b"%PDF")
            assert data.rstrip().endswith(b"%%EOF")
            assert b"CreationDate" not in data
    assert not list(full.root.glob("figures/*.csv"))


def test_drawing_twice_gives_the_same_files(tmp_path: Path, coarse: None) -> None:
    results = load_results(tmp_path)
    first = {path.name: path.read_bytes() for path in build.draw_figures(results)}
    assert set(first) == {"figure2_paper.pdf", "figure2_paper.png",
                          "figure3_paper.pdf", "figure3_paper.png"}  # fmt: skip
    assert {path.name: path.read_bytes() for path in build.draw_figures(results)} == first


def test_nothing_to_draw_is_no_error(tmp_path: Path) -> None:
    results = load_results(tmp_path)
    for name, draw in figures.FIGURES.items():
        assert (draw(results) is None) == (not name.endswith("_paper"))
    for make in (figure_data.cosines_of_triples, figure_data.maps_of_paragraph,
                 figure_data.layer_means):  # fmt: skip
        assert make(results).empty


@pytest.mark.parametrize(
    "draw", [figures.figure4, figures.figure5, figures.figure7, figures.figure8, figures.figure9]
)
def test_the_paper_prints_no_numbers_for_these(full: Results, draw) -> None:
    with pytest.raises(SettingError, match="prints no numbers"):
        draw(full, "paper")


def test_unknown_sources_are_named(full: Results) -> None:
    with pytest.raises(SettingError, match=r"'papers' is unknown\. Valid: paper, results"):
        figures.figure2(full, "papers")


@pytest.mark.parametrize(
    ("experiment", "suffix", "make"),
    [
        ("pooling_leakage", ".parquet", figure_data.cosines_of_triples),
        ("layer_similarity", ".npz", figure_data.maps_of_paragraph),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, experiment: str, suffix: str, make) -> None:
    made.add_leakage(tmp_path, "smollm2-135m", n=8)
    made.add_layers(tmp_path, "smollm2-135m", layers=3)
    path = next((tmp_path / "raw" / experiment).rglob(f"*{suffix}"))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"nonsense", b""):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=path.name):
            make(load_results(tmp_path))
    if suffix == ".npz":
        np.savez(path, other=np.zeros(3))
        with pytest.raises(RecordError, match="'similarity' cannot be read"):
            make(load_results(tmp_path))
        np.savez(path, similarity=np.zeros((2, 3, 4)))
        with pytest.raises(RecordError, match="record says 5"):
            make(load_results(tmp_path))
    else:
        pd.DataFrame({"id": [1], "cos_pos": [1.0], "cos_neg": [1.0]}).to_parquet(path)
        with pytest.raises(RecordError, match="1 triples, its record says 8"):
            make(load_results(tmp_path))
    path.unlink()
    with pytest.raises(RecordError, match="is missing"):
        make(load_results(tmp_path))

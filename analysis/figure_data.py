"""What each figure draws, as tidy tables: computed here, drawn in ``figures``.

``source="paper"`` takes the numbers of Tables 4 and 5, ``source="results"`` the records. The
tables are written beside the pictures, so that figures can be compared by the data they show.
Scores are in points, cosines as they are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from analysis import tables_ablations, tables_sink
from analysis.collect import Results, beside
from analysis.means import exact, mean_of
from analysis.paper import our_names, printed
from llm2vec.errors import RecordError, SettingError
from llm2vec.registry import MODELS, POOLINGS, SUITES, VARIANTS, WORD_TASKS
from llm2vec.registry_ablations import ABLATIONS
from llm2vec.results import NONE, Record

Source = Literal["paper", "results"]
# All that Table 4 has but uni, which is a line, and all of Table 5; the paper's figures leave out
# bi-simcse and uni-simcse.
FIGURE2_VARIANTS = ("bi", "bi-mntp", "bi-simcse", "bi-mntp-simcse")
FIGURE3_VARIANTS = ("uni", "bi", "bi-mntp", "uni-simcse", "bi-simcse", "bi-mntp-simcse")


def _check(source: str, figure: str, printed_here: bool) -> None:
    if source not in ("paper", "results"):
        raise SettingError(f"source {source!r} is unknown. Valid: paper, results.")
    if source == "paper" and not printed_here:
        raise SettingError(
            f"the paper prints no numbers for {figure}. Valid: source='results', from records."
        )


def bars_of_words(results: Results, source: Source = "results") -> pd.DataFrame:
    """Figure 2: columns model, variant, task, score, std (over seeds of the probe; the paper prints
    none); encoder baselines have variant encoder."""
    _check(source, "Figure 2", True)
    if source == "paper":
        table = printed(4, results.paper)
        rows = [(*our_names(r.model, r.variant, NONE)[:2], r.task, r.score, np.nan)
                for r in table.itertuples()]  # fmt: skip
    else:
        rows = [(model, variant, task, score, cell[task].std)
                for (model, variant, _), cell in results.words.items()
                for task, score in exact(cell).items() if task in WORD_TASKS]  # fmt: skip
    return _sorted(rows, ["model", "variant", "task", "score", "std"])


def bars_of_poolings(results: Results, source: Source = "results") -> pd.DataFrame:
    """Figure 3: columns panel (suite), model, variant, pooling, score, tasks (count).

    The panel of a model is the largest suite that most of its cells have completely; the offline
    suite is a panel of its own.
    """
    _check(source, "Figure 3", True)
    columns = ["panel", "model", "variant", "pooling", "score", "tasks"]
    if source == "paper":
        rows = [("subset", *our_names(r.model, r.variant, r.pooling), r.score, "15 of 15 tasks")
                for r in printed(5, results.paper).itertuples()]  # fmt: skip
        return _sorted([r for r in rows if r[2] in FIGURE3_VARIANTS], columns)
    rows = []
    for model in MODELS:
        complete = {}
        for suite in ("subset", "exact8", "short6"):
            complete[suite] = _complete(results.mteb, model, SUITES[suite])
        suite = max(complete, key=lambda s: (len(complete[s]), len(SUITES[s])))
        count = f"MTEB, {len(SUITES[suite])} of {len(SUITES['subset'])} tasks"
        rows += [("subset", model, *cell, score, count) for cell, score in complete[suite].items()]
        offline = _complete(results.offline, model, SUITES["offline"])
        count = f"{len(SUITES['offline'])} offline tasks"
        rows += [("offline", model, *cell, score, count) for cell, score in offline.items()]
    return _sorted(rows, columns)


def _complete(cells, model: str, tasks) -> dict[tuple[str, str], float]:
    """Means of the cells of Figure 3 that have every one of the tasks."""
    found = {}
    for variant in FIGURE3_VARIANTS:
        for pooling in POOLINGS:
            mean = mean_of(exact(cells.get((model, variant, pooling), {})), tasks)
            if mean.value is not None:
                found[variant, pooling] = mean.value
    return found


def _sorted(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    """Rows in the registry's order of models and variants."""
    models, variants = list(MODELS), list(VARIANTS)
    place = {name: columns.index(name) for name in ("model", "variant")}

    def order(row: tuple) -> tuple[int, int]:
        return models.index(row[place["model"]]), variants.index(row[place["variant"]])

    return pd.DataFrame(sorted(rows, key=order), columns=columns)


# --------------------------------------------------------------------------- Figures 4 and 7
def cosines_of_triples(results: Results, source: Source = "results") -> pd.DataFrame:
    """Figures 4 and 7: columns model, variant, id, cos_pos, cos_neg; one row per triple."""
    _check(source, "Figures 4 and 7", False)
    frames = []
    for record in results.records_of("pooling_leakage"):
        path = beside(record, results.root, ".parquet")
        try:
            frame = pd.read_parquet(path, columns=["id", "cos_pos", "cos_neg"])
        except Exception as error:  # pyarrow has many kinds of them
            raise RecordError(
                f"{path}: columns id, cos_pos and cos_neg cannot be read ({error}). Delete its "
                "record and run the command again."
            ) from error
        if len(frame) != record.n:
            raise RecordError(f"{path}: {len(frame)} triples, its record says {record.n}.")
        frame.insert(0, "variant", record.variant)
        frame.insert(0, "model", record.model)
        frames.append(frame)
    columns = ["model", "variant", "id", "cos_pos", "cos_neg"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


# --------------------------------------------------------------------------- Figures 5, 8 and 9
def similarity_map(record: Record, results: Results) -> np.ndarray:
    """(paragraphs, layers, positions) cosines, NaN after a paragraph's end; layer 0: embeddings."""
    path = beside(record, results.root, ".npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            similarity = arrays["similarity"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(
            f"{path}: array 'similarity' cannot be read ({error}). Delete its record and run the "
            "command again."
        ) from error
    if similarity.ndim != 3 or len(similarity) != record.n:
        raise RecordError(
            f"{path}: 'similarity' has shape {similarity.shape}, its record says {record.n} "
            "paragraphs of (layers, positions)."
        )
    return similarity


def maps_of_paragraph(
    results: Results, paragraph: int = 0, source: Source = "results"
) -> pd.DataFrame:
    """Figures 5, 8 and 9: columns model, layer, position, cosine of one paragraph."""
    _check(source, "Figures 5, 8 and 9", False)
    frames = []
    for record in results.records_of("layer_similarity"):
        similarity = similarity_map(record, results)
        if paragraph >= len(similarity):
            continue
        layer, position = np.nonzero(~np.isnan(similarity[paragraph]))
        cosine = similarity[paragraph][layer, position].astype(np.float64)
        frames.append(pd.DataFrame({
            "model": record.model, "layer": layer, "position": position,
            "cosine": cosine.round(4),
        }))  # fmt: skip
    columns = ["model", "layer", "position", "cosine"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def other_maps(results: Results) -> pd.DataFrame:
    """Figure 8: the maps of two further paragraphs, with a column paragraph."""
    frames = [maps_of_paragraph(results, i).assign(paragraph=i) for i in (1, 2)]
    return pd.concat(frames, ignore_index=True)


def layer_means(results: Results, source: Source = "results") -> pd.DataFrame:
    """Mean cosine per layer over paragraphs with its standard deviation, with and without the
    first positions: columns model, layer, first (kept, left out), mean, std."""
    _check(source, "the layer means", False)
    rows = []
    for record in results.records_of("layer_similarity"):
        similarity = similarity_map(record, results).astype(np.float64)
        first = int(record.hyperparameters.get("first_positions", 1))
        for name, start in (("kept", 0), ("left out", first)):
            part = similarity[:, :, start:]
            part = part[~np.isnan(part).all(axis=(1, 2))]
            if not part.size:
                continue
            per_paragraph = np.nanmean(part, axis=2)
            for layer, values in enumerate(per_paragraph.T):
                rows.append((record.model, layer, name, values.mean(), values.std()))
    return pd.DataFrame(rows, columns=["model", "layer", "first", "mean", "std"]).round(6)


# --------------------------------------------------------------------------- the project's own
def ablations(results: Results) -> pd.DataFrame:
    """Ablations that were measured, as their tables have them, with what each varied: columns
    learning_rate, steps, mask_probability, masking."""
    tables = (tables_ablations.sensitivity(results), tables_ablations.ablations(results))
    frame = pd.concat([table.data for table in tables], ignore_index=True).dropna(subset="score")
    runs = {run.name: run.varied for group in ABLATIONS.values() for run in group}
    for name in ("learning_rate", "steps", "mask_probability", "masking"):
        frame[name] = [runs[setting].get(name) for setting in frame["setting"]]
    return frame


def without_first(results: Results) -> pd.DataFrame:
    """STSBenchmark without the first positions, as the table of the attention sink has it."""
    return tables_sink.sink(results).data


DATA: dict[str, Callable[[Results], pd.DataFrame]] = {
    "figure2_paper": lambda results: bars_of_words(results, "paper"),
    "figure3_paper": lambda results: bars_of_poolings(results, "paper"),
    "figure2": bars_of_words,
    "figure3": bars_of_poolings,
    "figure4_7": cosines_of_triples,
    "figure5_9": maps_of_paragraph,
    "figure5_9_layers": layer_means,
    "figure5_9_others": other_maps,
    "follow_ups_ablations": ablations,
    "follow_ups_sink": without_first,
}
# Which of these a figure draws: a picture says of which data it was made, and is checked by it.
DRAWN: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("figure2_paper", "figure3_paper", "figure2", "figure3")},
    "figure4": ("figure4_7",), "figure7": ("figure4_7",),
    "figure5": ("figure5_9", "figure5_9_layers"), "figure9": ("figure5_9", "figure5_9_layers"),
    "figure8": ("figure5_9_others",),
    "follow_ups": ("follow_ups_ablations", "follow_ups_sink"),
}  # fmt: skip

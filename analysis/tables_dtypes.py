"""Is a faster dtype as good? Scores in another dtype beside those in the registry's, per pooling.

Made of the records that ``--dtype`` writes (``{task}@bfloat16.json``) and of the same task's record
in the model's own dtype. The rule of the verdict stands in ``llm2vec/registry_verdicts.py``.
"""

from __future__ import annotations

import pandas as pd

from analysis.collect import AXES, Results
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import block_breaks, display_model, display_pooling, display_variant, once
from analysis.tables_own import in_order, short_task
from llm2vec.registry import DTYPES, MODELS
from llm2vec.registry_verdicts import DTYPE_BAND

CELL = ["setting", "model", "variant", "pooling"]
HEADER = ["Dtype", "Model", "Variant", "Pooling", "Tasks", "Mean difference", "Largest", "In task",
          f"Moved by more than {DTYPE_BAND}"]  # fmt: skip


def in_another_dtype(scores: pd.DataFrame) -> pd.Series:
    """Which rows depart from the paper's setting by their dtype alone."""
    return scores["setting"].isin(DTYPES)


def differences(results: Results) -> pd.DataFrame:
    """A row for each score in another dtype that has a counterpart; ``difference`` in points."""
    scores = results.scores
    keys = list(AXES[:-1])
    own = scores[scores["setting"].isna()].set_index(keys)["score"]
    rows = scores[in_another_dtype(scores)]
    rows = rows.merge(own.rename("own").reset_index(), on=keys)
    rows["own_dtype"] = [MODELS[model].dtype for model in rows["model"]]
    rows["difference"] = (100 * (rows["score"] - rows["own"])).round(9)
    return rows


def dtypes(results: Results) -> Table:
    """One row per dtype, model, variant and pooling: how far its scores lie from the default's."""
    found = differences(results)
    rows, blocks = [], []
    for dtype in [name for name in DTYPES if name in set(found["setting"])]:
        cells = dict(list(found[found["setting"] == dtype].groupby(CELL[1:], sort=False)))
        for cell in in_order(cells):
            rows.append([dtype, *_row(cell, cells[cell])])
            blocks.append(f"{dtype} {cell[0]}")
    shown = [[label, *row[1:]] for label, row in zip(once([r[0] for r in rows]), rows, strict=True)]
    data = found[[*AXES, "own_dtype", "score", "own", "difference"]]
    return Table(
        "dtypes", "Scores in a faster dtype against the default's", HEADER,
        shown or [["not run", *[NOT_RUN] * (len(HEADER) - 1)]], "llllrrrlr", data,
        Origin.of(found), f"{found['task'].nunique()} tasks", breaks=block_breaks(blocks),
        notes=("Differences in points (scores times 100), faster dtype minus default.", _rule(),
               *_verdicts(found)),
    )  # fmt: skip


def _row(cell: tuple[str, str, str], rows: pd.DataFrame) -> list[str]:
    model, variant, pooling = cell
    largest = rows.loc[rows["difference"].abs().idxmax()]
    return [
        display_model(model), display_variant(variant), display_pooling(pooling), str(len(rows)),
        number(rows["difference"].mean(), sign=True), number(largest["difference"], sign=True),
        short_task(largest["task"]), f"{_moved(rows)} of {len(rows)}",
    ]  # fmt: skip


def _moved(rows: pd.DataFrame) -> int:
    return int((rows["difference"].abs() > DTYPE_BAND).sum())


def _rule() -> str:
    return (f"Rule: a faster dtype becomes the default for scoring only if no task moves by more "
            f"than {DTYPE_BAND} points.")  # fmt: skip


def _verdicts(found: pd.DataFrame) -> list[str]:
    """One sentence for each dtype and model, with the rule applied."""
    texts = []
    for (dtype, model), rows in found.groupby(["setting", "model"], sort=True):
        moved, own = _moved(rows), rows["own_dtype"].iloc[0]
        verdict = f"{own} stays the default" if moved else f"{dtype} may be the default"
        texts.append(f"{dtype} on {display_model(model)}: {moved} of {len(rows)} scores moved by "
                     f"more; {verdict}.")  # fmt: skip
    return texts

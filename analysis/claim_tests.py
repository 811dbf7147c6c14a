"""The kinds of test that claims are made of: functions from evidence to an outcome.

A test returns None where the evidence is not there ("not run"). Comparisons take the means as
they are, over the tasks that all sides have; how near a verdict is to the other one is its margin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analysis.evidence import TOTALS, Cell, View
from llm2vec.registry import MODELS, POOLING_DISPLAY, POOLINGS, VARIANTS
from llm2vec.results import NONE

HARDLY = 1.0  # points, mean over the word-level tasks
GAIN_TOLERANCE = 3.0  # per cent points around a printed gain
SIMILAR = 0.8  # mean cosine that parts "low" from "high"
SIZE_STEP = 2.0  # a model counts as larger from twice as many parameters
PRINTED_GAINS = {"s-llama-1.3b": 49.8, "llama-2-7b": 23.2, "mistral-7b": 37.5}  # section 3.2
LLM2VEC, MNTP = "bi-mntp-simcse", "bi-mntp"


@dataclass(frozen=True)
class Outcome:
    """``numbers``: what was compared; ``tasks``: how many tasks or items it rests on.

    ``margin``: points by which the least favourable comparison is won, negative where it is lost;
    None where points decide nothing.
    """

    holds: bool
    numbers: str
    tasks: str
    margin: float | None = None


Test = Callable[[View], Outcome | None]
CrossTest = Callable[[Sequence[View]], Outcome | None]


# --------------------------------------------------------------------------- kinds of test
def _label(cell: Cell) -> str:
    variant, pooling = cell
    name = VARIANTS[variant].display
    return name if pooling == NONE else f"{name} / {POOLING_DISPLAY[pooling]}"


def _sign(left: float, right: float) -> str:
    return ">" if left > right else "<" if left < right else "="


def _versus(names: tuple[str, str], values: tuple[float, float]) -> str:
    left, right = values
    return f"{names[0]} {left:.2f} {_sign(left, right)} {names[1]} {right:.2f}"


def above(higher: Cell, lower: Cell, reverse_for: str = "") -> Test:
    """Mean of one cell above another's; the reverse for one architecture."""

    def test(view: View) -> Outcome | None:
        means = view.compare(higher, lower)
        if means is None:
            return None
        left, right = means.values
        margin = right - left if view.model.architecture == reverse_for else left - right
        numbers = _versus((_label(higher), _label(lower)), (left, right))
        count = view.count(means.tasks, higher[0], lower[0])
        return Outcome(margin > 0, numbers, count, margin)

    return test


def above_on_each_task(higher: str, lower: str) -> Test:
    """One variant above another on every word-level task."""

    def test(view: View) -> Outcome | None:
        means = view.compare((higher, NONE), (lower, NONE))
        if means is None:
            return None
        numbers = "; ".join(
            f"{task} {left:.2f} {_sign(left, right)} {right:.2f}"
            for task, (left, right) in means.per_task.items()
        )
        margin = min(left - right for left, right in means.per_task.values())
        names = f"{VARIANTS[higher].display} against {VARIANTS[lower].display}"
        count = view.count(means.tasks, higher, lower)
        return Outcome(margin > 0, f"{names}: {numbers}", count, margin)

    return test


def pooling_is(variants: Sequence[str], pooling: str, best: bool = True) -> Test:
    """One pooling gives the best (or the worst) mean of the three for each of the variants."""

    def test(view: View) -> Outcome | None:
        margins, texts, tasks = [], [], []
        for variant in variants:
            means = view.compare(*((variant, p) for p in POOLINGS))
            if means is None:
                return None
            scores = dict(zip(POOLINGS, means.values, strict=True))
            others = [score for name, score in scores.items() if name != pooling]
            margins += [(scores[pooling] - other) * (1 if best else -1) for other in others]
            shown = ", ".join(f"{POOLING_DISPLAY[p]} {s:.2f}" for p, s in scores.items())
            texts.append(f"{VARIANTS[variant].display}: {shown}")
            tasks.append(means.tasks)
        margin = min(margins)
        return Outcome(margin > 0, "; ".join(texts), view.count(min(tasks), *variants), margin)

    return test


def best_under_every_pooling(best: str, needed: Sequence[str], more: Sequence[str]) -> Test:
    """A variant above all others that were run, for each pooling; ``needed`` must be there."""

    def test(view: View) -> Outcome | None:
        margins, texts, tasks = [], [], []
        for pooling in POOLINGS:
            extra = [v for v in more if (v, pooling) in view.cells]
            others = [*needed, *extra]
            means = view.compare(*((v, pooling) for v in (best, *others)))
            if means is None:
                return None
            own, *rest = means.values
            second = max(range(len(rest)), key=rest.__getitem__)
            margins.append(own - rest[second])
            name = f"{POOLING_DISPLAY[pooling]}: {VARIANTS[best].display}"
            texts.append(_versus((name, VARIANTS[others[second]].display), (own, rest[second])))
            tasks.append(means.tasks)
        margin, count = min(margins), view.count(min(tasks), best, *needed, *more)
        return Outcome(margin > 0, "; ".join(texts), count, margin)

    return test


def above_under_every_pooling(higher: str, lower: str) -> Test:
    """One variant above another for each pooling."""
    return best_under_every_pooling(higher, [lower], [])


# --------------------------------------------------------------------------- single tests
def hardly_lower(view: View) -> Outcome | None:
    """Bidirectional attention alone costs at most ``HARDLY`` points in the mean."""
    means = view.compare(("bi", NONE), ("uni", NONE))
    if means is None:
        return None
    loss = means.values[1] - means.values[0]
    parts = "; ".join(f"{t} {b - u:+.2f}" for t, (b, u) in means.per_task.items())
    text = f"mean {-loss:+.2f} ({parts})"
    return Outcome(loss <= HARDLY, text, view.count(means.tasks), HARDLY - loss)


def gain(view: View) -> Outcome | None:
    """LLM2Vec over the best causal pooling, in per cent; near the printed gain, if there is one."""
    means = view.compare((LLM2VEC, "mean"), *(("uni", pooling) for pooling in POOLINGS))
    if means is None:
        return None
    ours, *causal = means.values
    percent = 100 * (ours / max(causal) - 1)
    numbers = f"{ours:.2f} against {max(causal):.2f}: {percent:+.1f} %"
    expected, count = PRINTED_GAINS.get(view.model.name), view.count(means.tasks, LLM2VEC)
    # Printed of the 15 tasks of MTEB: of as many others, a gain has no number to be near to.
    if expected is not None and view.kind == "subset" and means.tasks == TOTALS["subset"]:
        near = abs(percent - expected) <= GAIN_TOLERANCE
        return Outcome(near, f"{numbers} (printed {expected:+.1f} %)", count)
    margin = ours - max(causal)
    return Outcome(margin > 0, numbers, count, margin)


def positive_nearer(view: View) -> Outcome | None:
    """After MNTP, cos(q, s+) is above cos(q, s-), beyond the interval of the mean gap."""
    cell = view.cells.get((MNTP, NONE))
    if cell is None:
        return None
    numbers = f"gap {cell['gap']:+.4f}, lower end of its 95 % interval {cell['gap_low']:+.4f}"
    return Outcome(cell["gap_low"] > 0, numbers, view.count(view.weights["gap"], MNTP))


def layers_as_expected(view: View) -> Outcome | None:
    """Causal and bidirectional states: near each other in Mistral, far in LLaMA models."""
    cell = next(iter(view.cells.values()), None)
    if cell is None:
        return None
    high = view.model.architecture == "mistral"
    holds = (cell["cosine"] >= SIMILAR) == high
    numbers = f"mean cosine {cell['cosine']:.3f}, {'high' if high else 'low'} expected"
    return Outcome(holds, numbers, view.count(view.weights["cosine"]))


# --------------------------------------------------------------------------- across models
@dataclass(frozen=True)
class _Common:
    """One cell of several models over the tasks that all of them have."""

    scores: dict[str, dict[str, float]]
    tasks: str

    def mean(self, model: str) -> float:
        return sum(self.scores[model].values()) / len(self.scores[model])

    def numbers(self) -> str:
        return ", ".join(f"{MODELS[name].display} {self.mean(name):.2f}" for name in self.scores)


def _common(cells: Mapping[str, tuple[View, Cell]]) -> _Common | None:
    found = {name: view.cells[cell] for name, (view, cell) in cells.items()}
    tasks = sorted(set.intersection(*(set(s) for s in found.values()))) if found else []
    if not tasks:
        return None
    scores = {name: {t: s[t] for t in tasks} for name, s in found.items()}
    # The count says whose adapters: that of a model with the authors', if there is one.
    view, (variant, _) = max(cells.values(), key=lambda pair: pair[1][0] in pair[0].authors)
    return _Common(scores, view.count(sum(view.weights[t] for t in tasks), variant))


def _decoders(group: Sequence[View], cell: Cell) -> dict[str, tuple[View, Cell]]:
    return {v.model.name: (v, cell) for v in group
            if v.model.kind == "decoder" and cell in v.cells}  # fmt: skip


def larger_is_better(group: Sequence[View]) -> Outcome | None:
    """LLM2Vec of a model scores above that of every clearly smaller one."""
    common = _common(_decoders(group, (LLM2VEC, "mean")))
    if common is None:
        return None
    ordered = sorted(common.scores, key=lambda name: MODELS[name].parameters)
    pairs = [(a, b) for a in ordered for b in ordered
             if MODELS[b].parameters >= SIZE_STEP * MODELS[a].parameters]  # fmt: skip
    if not pairs:
        return None
    numbers = ", ".join(f"{MODELS[n].display} {common.mean(n):.2f}" for n in ordered)
    margin = min(common.mean(b) - common.mean(a) for a, b in pairs)
    return Outcome(margin > 0, numbers, common.tasks, margin)


def above_encoders(cell: Cell, encoders: Sequence[str], each_task: bool = False) -> CrossTest:
    """A cell of every decoder above each encoder baseline that was run.

    ``each_task``: on every single task, for a claim that says so; else in the mean, which is what
    the paper prints of MTEB.
    """

    def test(group: Sequence[View]) -> Outcome | None:
        own = ("encoder", NONE)
        bases = {v.model.name: (v, own) for v in group
                 if v.model.name in encoders and own in v.cells}  # fmt: skip
        decoders = _decoders(group, cell)
        common = _common({**bases, **decoders}) if bases and decoders else None
        if common is None:
            return None
        margin = min(
            common.scores[d][task] - score if each_task else common.mean(d) - common.mean(b)
            for d in decoders for b in bases for task, score in common.scores[b].items()
        )  # fmt: skip
        return Outcome(margin > 0, common.numbers(), common.tasks, margin)

    return test

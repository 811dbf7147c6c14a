"""What was not run and why, and what running the paper's models would take.

Which records there could be is the registry's (``registry_grid.py`` and the pages of the small
experiments); why one is missing follows from its model (weights that only the hub has, a size that
wants a GPU), from its data (``results/mirror.csv``: what the mirror held), or else it is time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from analysis.collect import Results, mark_of
from analysis.paper import printed
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import block_breaks, display_model, display_pooling, once
from analysis.tables_adapters import departures
from analysis.tables_own import short_task
from analysis.trainings import adapter_notes, variant_of
from llm2vec import estimates
from llm2vec.costs import BIG, Costs
from llm2vec.errors import RecordError
from llm2vec.paths import results_dir
from llm2vec.registry import MODELS, SUITES, TASKS, VARIANTS, WORD_TASKS, Model
from llm2vec.registry_ablations import ABLATIONS
from llm2vec.registry_grid import (
    LAYERS,
    LEAKAGE,
    WORDS,
    full_pooling,
    grid_poolings,
    paper_variants,
)
from llm2vec.registry_sink import CONTROL, INSTRUCTED, PAIRS, PLAIN, VARIANTS_ASKED
from llm2vec.results import NONE

PARTS: Mapping[str, str] = {
    WORDS: "Word-level tasks", "subset": "MTEB subset", "full": "MTEB, 56 tasks",
    LEAKAGE: "Pooling leakage", LAYERS: "Layer similarity", "offline": "Offline suite",
}  # fmt: skip
_MTEB = ("mteb_subset", "mteb_full")  # a task of the subset is one of the 56 as well
_EXPERIMENTS: Mapping[str, tuple[str, ...]] = {
    WORDS: ("word_probing",), "subset": _MTEB, "full": _MTEB,
    LEAKAGE: ("pooling_leakage",), LAYERS: ("layer_similarity",), "offline": ("offline_suite",),
}  # fmt: skip
_COMMANDS: Mapping[str, str] = {
    WORDS: "make reproduce-words MODEL={}", "subset": "make reproduce-mteb SUITE=subset MODEL={}",
    "full": "make reproduce-mteb-full MODEL={}", LEAKAGE: "make reproduce-analyses MODEL={}",
    LAYERS: "make reproduce-analyses MODEL={}",
    "offline": "make reproduce-mteb RESULTS=results MODEL={}",
}  # fmt: skip
SMALL = "smollm2-135m"  # of the small experiments that are not the paper's
HUB, GPU, TIME = "needs weights from the hub", "a GPU", "time"
GPUS = 8  # of the paper's Table 6
LENGTH = ("steps", "batch_size")  # what a short training has less of
Place = tuple[str, str]  # variant, pooling


# --------------------------------------------------------------------------- what is missing
@dataclass(frozen=True)
class Gap:
    """A record that could be and is not."""

    part: str
    model: str
    place: Place
    task: str
    reason: str


def places(part: str, model: Model) -> list[Place]:
    """(variant, pooling) of every record that a task has in a part."""
    found = []
    for variant in paper_variants(part, model):
        pooled = part in SUITES and VARIANTS[variant].attention != "own"
        poolings = grid_poolings(part, variant) if pooled else (NONE,)
        found += [(variant, pooling) for pooling in poolings]
    return found


def tasks_of(part: str) -> tuple[str, ...]:
    return SUITES.get(part) or {WORDS: WORD_TASKS, LEAKAGE: ("triples",)}.get(part, ("wikipedia",))


def held(results: Results) -> Mapping[str, str]:
    """Status of each task's data in the mirror that the records were made from."""
    own = results.root / "mirror.csv"
    file = own if own.is_file() else results_dir() / "mirror.csv"
    try:
        with open(file, newline="", encoding="utf-8") as handle:
            return {row["task"]: row["status"] for row in csv.DictReader(handle)}
    except (OSError, KeyError) as error:
        raise RecordError(
            f"{file}: not the list of a mirror's data ({error}). Make it again by "
            "'python -m llm2vec.mirror_report'."
        ) from error


def gaps(results: Results) -> Iterator[Gap]:
    """Every record of the paper's grid that is not there, in the order of parts and models."""
    data = held(results)
    for part in PARTS:
        scores = results.of(*_EXPERIMENTS[part])
        axes = ("model", "variant", "pooling", "task")
        there = set(scores[list(axes)].itertuples(index=False, name=None))
        for model in MODELS.values():
            if not _asked(part, model):
                continue
            for place in places(part, model):
                for task in tasks_of(part):
                    if (model.name, *place, task) not in there:
                        yield Gap(part, model.name, place, task, _reason(part, model, task, data))


def _asked(part: str, model: Model) -> bool:
    """The 56 tasks of a model that the paper has; decoders without a recipe: layers alone."""
    if part == "full":
        return model.in_paper and (model.kind == "encoder" or model.mntp is not None)
    return part == LAYERS or model.kind == "encoder" or model.mntp is not None


def _reason(part: str, model: Model, task: str, data: Mapping[str, str]) -> str:
    if model.asset is None:
        return f"{HUB} and {GPU}" if model.parameters >= BIG else HUB
    name = "CoNLL-2003" if part == WORDS else task
    status = data.get(name, "exact")  # what is not listed comes with the package
    if status == "absent":
        return "data not in the mirror"
    return f"data only {mark_of(status)} in the mirror" if mark_of(status) else TIME


# --------------------------------------------------------------------------- in words
@dataclass(frozen=True)
class Line:
    """Gaps of one part that are described alike; ``models`` by name."""

    part: str
    models: tuple[str, ...]
    reason: str
    what: str
    gaps: tuple[Gap, ...]


def _lines(found: Sequence[Gap]) -> list[Line]:
    """Gaps by part and reason; models that lack the same share a line."""
    by_model: dict[tuple[str, str, str], list[Gap]] = {}
    for gap in found:
        by_model.setdefault((gap.part, gap.reason, gap.model), []).append(gap)
    merged: dict[tuple[str, str, str], list[Gap]] = {}
    for (part, reason, model), members in by_model.items():
        what = _what(part, MODELS[model], members)
        merged.setdefault((part, reason, what), []).extend(members)
    return [
        Line(part, tuple(dict.fromkeys(g.model for g in members)), reason, what, tuple(members))
        for (part, reason, what), members in merged.items()
    ]


def _what(part: str, model: Model, members: Sequence[Gap]) -> str:
    """As in ``Uni, Bi: SciFact, NFCorpus; Bi + MNTP (EOS): all 15 tasks``."""
    lacking: dict[str, set[Place]] = {}
    for gap in members:
        lacking.setdefault(gap.task, set()).add(gap.place)
    alike: dict[frozenset[Place], list[str]] = {}
    for task in tasks_of(part):
        if task in lacking:
            alike.setdefault(frozenset(lacking[task]), []).append(task)
    every = places(part, model)
    texts = []
    for pattern, tasks in alike.items():
        who = _who([place for place in every if place in pattern], every)
        total = tasks_of(part)
        what = f"all {len(total)} tasks" if len(tasks) == len(total) else _names(tasks)
        texts.append(who if len(total) == 1 else f"{who}: {what}")
    return "; ".join(texts)


def _names(tasks: Sequence[str]) -> str:
    return ", ".join(short_task(task) if task in TASKS else task for task in tasks)


def _who(lacking: Sequence[Place], every: Sequence[Place]) -> str:
    """Variants, with the poolings in brackets unless all of them are meant."""
    if len(lacking) == len(every):
        return "all variants"
    alike: dict[tuple[str, ...], list[str]] = {}
    for variant in dict.fromkeys(variant for variant, _ in lacking):
        poolings = tuple(p for v, p in lacking if v == variant)
        whole = tuple(p for v, p in every if v == variant)
        alike.setdefault(() if poolings == whole else poolings, []).append(variant)
    return ", ".join(
        ", ".join(VARIANTS[v].display for v in variants)
        + (f" ({', '.join(map(display_pooling, poolings))})" if poolings else "")
        for poolings, variants in alike.items()
    )


# --------------------------------------------------------------------------- the table
def not_run(results: Results) -> Table:
    """Every cell of the other tables that was not run, with the reason and the command."""
    lines, hours = _lines(list(gaps(results))), _Hours(results)
    rows, whole = [], {}
    for line in lines:
        if _whole(line) and line.reason != TIME:
            whole.setdefault((line.models, line.reason), []).append(line)
            continue
        reason = line.reason + (f": about {hours.of(line):.1f} h" if line.reason == TIME else "")
        rows.append([PARTS[line.part], _models(line.models), line.what, str(len(line.gaps)),
                     reason, _command(line.models, line.reason, _COMMANDS[line.part])])  # fmt: skip
    for (models, reason), alike in whole.items():
        alone = _COMMANDS[alike[0].part] if len(alike) == 1 else "make reproduce-all MODEL={}"
        rows.append([
            "; ".join(PARTS[line.part] for line in alike), _models(models), "everything",
            str(sum(len(line.gaps) for line in alike)), reason, _command(models, reason, alone),
        ])  # fmt: skip
    data = [(g.part, g.model, *g.place, g.task, line.reason) for line in lines for g in line.gaps]
    for row, absent in (*_small(results), *_trainings(results)):
        rows.append(row)
        data += absent
    parts = [row[0] for row in rows]
    shown = [[p, *row[1:]] for p, row in zip(once(parts), rows, strict=True)]
    return Table(
        "not_run", "What was not run, and why",
        ["Experiment", "Models", "Not run", "Records", "Why", "Command"],
        shown or [["nothing", *[NOT_RUN] * 5]], "llprpp", pd.DataFrame(data, columns=[
            "part", "model", "variant", "pooling", "task", "reason",
        ]), Origin.of(results.scores), f"{len(data)} records not run", breaks=block_breaks(parts),
        notes=("Data: what the mirror behind these records held (mirror.csv); where the hub "
               "answers, the same commands fetch it. Hours: at the speed of the records, which "
               "were often made beside other work.",),
    )  # fmt: skip


def _whole(line: Line) -> bool:
    """Whether nothing of the part was run with the models."""
    every = (len(places(line.part, MODELS[m])) * len(tasks_of(line.part)) for m in line.models)
    return len(line.gaps) == sum(every)


def _models(names: Sequence[str]) -> str:
    return ", ".join(map(display_model, names))


def _command(models: Sequence[str], reason: str, template: str) -> str:
    return template.format(",".join(models)) + (" PROFILE=gpu" if GPU in reason else "")


class _Hours:
    """Estimates of the time that missing records of small models take, as ``make doctor``."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.results.root)

    def of(self, line: Line) -> float:
        """Hours that the missing records of a line take."""
        seconds = 0.0
        for model in map(MODELS.__getitem__, line.models):
            members = [gap for gap in line.gaps if gap.model == model.name]
            for variant in dict.fromkeys(gap.place[0] for gap in members):
                mine = [gap for gap in members if gap.place[0] == variant]
                seconds += self._seconds(line.part, model, variant, mine)
        return seconds / 3600

    def _seconds(self, part: str, model: Model, variant: str, members: Sequence[Gap]) -> float:
        if part == WORDS:
            return self.costs.words(model, 2 * len(members)).seconds  # under both alignments
        if part in (LEAKAGE, LAYERS):
            passes = estimates.passes_of(VARIANTS[variant], 1)
            return self.costs.analysis(model, members[0].task, passes).seconds
        lacking: dict[str, list[str]] = {}
        for gap in members:
            lacking.setdefault(gap.task, []).append(gap.place[1])
        wanted = [(TASKS[task], poolings) for task, poolings in lacking.items()]
        return self.costs.measurements(model, VARIANTS[variant], wanted).seconds


def _small(results: Results) -> Iterator[tuple[list[str], list[tuple]]]:
    """Lines of this project's own small experiments, and their missing records."""
    scores = results.scores[results.scores["model"] == SMALL]
    settings = scores["setting"].astype(object).where(scores["setting"].notna(), None)
    there = set(zip(scores["experiment"], scores["variant"], scores["task"], settings,
                    strict=True))  # fmt: skip
    mini = {variant: [(variant, f"mini-{task}", None) for task in WORD_TASKS]
            for variant in paper_variants(WORDS, MODELS[SMALL])}  # fmt: skip
    wanted = {group: [(run.variant, m.task, run.name) for run in runs for m in run.measured]
              for group, runs in ABLATIONS.items()}  # fmt: skip
    pairs = [(PAIRS.task, left.setting) for left in (*PLAIN, *INSTRUCTED, *CONTROL)]
    sink = {v: [(v, *place) for place in (*pairs, *(("triples", x.setting) for x in PLAIN))]
            for v in VARIANTS_ASKED}  # fmt: skip
    for experiment, name, parts, command in (
        ("ablations", "Ablations", wanted, "python experiments/08_ablations.py --group GROUP"),
        ("attention_sink", "Attention sink", sink,
         f"python experiments/09_attention_sink.py --model {SMALL} --variant VARIANT"),
        ("word_probing", "Word-level demonstration", mini,
         f"python experiments/03_word_probing.py --model {SMALL} --variant VARIANT --data mini"),
    ):  # fmt: skip
        absent = {part: [place for place in places if (experiment, *place) not in there]
                  for part, places in parts.items()}  # fmt: skip
        counts = [f"{part} ({len(lacking)} of {len(parts[part])})"
                  for part, lacking in absent.items() if lacking]  # fmt: skip
        flat = [(experiment, SMALL, variant, NONE, f"{task}@{setting}" if setting else task, TIME)
                for lacking in absent.values() for variant, task, setting in lacking]  # fmt: skip
        if flat:
            said = [name, display_model(SMALL), ", ".join(counts), str(len(flat)), TIME, command]
            yield said, flat


def _trainings(results: Results) -> Iterator[tuple[list[str], list[tuple]]]:
    """Lines of adapters that saw fewer steps or smaller batches than the paper's."""
    alike: dict[tuple[str, str, tuple[tuple[str, float], ...]], list[str]] = {}
    for (model, stage), note in adapter_notes(results.root):
        apart = departures(note)
        if any(name in LENGTH and here < theirs for name, (theirs, here) in apart.items()):
            how = "01_train_mntp.py" if stage == "mntp" else "02_train_simcse.py"
            published = tuple((name, theirs) for name, (theirs, _) in apart.items())
            alike.setdefault((model, how, published), []).append(variant_of(stage))
    for (model, how, lacking), variants in alike.items():
        size = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in lacking)
        options = (f" --{name.replace('_', '-')} {value}" for name, value in lacking)
        variant = " --variant VARIANT" if how.startswith("02") else ""
        command = f"python experiments/{how} --model {model}{variant}"
        yield (
            ["Training at full length", display_model(model), f"{', '.join(variants)}: {size}",
             str(len(variants)), GPU, command + "".join(options)],
            [("training", model, variant, NONE, size, GPU) for variant in variants],
        )  # fmt: skip


# --------------------------------------------------------------------------- larger models
def plan(results: Results) -> Table:
    """Tokens and hours of the 56 tasks for the paper's models, beside the paper's own hours."""
    printed_hours = printed(6, results.paper)
    llm2vec = printed_hours[printed_hours["method"] == "llm2vec"].set_index("model")["hours"]
    data = []
    for model in MODELS.values():
        if not (model.in_paper and model.mntp):
            continue
        variant = VARIANTS["bi-mntp-simcse"]
        pooling = (full_pooling(variant.name),)
        counts = [estimates.tokens_of(TASKS[t], model, variant, pooling, results.records).count
                  for t in SUITES["full"]]  # fmt: skip
        speed = estimates.speeds(model, results.records)["cuda"]
        tokens = sum(filter(None, counts))
        hours = llm2vec.get(model.name)
        data.append((model.name, tokens, speed.tokens_per_second, speed.basis,
                     tokens / speed.tokens_per_second / 3600,
                     None if hours is None else GPUS * hours))  # fmt: skip
    frame = pd.DataFrame(data, columns=[
        "model", "tokens", "tokens_per_second", "basis", "hours", "paper_gpu_hours",
    ])  # fmt: skip
    rows = [
        [display_model(r.model), f"{r.tokens / 1e9:.2f}", f"{r.tokens_per_second:,.0f}",
         f"{r.hours:,.0f}",
         NOT_RUN if pd.isna(r.paper_gpu_hours) else f"{r.paper_gpu_hours:,.0f}",
         number(r.paper_gpu_hours / r.hours, digits=1) or NOT_RUN]
        for r in frame.itertuples()
    ]  # fmt: skip
    return Table(
        "plan", "The 56 tasks of one variant and pooling, planned",
        ["Model", "Tokens, billion", "Tokens/s on one GPU", "GPU hours", "Paper's GPU hours",
         "Paper / estimate"],
        rows, "lrrrrr", frame, Origin.of(results.scores), f"{len(SUITES['full'])} of 56",
        notes=(f"Estimates, not measurements, as 'make doctor' makes them; speed: "
               f"{', '.join(dict.fromkeys(frame['basis']))}. Paper: the hours of Table 6 times "
               f"{GPUS} A100 GPUs, padding and all; it prints none for LLaMA-3.",),
    )  # fmt: skip

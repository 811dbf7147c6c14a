"""The reproduction as a grid: which records are missing, and the jobs that make them.

    python experiments/grid.py all --model smollm2-135m --dry-run

A job is one command: a training stage, or all missing records of one (experiment, model, variant),
since loading a 7B model for each of 56 tasks is waste; but task by task where a scheduler would not
give the suite the time that it may need. What is done is decided by the record, as
the experiments themselves decide: its hyperparameter and adapter hashes, never a file's time. With
the adapter not at hand (a fresh clone of a 7B model's results) nothing contradicts a record, and it
stands; where a record is missing, its adapters are trained first, and every record that depends on
a new adapter is measured again. Imports no torch: a dry run takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm2vec import adapters as places
from llm2vec import evaluation, layers, leakage, representations, word_evaluation
from llm2vec.costs import BIG, Cost, Costs, resources_of
from llm2vec.errors import AdapterError, SettingError, UnknownNameError
from llm2vec.estimates import host_bytes, passes_of
from llm2vec.jobs import Job
from llm2vec.paths import checkpoints_dir, results_dir
from llm2vec.registry import (
    ADAPTER_SOURCES,
    MODELS,
    VARIANTS,
    Model,
    Task,
    Variant,
    get_model,
    get_pooling,
    get_suite,
    get_variant,
    variants_of,
)
from llm2vec.registry_grid import LAYERS, LEAKAGE, WORDS, grid_poolings, paper_variants

ALL = "all"
# Goals of the command line: parts of the grid, of which the names of suites are some.
GOALS: dict[str, tuple[str, ...]] = {
    "offline": ("offline",),
    "words": (WORDS,),
    "mteb": ("subset",),
    "analyses": (LEAKAGE, LAYERS),
    ALL: ("offline", WORDS, LEAKAGE, LAYERS, "subset", "full"),
}
BASELINE = "minilm-l6"  # stands beside every offline suite


@dataclass(frozen=True)
class Selection:
    """What a user asks for. ``models``: names, or ``all``; ``train=False``: only what needs none.

    ``gpus``: that a large model's suite is spread over. Raises a
    :class:`~llm2vec.errors.LLM2VecError` for a name that the registry does not know.
    """

    parts: tuple[str, ...]
    models: tuple[str, ...] = ("smollm2-135m",)
    variant: str | None = None
    pooling: str | None = None
    adapters: str = "own"
    results: Path = field(default_factory=results_dir)
    train: bool = True
    gpus: int = 1

    def __post_init__(self) -> None:
        for name in self.models:
            if name != ALL:
                get_model(name)
        if self.variant is not None:
            get_variant(self.variant)
        if self.pooling is not None:
            get_pooling(self.pooling)
        if self.adapters not in ADAPTER_SOURCES:
            raise UnknownNameError("source of adapters", self.adapters, ADAPTER_SOURCES)
        if self.gpus < 1:
            raise SettingError(f"{self.gpus} GPUs for a job? It must be 1 or more.")
        for part in self.parts:
            if part not in (WORDS, LEAKAGE, LAYERS):
                get_suite(part)


def parts_of(goal: str, suite: str | None = None) -> tuple[str, ...]:
    """Parts of the grid behind a goal; ``suite`` replaces the 15 tasks of the goal ``mteb``."""
    if goal not in GOALS:
        raise UnknownNameError("goal", goal, GOALS)
    if suite is None:
        return GOALS[goal]
    get_suite(suite)
    if goal != "mteb":
        raise SettingError(f"the goal {goal} has suites of its own; leave --suite out.")
    return (suite,)


# --------------------------------------------------------------------------- cells
@dataclass(frozen=True)
class Cell:
    """One (part, model, variant) of the grid, before it is known what is missing.

    ``task``: of a suite that is run task by task.
    """

    part: str
    model: Model
    variant: Variant
    selection: Selection
    task: str | None = None

    @property
    def name(self) -> str:
        name = f"{self.part}.{self.model.name}.{self.variant.name}"
        return f"{name}.{self.task}" if self.task else name

    @property
    def is_suite(self) -> bool:
        return self.part not in (WORDS, LEAKAGE, LAYERS)

    @property
    def gpus(self) -> int:
        """GPUs that the command can use, if the model needs any."""
        return self.selection.gpus if self.is_suite and self.model.parameters >= BIG else 1

    @property
    def stages(self) -> tuple[str, ...]:
        """Own training stages whose adapters the cell loads."""
        if self.selection.adapters != "own" or self.part == LAYERS:
            return ()
        if self.part == WORDS:
            return word_evaluation.own_stages(self._words)
        return places.stages_of(self.variant)

    @property
    def untrained(self) -> tuple[str, ...]:
        """Stages of these whose adapter is not at hand."""
        return tuple(stage for stage in self.stages if not _at_hand(self.model, stage))

    def hashes(self) -> tuple[str, ...] | None:
        """What records should say of the adapters; None where these are not at hand."""
        if self.part == LAYERS:
            return ()
        if self.selection.adapters == "own":
            if self.untrained:
                return None
            folders = [places.adapter_folder(self.model, stage) for stage in self.stages]
        else:
            try:
                folders = places.published_adapters(self.model, self.variant, local_only=True)
            except AdapterError:
                return None
        return tuple(map(places.adapter_hash, folders))

    # ----------------------------------------------------------------- as the experiments have it
    @property
    def _words(self) -> word_evaluation.Run:
        return word_evaluation.plan(
            self.model.name, self.variant.name, adapters=self.selection.adapters
        )

    @property
    def _suite(self) -> evaluation.Run:
        own = self.variant.attention == "own"
        pooling = None if own else self.selection.pooling
        shown = () if own else grid_poolings(self.part, self.variant.name)
        if len(shown) == 1:
            pooling = pooling or shown[0]
        return evaluation.plan(
            self.model.name, self.variant.name, self.part, self.selection.results,
            task=self.task, pooling=pooling, adapters=self.selection.adapters,
        )  # fmt: skip

    def _analysis(self) -> tuple[Path, bool]:
        """The record of an analysis, and whether it is there."""
        root = self.selection.results
        if self.part == LAYERS:
            texts = layers.Paragraphs((), layers.WIKIPEDIA)
            key, settings = layers.key_of(self.model, texts), layers.settings_of(self.model, texts)
            suffix = layers.SUFFIX
        else:
            triples = leakage.load_triples()
            whose = self.selection.adapters
            key = leakage.key_of(self.model, self.variant, triples, whose=whose)
            settings = leakage.settings_of(self.model, self.variant, triples)
            suffix = leakage.SUFFIX
        done = representations.is_complete(key, root, suffix, settings, self.hashes())
        return key.path(root), done

    def records(self) -> tuple[list[Path], list[Path]]:
        """Files of all records of the cell, and of those that are missing or out of date."""
        if self.part in (LEAKAGE, LAYERS):
            path, done = self._analysis()
            return [path], [] if done else [path]
        root = self.selection.results
        if self.part == WORDS:
            run = self._words
            every = word_evaluation.measurements(run)
            absent = word_evaluation.absent(run, root, self.hashes())
            return (
                [run.key(*m).path(root) for m in every],
                [run.key(*m).path(root) for m in absent],
            )
        suite = self._suite
        pairs = [(task, p) for task in suite.tasks for p in suite.poolings]
        absent_pairs = [(t, p) for t, ps in evaluation.absent(suite, self.hashes()) for p in ps]
        return (
            [suite.key(*pair).path(root) for pair in pairs],
            [suite.key(*pair).path(root) for pair in absent_pairs],
        )

    def command(self) -> tuple[str, ...]:
        """Arguments of the interpreter; one option, one argument."""
        script = {
            WORDS: "03_word_probing", "full": "05_mteb_full", LEAKAGE: "06_pooling_leakage",
            LAYERS: "07_layer_similarity",
        }.get(self.part, "04_mteb_subset")  # fmt: skip
        options = [f"--model={self.model.name}"]
        if self.part != LAYERS:
            options += [f"--variant={self.variant.name}"]
            options += ["--adapters=published"] if self.selection.adapters == "published" else []
        if self.is_suite:
            suite = self._suite
            options += [f"--suite={self.part}"] if self.part != "full" else []
            options += [f"--pooling={suite.poolings[0]}"] if self._one_pooling(suite) else []
            options += ["--skip-missing-data"] if self.part != "offline" else []
            options += [f"--task={self.task}"] if self.task else []
            options += ["--device=cuda:all"] if self.gpus > 1 else []
        return (f"experiments/{script}.py", *options, f"--results={self.selection.results}")

    def _one_pooling(self, suite: evaluation.Run) -> bool:
        return self.selection.pooling is not None and self.variant.attention != "own"

    def cost(self, costs: Costs, missing: Sequence[Path]) -> Cost:
        """Estimate for the missing records."""
        if self.part == WORDS:
            return costs.words(self.model, len(missing))
        if self.part == LAYERS:
            return costs.analysis(self.model, layers.TASK)
        if self.part == LEAKAGE:
            return costs.analysis(self.model, leakage.TASK, passes_of(self.variant, 1))
        return costs.tasks(self.model, self.variant, self.tasks(missing), self._suite.poolings)

    def tasks(self, missing: Sequence[Path]) -> list[Task]:
        """Tasks of a suite that have records among those missing."""
        names = {_task_of(path) for path in missing}
        return [task for task in self._suite.tasks if task.name in names]


def _task_of(record: Path) -> str:
    return record.stem.partition("@")[0]


def _at_hand(model: Model, stage: str) -> bool:
    try:
        places.adapter_folder(model, stage)
    except AdapterError:
        return False
    return True


def cells(selection: Selection) -> list[Cell]:
    """Cells that a selection asks for, in the order in which they are best run.

    Raises :class:`SettingError` where a variant was named that no chosen model has.
    """
    names = list(MODELS) if ALL in selection.models else list(dict.fromkeys(selection.models))
    found = [
        Cell(part, MODELS[name], variant, selection)
        for name in names
        for part in selection.parts
        for variant in _variants(selection, part, MODELS[name])
    ]
    if "offline" in selection.parts and BASELINE not in names and selection.variant is None:
        found.insert(0, Cell("offline", MODELS[BASELINE], VARIANTS["encoder"], selection))
    if not found:
        valid = dict.fromkeys(v for n in names for v in variants_of(MODELS[n]))
        raise SettingError(
            f"nothing to do for variant {selection.variant!r} and adapters {selection.adapters!r} "
            f"of {', '.join(names)}. Valid variants: {', '.join(valid)}."
        )
    return found


def _variants(selection: Selection, part: str, model: Model) -> Iterator[Variant]:
    if part == LAYERS:  # of untrained weights: no variant chooses them
        if model.kind == "decoder" and selection.variant in (None, "bi"):
            yield VARIANTS["bi"]
        return
    if model.kind == "decoder" and model.mntp is None and ALL in selection.models:
        return  # in the registry for layer similarity alone
    if part == "full" and len(selection.parts) > 1 and not model.in_paper:
        return  # months for no printed number: only when asked for by name
    wanted = (selection.variant,) if selection.variant else paper_variants(part, model)
    for name in variants_of(model):
        variant = VARIANTS[name]
        if name not in wanted or (part == WORDS and variant.echo):
            continue
        if selection.adapters == "own":
            trainable = all(_settings(model, stage) for stage in places.stages_of(variant))
        else:
            trainable = places.is_published(model, variant)
        if trainable or selection.variant:
            yield variant


def _settings(model: Model, stage: str) -> object:
    """Registry's hyperparameters of a stage, None where the registry has none."""
    return {"mntp": model.mntp, places.WORDS_STAGE: model.mntp_words}.get(stage, model.simcse)


# --------------------------------------------------------------------------- jobs
def expand(selection: Selection, gpu: bool = False, longest: int | None = None) -> list[Job]:
    """Jobs that make what is missing, training stages before what needs them.

    ``gpu``: estimate large models on a GPU. ``longest``: minutes that a scheduler gives a job.
    Raises :class:`~llm2vec.errors.RecordError` for a damaged record, and
    :class:`~llm2vec.errors.AdapterError` where ``train=False`` and the variant that was named has
    no adapter.
    """
    costs = Costs(results_dir(), gpu)
    found = [(cell, *cell.records()) for cell in cells(selection)]
    if not selection.train:
        for cell, _, missing in found:
            if missing and cell.untrained and selection.variant:
                places.adapter_folder(cell.model, cell.untrained[0])  # raises, naming the command
        found = [entry for entry in found if not entry[0].untrained]
    stages = {(c.model.name, s) for c, _, missing in found if missing for s in c.untrained}
    jobs = [
        _training(MODELS[model], stage, costs, stages, longest) for model, stage in sorted(stages)
    ]
    for cell, every, missing in found:
        to_train = [stage for stage in cell.untrained if (cell.model.name, stage) in stages]
        todo = every if to_train else missing  # a new adapter makes other records
        needs = tuple(_training_name(cell.model, stage) for stage in to_train)
        for piece, total, files in _pieces(cell, every, todo, costs, longest):
            jobs.append(_measuring(piece, total, files, needs, costs, longest))
    return jobs


def _pieces(
    cell: Cell, every: Sequence[Path], todo: Sequence[Path], costs: Costs, longest: int | None
) -> Iterator[tuple[Cell, int, tuple[Path, ...]]]:
    """(cell, number of its records, those to make): one, or one a task of a suite too long."""
    if not todo:
        return
    whole = longest is None or not cell.is_suite
    if whole or resources_of(cell.model, cell.cost(costs, todo)).minutes <= longest:
        yield cell, len(every), tuple(todo)
        return
    for task in dict.fromkeys(map(_task_of, todo)):
        total = sum(_task_of(path) == task for path in every)
        yield replace(cell, task=task), total, tuple(p for p in todo if _task_of(p) == task)


def _measuring(
    cell: Cell,
    total: int,
    todo: tuple[Path, ...],
    needs: tuple[str, ...],
    costs: Costs,
    longest: int | None,
) -> Job:
    cost = cell.cost(costs, todo)
    tasks = cell.tasks(todo) if cell.is_suite else ()
    host = host_bytes(cell.model, cell.model.dtype, tasks) if tasks else 0.0
    resources = resources_of(cell.model, cost, host=host, gpus=cell.gpus, longest=longest)
    return Job(cell.name, cell.command(), todo, total, cost, resources, needs)


def _training_name(model: Model, stage: str) -> str:
    return f"train.{model.name}.{stage}"


def _training(
    model: Model, stage: str, costs: Costs, stages: set[tuple[str, str]], longest: int | None
) -> Job:
    settings = _settings(model, stage)
    if settings is None:
        raise SettingError(f"the registry has no settings to train {stage} of {model.name}.")
    before = stage == "mntp-simcse" and (model.name, "mntp") in stages
    cost = costs.training(model, settings)
    return Job(
        name=_training_name(model, stage),
        command=places.training_command(model, stage),
        products=(checkpoints_dir() / model.name / stage / places.ADAPTER_WEIGHTS,),
        total=1,
        needs=(_training_name(model, "mntp"),) if before else (),
        cost=cost,
        resources=resources_of(model, cost, training=True, longest=longest),
    )

"""What a family provides and what the engine gives back: the only types both sides know.

A family is one folder ``sensorium/families/<name>/`` whose ``__init__.py`` holds ``FAMILY = Family(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from sensorium.engine.ahead import Ahead as Ahead
from sensorium.engine.ahead import Demand as Demand
from sensorium.engine.ahead import Finding as Finding

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sensorium.config import Section
    from sensorium.engine.settings import RunConfig

Batch = dict[str, Tensor]
"""One micro-batch. Always holds ``"index"`` ``[B]`` int64: the sample numbers within the source."""

Example = Mapping[str, Any]
"""One sample before collation; plain arrays and numbers."""


@dataclass(frozen=True)
class Output:
    """What ``task(batch)`` returns.

    ``loss``: scalar mean over ``weight`` items, with gradient. ``logs``: detached scalars, averaged over the step.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]
    weight: float


@dataclass(frozen=True)
class Mix:
    """Samples of several kinds (pairs of modalities, data sets) that shall not meet in one step.

    ``kinds``: ``[N]`` int64 kind of each sample, from 0 without gaps. ``weights``: how often each kind has its turn, in
    any unit; None: in proportion to its samples, so that an epoch visits each sample about once.
    """

    kinds: np.ndarray
    weights: tuple[float, ...] | None = None


class Source(Protocol):
    """One split of one data set, made ready for one family.

    ``groups``: ``[N]`` int64 group number of each sample, or None. Within one round of an epoch a group occurs at
    most once (order.py), so that positives of each other do not crowd one batch. ``mix``: where a training step shall
    hold one kind of sample only.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def groups(self) -> np.ndarray | None: ...
    @property
    def mix(self) -> Mix | None: ...
    def __len__(self) -> int: ...

    def example(self, index: int, seed: int) -> Example:
        """Sample ``index``; all randomness comes from ``seed``. Raises DataError naming file and reason."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack examples; the engine adds ``"index"``."""


@dataclass(frozen=True)
class Sources:
    """The splits of a run. ``test`` and ``val`` may be None; an empty split is a DataError.

    ``stages``: by name, what a stage trains on instead of ``train``. Epochs are those of ``train`` throughout.
    ``shared``: whatever of the data the family wants to have at hand when a stage begins.
    """

    train: Source
    val: Source | None = None
    test: Source | None = None
    stages: Mapping[str, Source] = field(default_factory=dict)
    shared: Any = None


def _nothing(*_: object) -> None:
    """Default of a ``Host``: alone and silent."""


@contextmanager
def _no_progress(description: str, total: int) -> Iterator[Callable[[int, int], None]]:
    del description, total
    yield _nothing


@dataclass(frozen=True)
class Host:
    """What the engine lends a family while it prepares its data.

    ``device`` is where to encode; processes of one run share the work by ``rank`` of ``world`` and meet at
    ``barrier``. ``say`` prints a line; ``progress(description, total)`` shows a bar moved by ``advance(done, total)``.
    """

    device: str = "cpu"
    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = _nothing
    say: Callable[[str], None] = _nothing
    progress: Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]] = _no_progress


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with its own set of trainable parameters.

    ``share``: part of all steps, shares of a run sum to 1. ``trainable``: fnmatch patterns over parameter names.
    ``lr_scale`` multiplies every learning rate; ``lr_scales`` besides those of the parameters that a pattern matches,
    the first that does. Each stage has its own warm-up, decay and best checkpoint: losses of different stages cannot be
    compared.
    """

    name: str
    share: float = 1.0
    trainable: tuple[str, ...] = ("*",)
    lr_scale: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Begin:
    """What a family is told when a stage begins, when a run is resumed within it, or when a checkpoint of it is opened.

    ``shared``: as in ``Sources``; None where a checkpoint is opened to be used, and there is nothing to prepare but the
    task. ``weights()``: those of the task when the stage began, by name, on the CPU; of an opened checkpoint its own.
    """

    stage: Stage
    config: RunConfig
    shared: Any
    host: Host
    weights: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Table:
    """A table of results as the console, the report and ``evaluation/*.json`` show it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """One thing to look at: text, a picture file, a sound file or a video file, or several of them together. Paths are
    absolute, or relative to the run folder; ``image`` may be a name of ``Evaluation.pictures``."""

    caption: str
    image: str | None = None
    audio: str | None = None
    right: bool | None = None  # None: nothing to be right about (a query)
    score: float | None = None
    video: str | None = None


@dataclass(frozen=True)
class Card:
    """One query and what it found, best first."""

    query: Shown
    found: tuple[Shown, ...]


@dataclass(frozen=True)
class Gallery:
    """``large``: pictures are what it is about, and stand as wide as the page."""

    title: str
    cards: tuple[Card, ...]
    note: str = ""
    large: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation. ``metrics`` are flat numbers (``"image-text/i2t_R@1": 41.2``).

    ``details``: by name, JSON values that are stored beside the result and not shown. ``pictures``: by file name, what
    an evaluation has drawn, as bytes of a PNG or the like; they are stored there, too, for galleries to show.
    """

    metrics: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


class Evaluator(Protocol):
    """Two halves of an evaluation: what the model says of each sample, and the judgement over all of them."""

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        """Per-sample results, first axis = rows of the batch. Runs without gradient, in eval mode."""

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        """``collected`` is sorted by sample number without duplicates, on the CPU. ``task``, without gradient and in
        eval mode, is for what cannot be said sample by sample. ``final``: after training, when tables and galleries
        may take their time; otherwise only ``metrics`` are needed."""


@dataclass(frozen=True)
class Hit:
    """One answer of a search, best first. ``image``, ``audio`` and ``video`` are files; ``segment``: from where to
    where in the video, seconds."""

    score: float
    id: str
    text: str | None = None
    image: str | None = None
    audio: str | None = None
    video: str | None = None
    segment: tuple[float, float] | None = None


class Searcher(Protocol):
    """What ``Family.use`` gives for families that find things; other families give what suits them."""

    def search(self, query: Mapping[str, str], among: str | None = None, k: int = 5, rerank: int = 0) -> list[Hit]:
        """``query``: text, or a path of a picture, recording or video, by modality; several make one joint query.

        ``rerank``: so many of the best are ordered anew by a closer look; ConfigError where there is none.
        """


@runtime_checkable
class FolderSearcher(Searcher, Protocol):
    """A searcher that can also look among files that no run knows."""

    def within(self, folder: Path) -> Searcher:
        """The same model over the files of a folder."""


@dataclass(frozen=True)
class Looked:
    """A file to be asked about; a time or FROM/TO, west, south, east and north, a table of its variables, if given."""

    path: Path
    time: str | None = None
    box: tuple[float, float, float, float] | None = None
    variables: str | None = None


@dataclass(frozen=True)
class Answered:
    """``without``: what is answered to the question alone; ``picture``: a PNG of the field; ``notes``: assumptions."""

    text: str
    without: str | None = None
    picture: bytes | None = None
    notes: tuple[str, ...] = ()


@runtime_checkable
class Answerer(Protocol):
    """What ``Family.use`` makes of a trained run that answers questions: all the command line needs of it."""

    def answer_file(
        self, question: str, looked: Looked, said: Callable[[str], None], *, compare: bool, picture: bool
    ) -> Answered:
        """Answer a question about a file. ``said`` is given the pieces of the text as they come."""


@runtime_checkable
class Illustrator(Protocol):
    """What ``Family.use`` makes of a trained run that draws pictures: all the command line needs of it.

    ``how``: the family's settings of drawing, those that were given. Lines about what was done are said to ``host``.
    """

    def draw_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """Pictures for every sample of a file of tastes, into ``out``; goes on where it was interrupted."""

    def draw_user(self, user: str, target: str, out: Path, how: Mapping[str, Any], host: Host) -> None:
        """Pictures of ``target`` for a user of the run's data, into ``out``."""


@runtime_checkable
class Comparer(Protocol):
    """What ``Family.use`` makes of a trained run whose pictures can be judged: all the command line needs of it."""

    def compare_file(self, data: Path, out: Path, how: Mapping[str, Any], host: Host) -> Evaluation:
        """Make what is missing in ``out`` for every sample of a file of tastes, by the run and by other ways, and judge
        it; ``how``: the family's settings of that, those that were given."""


@dataclass(frozen=True)
class Loaded:
    """A trained run opened for use, on the CPU and in evaluation mode."""

    run: Path
    checkpoint: Path
    config: RunConfig
    facts: Mapping[str, Any]
    task: nn.Module
    digest: str  # of the weights


class Meter(Protocol):
    """Measures for ``Family.profile``, on ``device``, ``rows`` samples at a time."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rows(self) -> int: ...

    def seconds(self, action: Callable[[], object]) -> float:
        """Median time of one ``action``, after some that do not count."""

    def peak(self, action: Callable[[], object]) -> int | None:
        """Bytes in use at most while ``action`` is done, above those before the profile; None: the system does not
        tell."""


def default_group(name: str, parameter: nn.Parameter) -> str:
    """Matrices are decayed, vectors and scalars are not."""
    return "decay" if parameter.ndim >= 2 else "no_decay"


def one_stage(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a family that trains everything from the first step to the last."""
    return (Stage("train"),)


@dataclass(frozen=True)
class Family:
    """Everything the engine knows of a family.

    ``sources(config, host)`` reads the data, fills the feature cache and returns the splits.
    ``facts(config, sources)``: JSON values that the task needs from the data (encoder widths, means); stored with the
    run, so that a trained run opens without its data.
    ``task(config, facts)`` builds the one module of the run, whose ``forward(batch)`` returns ``Output``. The engine
    adds ``batch["step"]``, a scalar, in training.
    ``initial(task, config)``: pretrained weights for parameters that will be trained, given to a new run; not when the
    weights come from a checkpoint or a ``.pt`` file.
    ``begin_stage(task, begin)`` prepares the task for a stage, before its first step, whenever a run is resumed in it
    and when a checkpoint of it is opened; what it does must follow from ``begin`` alone.
    ``after_step(task, step)`` runs after each optimizer step.
    ``at_chance(values)``: the step's logged values are what guessing would give; hundreds of them in a row raise an
    alarm.
    ``pictures(task, source, config)``: what the model draws by now for some samples of the validation split, PNGs by
    file name; it draws nothing from generators that training uses.
    ``proof``: the metric of an evaluation that is 1 where the model surely uses what makes it more than its frozen
    parts, else 0; None: there is none.
    ``outlook(ahead)``: what ``sensorium check`` shall say of a run besides.
    ``demand(config, sources, rows, device)``: memory of a step of so many rows, foreseen without making its tensors.
    ``exports``: by format, what writes the trained model into a new folder and returns a line about it.
    ``profile(config, meter)``: what the family's models cost, side by side; None where it has no such comparison.
    ``whole_gradient``: every parameter that a stage trains has a gradient in each step, or ends a run of several ranks.
    ``accumulation``: "sum" if the mean over micro-batches is the right loss. "inside-task" if it is not (contrastive):
    the task then gets all rows of the step at once and divides them itself (``parts/chunks.py``).
    """

    name: str
    summary: str
    model: type[Section]
    data: type[Section]
    presets: Mapping[str, Mapping[str, Any]]
    sources: Callable[[RunConfig, Host], Sources]
    facts: Callable[[RunConfig, Sources], dict[str, Any]]
    task: Callable[[RunConfig, Mapping[str, Any]], nn.Module]
    evaluator: Callable[[RunConfig], Evaluator]
    stages: Callable[[RunConfig], tuple[Stage, ...]] = one_stage
    group: Callable[[str, nn.Parameter], str] = default_group
    accumulation: Literal["sum", "inside-task"] = "sum"
    whole_gradient: bool = False
    initial: Callable[[nn.Module, RunConfig], None] | None = None
    begin_stage: Callable[[nn.Module, Begin], None] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None
    at_chance: Callable[[Mapping[str, float]], bool] | None = None
    use: Callable[[Loaded], Any] | None = None
    proof: str | None = None
    profile: Callable[[RunConfig, Meter], Table] | None = None
    pictures: Callable[[nn.Module, Source, RunConfig], Mapping[str, bytes]] | None = None
    outlook: Callable[[Ahead], Sequence[Finding]] | None = None
    demand: Callable[[RunConfig, Sources, int, torch.device], Demand] | None = None
    exports: Mapping[str, Callable[[Loaded, Path], str]] = field(default_factory=dict)

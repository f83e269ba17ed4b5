"""The one runner every retraining goes through: deterministic for a seed, resumable, with nothing left lying around.

``train`` keeps two files in its folder: ``last.ckpt``, the whole state at the start of the epoch that runs (or after the
last one), from which an interrupted run goes on, and ``model.ckpt``, the result. Both are written aside and renamed.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from curation.errors import ModelError, TrainingError
from curation.models.checkpoints import read_checkpoint, unsafe_hyperparameters, write_checkpoint
from curation.models.evaluation import evaluate
from curation.models.seeding import seeded
from curation.training_callbacks import Progress, Recorder, WholeFiles

__all__ = ["TrainOptions", "TrainResult", "evaluate", "train"]

logger = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# What a resumed run needs and a trained model does not.
RUN_STATE = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "MixedPrecision")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        max_epochs: passes over the training split.
        seed: of the order of the rows and of everything else drawn at random during training.
        accelerator: ``"cpu"`` or ``"auto"`` (a GPU when there is one).
        devices: how many of them; more than one relaunches the program, so only in a process of its own.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; the weights are float32 in each.
        gradient_clip: largest norm of the whole gradient. None: not clipped.
        threads: CPU threads of torch while it trains. None: as they are. Weights are bit-identical for equal threads.
        progress: show a bar on a terminal, else log a line per epoch, at most one every two seconds.

    Raises:
        TrainingError: a value is out of its range; lists all that are.
    """

    max_epochs: int
    seed: int = 0
    accelerator: str = "cpu"
    devices: int = 1
    precision: str = "32-true"
    gradient_clip: float | None = None
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = []
        if self.max_epochs < 1:
            problems.append(f"max_epochs must be at least 1, got {self.max_epochs}")
        if self.seed < 0:
            problems.append(f"seed must not be negative, got {self.seed}")
        if self.accelerator not in ("cpu", "auto"):
            problems.append(f"accelerator must be cpu or auto, got {self.accelerator!r}")
        if self.devices < 1:
            problems.append(f"devices must be at least 1, got {self.devices}")
        if self.precision not in PRECISIONS:
            problems.append(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            problems.append(f"gradient_clip must be positive, got {self.gradient_clip}")
        if self.threads is not None and self.threads < 1:
            problems.append(f"threads must be at least 1, got {self.threads}")
        if problems:
            raise TrainingError("training options: " + "; ".join(problems))


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        checkpoint: ``model.ckpt``, for ``curation.models.load_model``.
        metrics: of the trained model: ``train_loss`` (mean over the steps of the last epoch) and, on the validation
            split, ``val_loss``, ``val_accuracy``, ``val_accuracy_low``, ``val_accuracy_high`` (95 %) and ``val_n``; of a language
            model ``val_exact`` (answers it gives token for token) in place of ``val_accuracy``.
        history: one dict an epoch: ``epoch`` (from 1), ``train_loss``, ``val_loss``, ``val_accuracy`` or ``val_exact``.
        seconds: spent training, over all the runs it took.
    """

    checkpoint: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


def train(
    model: LightningModule,
    data: LightningDataModule,
    options: TrainOptions,
    out_dir: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train ``model`` in place, or go on where an earlier call with the same arguments and folder stopped.

    The weights are bit-identical for equal model, data and options on a CPU, interrupted or not. Each epoch draws its
    random numbers, the order of the rows among them, from ``options.seed`` and its own number; generators of the
    data loader are reseeded so. The global random state is left as it was, the model in eval mode on the CPU.

    Args:
        model: logs what it likes; ``forward`` returns logits [B, K], of a language model [B, T, V], or an object with
            ``.logits``.
        data: ``train_dataloader`` and ``val_dataloader`` yield ``(inputs, int64 codes [B])``, or questions as
            ``curation.data.Questions`` does.
        options: how to train.
        out_dir: folder of this training alone; ``last.ckpt`` in it may be deleted once the result is safe.
        callbacks: called by Lightning beside those of the model; to watch the training, not to change it.

    Raises:
        TrainingError: the loss is not finite, the machine cannot do what the options ask, it ran out of memory, the
            folder cannot be written to or holds another training.
        ModelError: the model's hyper-parameters could not be read back from a checkpoint, or it does not make the logits
            that the data are for.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the epoch that was interrupted. Likewise after SIGTERM,
            which raises SystemExit with code 143.
    """
    unsafe = unsafe_hyperparameters(model.hparams)
    if unsafe:
        raise ModelError(
            f"{type(model).__name__}: a checkpoint could not be loaded with the hyper-parameters {', '.join(unsafe)}. "
            "Use plain numbers, strings, lists and dicts, or save_hyperparameters(ignore=[...])."
        )
    out_dir = Path(out_dir).absolute()
    last = out_dir / "last.ckpt"
    recorder = Recorder(last, options.seed, _identity(model, data, options))
    shown = [Progress(recorder)] if options.progress else []
    with _failures(), seeded(options.seed), _threads(options.threads), _quiet_lightning():
        resume = _prepare(last, recorder)
        trainer = Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,  # type: ignore[arg-type]
            max_epochs=options.max_epochs,
            gradient_clip_val=options.gradient_clip,
            callbacks=[recorder, *shown, *callbacks],
            plugins=[WholeFiles()],
            default_root_dir=out_dir,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        model.train()
        _fit(trainer, model, data, last if resume else None)
        if not recorder.history:
            raise TrainingError("there is nothing to train on: the training data loader has no batches")
        checkpoint = out_dir / "model.ckpt"
        if trainer.is_global_zero:
            content = read_checkpoint(last)
            write_checkpoint({name: content[name] for name in content if name not in RUN_STATE}, checkpoint)
        trainer.strategy.barrier()
        model.trainer = None  # a copy of the model should not copy trainer and data
        model.cpu().eval()
        kind = recorder.kind
        validation = kind.measure(model, data.val_dataloader())
    metrics = {"train_loss": recorder.history[-1]["train_loss"]}
    metrics |= {f"val_{name}": value for name, value in validation.items()}
    logger.info(
        "trained %s: %d epochs, %.1f s, validation %s %.4f on %d rows",
        type(model).__name__,
        len(recorder.history),
        recorder.seconds,
        kind.rate,
        validation[kind.rate],
        validation["n"],
    )
    return TrainResult(checkpoint, metrics, recorder.history, recorder.seconds)


def _fit(trainer: Trainer, model: LightningModule, data: LightningDataModule, checkpoint: Path | None) -> None:
    """Run Lightning's fit; Ctrl-C ends it with KeyboardInterrupt and SIGTERM with exit code 143, as other programs."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as stop:
        # Lightning's own exception has no exit code, and a stopped training would look like a finished one.
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:
        # Lightning turns Ctrl-C into sys.exit(1) and leaves the signal ignored.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if on_main_thread:
            signal.signal(signal.SIGINT, interrupt)


def _identity(model: LightningModule, data: LightningDataModule, options: TrainOptions) -> dict[str, str]:
    """What two runs must share for one to continue the other, as text that a message can show."""
    digest = getattr(data, "digest", None)
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "hyper-parameters": str(dict(model.hparams)),
        "data": str(digest()) if callable(digest) else type(data).__qualname__,
        "max_epochs": str(options.max_epochs),
        "seed": str(options.seed),
        "precision": options.precision,
        "gradient_clip": str(options.gradient_clip),
    }


def _prepare(last: Path, recorder: Recorder) -> bool:
    """Make the folder of ``last``; whether ``last`` is there to go on from. TrainingError when it is of another training."""
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write into {last.parent}: {error.strerror}. Choose another folder.") from error
    if not last.exists():
        return False
    advice = "Delete it to train from the start, or choose another folder."
    try:
        callbacks = read_checkpoint(last).get("callbacks", {})
    except ModelError as error:
        raise TrainingError(f"{error}. {advice}") from error
    found = callbacks.get(recorder.state_key, {}).get("identity", {})
    differing = [
        f"{what} was {found.get(what)!r}, is {value!r}"
        for what, value in recorder.identity.items()
        if found.get(what) != value
    ]
    if differing:
        raise TrainingError(f"{last} is the state of another training: {'; '.join(differing)}. {advice}")
    return True


@contextmanager
def _failures() -> Iterator[None]:
    """Say what to do about the failures that are a bug in nobody's code."""
    try:
        yield
    except MisconfigurationException as error:
        raise TrainingError(f"this machine or model cannot be trained as the options ask: {error}") from error
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the accelerator ran out of memory; lower batch_size, or use precision bf16-mixed"
        ) from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """No banners, tips or advice on data loaders from Lightning; its real warnings and everybody else's stay."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(max(each.level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            for text in ("does not have many workers", "treespec, LeafSpec"):
                warnings.filterwarnings("ignore", message=f".*{text}.*")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)

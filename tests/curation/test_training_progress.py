"""What a training tells while it runs: to the log, a terminal, and the callbacks of its caller."""

import io
import logging
import sys

from lightning import Callback

from curation.models import TabularClassifier
from curation.training import TrainOptions, train
from tests.curation.models.toy import blobs
from tests.curation.test_training import STEPS, Own, assert_same_weights, make


def test_callers_callbacks_watch_every_step_and_those_of_the_model_stay(tmp_path):
    def watch() -> Callback:
        class Watch(Callback):
            """A type of its own each time: Lightning lets a model's callback take the place of one of the same type."""

            steps: list[tuple[int, float]] = []

            def on_train_batch_end(self, trainer, *_):
                self.steps.append((trainer.global_step, trainer.estimated_stepping_batches))

        return Watch()

    mine, its_own = watch(), watch()
    model = make(Own)
    model.configure_callbacks = lambda: [its_own]
    train(model, blobs(), TrainOptions(2, progress=False), tmp_path / "watched", callbacks=[mine])
    assert mine.steps == its_own.steps == [(step + 1, 2 * STEPS) for step in range(2 * STEPS)]
    train(unwatched := make(Own), blobs(), TrainOptions(2, progress=False), tmp_path / "alone")
    assert_same_weights(model, unwatched)


def test_progress_without_a_terminal_is_a_line_now_and_then_and_lightning_is_silent(tmp_path, caplog, capfd, recwarn):
    level = logging.getLogger("lightning.pytorch").level
    with caplog.at_level(logging.INFO):
        train(make(TabularClassifier, (4,), 2), blobs(), TrainOptions(3), tmp_path / "a")
        shown = [record.getMessage() for record in caplog.records]
        caplog.clear()
        train(make(TabularClassifier, (4,), 2), blobs(), TrainOptions(3, progress=False), tmp_path / "b")
        silent = [record.getMessage() for record in caplog.records]
    assert shown[0].startswith("epoch 1/3: train loss ")
    assert len(shown) < 3  # three epochs take less than two seconds each
    assert shown[-1].startswith("trained TabularClassifier: 3 epochs")
    assert len(silent) == 1
    assert capfd.readouterr() == ("", "")
    assert not [str(warning.message) for warning in recwarn]
    assert logging.getLogger("lightning.pytorch").level == level


def test_progress_on_a_terminal_is_a_bar(tmp_path, monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with caplog.at_level(logging.INFO):
        train(make(Own), blobs(), TrainOptions(2), tmp_path)
    assert "epoch 2/2: train loss" in sys.stderr.getvalue()
    assert "100%" in sys.stderr.getvalue()
    assert not [record for record in caplog.records if record.getMessage().startswith("epoch")]

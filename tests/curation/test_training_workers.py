import subprocess
import sys
from pathlib import Path

import pytest

WORKERS = """
import sys
from tests.curation.test_training import *

whole, stopped, resumed = make(Own), make(interrupted(Own)), make(Own)
stopped.at = (1, 1)
train(whole, blobs(workers=1), TrainOptions(2), sys.argv[1] + "/whole")
try:
    train(stopped, blobs(workers=1), TrainOptions(2), sys.argv[1] + "/run")
except KeyboardInterrupt:
    train(resumed, blobs(workers=1), TrainOptions(2), sys.argv[1] + "/run")
assert_same_weights(resumed, whole)
print("the same")
"""


@pytest.mark.slow  # most of it starting processes
def test_loader_workers_do_not_change_what_a_resumed_run_sees(tmp_path):
    # In a process of its own: a forked worker fails in one in which a flow has run.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "the same\n", done.stderr

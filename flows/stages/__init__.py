"""The stages' bodies: plain functions of (arguments, folder, progress), run by `flows.stage` in a process of their own."""

from flows.stages import (
    appending,
    applying,
    comparing,
    deciding,
    estimating,
    indexing,
    prepare,
    querying,
    reporting,
    resolving,
    scoring,
    tracing,
    training,
    unlearning,
    verifying,
    weighing,
)

STAGES = {
    "load": prepare.load,
    "train": training.run,
    "index": indexing.run,
    "append": appending.run,
    "score": scoring.run,
    "decide": deciding.run,
    "apply": applying.run,
    "compare": comparing.run,
    "report": reporting.run,
    "query": querying.run,
    "estimate": estimating.run,
    "resolve": resolving.run,
    "weigh": weighing.run,
    "unlearn": unlearning.run,
    "verify": verifying.run,
    "trace": tracing.run,
}

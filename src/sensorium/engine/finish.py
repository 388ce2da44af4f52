"""What follows the last step: the evaluation, the summary and the report."""

from __future__ import annotations

import time

from sensorium.engine import checkpoint
from sensorium.engine import evaluate as evaluation
from sensorium.engine.contract import Evaluation
from sensorium.engine.report import write_report
from sensorium.engine.results import Result, write_result
from sensorium.engine.session import Run, Say, load_weights, summary
from sensorium.engine.signals import Signals
from sensorium.files import remove, write_json


def finish(run: Run, timings: dict[str, float], say: Say, stop: Signals) -> Evaluation | None:
    """Evaluate the best checkpoint on the test split, once, or where there is none on validation; write summary and
    report."""
    stop.enter("stopped after the last step; all is saved. {again} with the evaluation", waits=False)
    begun = time.monotonic()
    step = int(run.progress.best["step"]) if run.progress.best else run.progress.step
    run.backend.release()
    content = checkpoint.load(checkpoint.folder_of(run.folder, step), run.family.name)
    load_weights(run.task, run.parameters, content, run.folder)
    run.task.to(run.backend.device)
    result, split = None, "val" if run.sources.test is None else "test"
    source = run.sources.test or run.sources.val
    if source is not None and run.config.evaluate.test:
        judge = run.family.evaluator(run.config)
        result = evaluation.evaluate(run.task, source, judge, run.config, run.backend, final=True)
    timings["evaluate"] = time.monotonic() - begun
    stop.enter(f"stopped at once; all is evaluated. `sensorium report {run.folder}` writes the report", waits=True)
    if run.backend.is_main:
        if result is not None:
            name = checkpoint.folder_of(run.folder, step).name
            write_result(run.folder, Result(split, result, split, step, name))
        remove(run.folder / "report.html")  # of a shorter run: with the new summary and without a report it has no end
        write_json(run.folder / "summary.json", summary(run, timings))
        say(f"Report: {write_report(run.folder)}")
    run.backend.barrier()  # no process leaves while another still works
    return result

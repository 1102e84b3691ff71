from __future__ import annotations

import io

from rich.console import Console

from rayflow.cli.progress import PlainView, ProgressMeter, progress_line, progress_table


def description(
    rows_in=0, rows_out=0, *, state="RUNNING", attempt=1, backpressured=0.0, restarts=(), latest=None
):
    return {
        "job_id": "j-1",
        "state": state,
        "attempt": attempt,
        "restarts": list(restarts),
        "restarts_total": len(restarts),
        "operators": [{"uid": "source", "name": "read → filter", "parallelism": 2, "chained": []}],
        "subtasks": [
            {
                "operator": "source",
                "index": i,
                "rows_in": rows_in,
                "rows_out": rows_out,
                "busy": 0.5,
                "idle": 0.1,
            }
            | {"backpressured": backpressured * i}
            for i in range(2)
        ],
        "checkpoints": {"completed": latest or 0, "failed": 0, "latest": latest},
    }


def test_rates_are_rows_of_all_subtasks_since_the_last_look():
    meter = ProgressMeter()
    meter.observe(description(0, 0), 10.0)
    (operator,) = meter.observe(description(1000, 500), 12.0).operators
    assert (operator.rows_in, operator.rows_in_per_s, operator.rows_out_per_s) == (2000, 1000.0, 500.0)


def test_rates_are_taken_over_the_last_seconds_since_counters_move_in_steps():
    meter = ProgressMeter()
    for tick in range(51):  # every 0.2 s; the counters move once a second, by 1000 for each of 2 subtasks
        progress = meter.observe(description(tick // 5 * 1000), tick * 0.2)
        assert tick < 20 or 1400 < progress.operators[0].rows_in_per_s < 2600


def test_first_look_has_no_rate():
    (operator,) = ProgressMeter().observe(description(1000), 10.0).operators
    assert operator.rows_in_per_s == 0


def test_a_new_attempt_counts_from_zero_and_no_rate_is_negative():
    meter = ProgressMeter()
    meter.observe(description(1000), 1.0)
    meter.observe(description(0, attempt=2), 2.0)
    (operator,) = meter.observe(description(100, attempt=2), 3.0).operators
    assert operator.rows_in_per_s == 200


def test_ratios_are_those_of_the_worst_subtask():
    (operator,) = ProgressMeter().observe(description(backpressured=0.7), 0.0).operators
    assert (operator.busy, operator.backpressured) == (0.5, 0.7)


def test_line_names_rows_rates_checkpoints_and_where_the_pressure_is():
    meter = ProgressMeter()
    meter.observe(description(), 0.0)
    line = progress_line(meter.observe(description(1000, 10, backpressured=0.6, latest=3), 2.0))
    assert "2.0s RUNNING" in line
    assert "source in 2,000 (1,000/s) out 20 (10/s)" in line
    assert "checkpoints 3, latest 3" in line
    assert "back-pressure 60% at source" in line


def test_plain_view_writes_about_once_a_second_and_whenever_the_state_changes():
    meter, out = ProgressMeter(), io.StringIO()
    with PlainView(out) as view:
        for tick in range(11):  # every 0.2 s, for 2 s
            view.show(meter.observe(description(tick), tick * 0.2))
        view.show(meter.observe(description(11, state="FINISHED"), 2.1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4  # at 0, 1 and 2 s, and the end
    assert "FINISHED" in lines[-1]


def test_plain_view_tells_each_restart_once():
    restart = {"attempt": 2, "at": "…", "cause": "worker died", "restored_from": "/x/chk-4"}
    meter, out = ProgressMeter(), io.StringIO()
    with PlainView(out) as view:
        view.show(meter.observe(description(), 0.0))
        for now_s in (0.1, 0.2):
            view.show(meter.observe(description(attempt=2, restarts=[restart]), now_s))
    assert out.getvalue().count("attempt 2 from /x/chk-4, because: worker died") == 1


def test_table_has_a_line_per_chain():
    meter = ProgressMeter()
    table = progress_table(meter.observe(description(1000, 10, backpressured=0.6, latest=3), 0.0), "demo")
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    text = console.file.getvalue()
    assert "demo  RUNNING" in text
    assert "read → filter" in text
    assert "60%" in text


def test_a_warning_is_told_once_while_the_job_runs():
    out = io.StringIO()
    view, meter = PlainView(out), ProgressMeter()
    for second in range(3):
        warnings = ["skewed keys"] if second else []
        view.show(meter.observe({**description(), "warnings": warnings}, float(second)))
    assert out.getvalue().count("warning: skewed keys") == 1


def test_what_does_not_change_is_told_again_every_ten_seconds_only():
    meter, out = ProgressMeter(), io.StringIO()
    with PlainView(out) as view:
        for second in range(25):
            view.show(meter.observe(description(state="CREATED"), float(second)))
    assert len(out.getvalue().splitlines()) == 3  # at 0, 10 and 20 s


def test_a_narrow_table_shows_fewer_columns_but_whole_numbers():
    out = io.StringIO()
    console = Console(file=out, width=40)
    progress = ProgressMeter().observe(description(612_345), 0.0)
    console.print(progress_table(progress, "demo", console.width))
    assert "1,224,690" in out.getvalue()
    assert "back" not in out.getvalue()

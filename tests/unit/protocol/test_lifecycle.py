from __future__ import annotations

import pickle
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.lifecycle import (
    AttemptAbandoned,
    AttemptRunning,
    EnterState,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobGivenUp,
    JobLifecycle,
    JobState,
    JobStopped,
    SubtaskDeployed,
    SubtaskEvent,
    SubtaskFailed,
    SubtaskFinished,
    SubtaskLifecycle,
    SubtaskLost,
    SubtaskStarted,
    SubtaskState,
)


def test_job_runs_restarts_and_finishes():
    job = JobLifecycle()
    assert job.state is JobState.CREATED
    for event, state in (
        (AttemptRunning(), JobState.RUNNING),
        (AttemptAbandoned(), JobState.RESTARTING),
        (AttemptRunning(), JobState.RUNNING),
        (JobCompleted(), JobState.FINISHED),
    ):
        assert not job.ended
        assert job.handle(event) == (EnterState(state),)
    assert job.ended


def test_attempt_that_fails_while_restarting_changes_nothing():
    job = JobLifecycle()
    job.handle(AttemptAbandoned())
    assert job.handle(AttemptAbandoned()) == ()
    assert job.state is JobState.RESTARTING


@pytest.mark.parametrize("event", [JobCompleted(), JobStopped()])
def test_only_a_running_job_finishes_or_stops(event, refused):
    job = JobLifecycle()
    refused(job, event, "expected AttemptRunning")
    job.handle(AttemptAbandoned())
    refused(job, event, "in state RESTARTING")


@pytest.mark.parametrize("end", [JobCompleted(), JobCancelled(), JobGivenUp(), JobStopped()])
@pytest.mark.parametrize("event", [kind() for kind in get_args(JobEvent)])
def test_ended_job_never_changes_its_state(end, event, refused):
    job = JobLifecycle()
    job.handle(AttemptRunning())
    job.handle(end)
    refused(job, event, "nothing any more")


def test_subtask_that_was_lost_is_deployed_again():
    subtask = SubtaskLifecycle()
    for event in (SubtaskDeployed(), SubtaskStarted(), SubtaskLost()):
        subtask.handle(event)
    assert subtask.handle(SubtaskLost()) == ()
    assert subtask.handle(SubtaskDeployed()) == (EnterState(SubtaskState.DEPLOYING),)


def test_finished_subtask_can_still_fail():
    subtask = SubtaskLifecycle()
    for event in (SubtaskDeployed(), SubtaskStarted(), SubtaskFinished()):
        subtask.handle(event)
    assert subtask.handle(SubtaskFailed()) == (EnterState(SubtaskState.FAILED),)


@given(st.lists(st.sampled_from([kind() for kind in get_args(SubtaskEvent)]), max_size=20))
def test_subtask_does_nothing_after_failure_loss_or_cancellation_until_it_is_deployed_again(events):
    subtask = SubtaskLifecycle()
    for event in events:
        before, state = pickle.dumps(subtask), subtask.state
        try:
            subtask.handle(event)
        except ProtocolViolation:
            assert pickle.dumps(subtask) == before
        if state in (SubtaskState.FAILED, SubtaskState.LOST, SubtaskState.CANCELLED):
            assert subtask.state in (state, SubtaskState.DEPLOYING, SubtaskState.LOST)
        if subtask.state in (SubtaskState.RUNNING, SubtaskState.FINISHED) and subtask.state is not state:
            assert state in (SubtaskState.DEPLOYING, SubtaskState.RUNNING)


def test_states_are_their_names():
    assert [state.value for state in JobState] == [state.name for state in JobState]
    assert JobState("FAILED").ended

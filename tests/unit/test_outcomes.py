"""Outcomes of an upstream call, and the customer's answer to each."""

import itertools

import pytest

from metering.events import UNKNOWN
from proxy.errors import Kind
from proxy.outcomes import Failure, Outcome, Rule, worst

TABLE = {
    "content_policy": (400, False),
    "refused_connection": (502, True),
    "rate_limited": (502, True),
    "busy": (502, True),
    "circuit_open": (502, True),
    "overloaded": (502, False),
    "no_answer": (502, False),
    "rejected": (502, False),
    "not_authorised": (502, True),
    "retired": (404, False),
    "bad_reply": (502, False),
    "no_image": (502, False),
    "bad_image": (502, False),
    "fetch_failed": (502, False),
    "store_failed": (502, False),
    "deadline": (504, False),
    "fault": (500, False),
    "lost": (502, False),
    "cancelled": (409, False),
}
"""Reason code → status, and whether the SDKs may ask again. The codes stand in events for ever."""


def test_the_reason_codes_and_what_they_answer_are_as_published() -> None:
    """None is renamed, dropped or added without this table."""
    told = {}
    for outcome in Outcome:
        error = Failure(outcome).as_error()
        told[outcome.reason] = (error.kind.value.status, error.retry)
    assert told == TABLE


def test_of_which_outcomes_nobody_knows_what_became() -> None:
    """Such an order keeps its idempotency key; the books know them by their reasons, which stand in events."""
    unknown = {outcome for outcome in Outcome if outcome.reason in UNKNOWN}
    assert unknown == {Outcome.OVERLOADED, Outcome.NO_ANSWER, Outcome.DEADLINE, Outcome.FAULT, Outcome.LOST}
    assert len(unknown) == len(UNKNOWN)


def test_every_outcome_has_a_rule_of_its_own() -> None:
    """No two members are one and the same: equal rules would make an alias of the second."""
    rules: list[Rule] = [outcome.value for outcome in Outcome]
    assert all(rule.message for rule in rules)
    assert len(Outcome.__members__) == len(list(Outcome)) == len({outcome.reason for outcome in Outcome})


@pytest.mark.parametrize("outcome", Outcome)
def test_a_job_that_may_have_begun_is_never_retried(outcome: Outcome) -> None:
    """Whatever the upstream wishes: a second one would be bought."""
    error = Failure(outcome, "detail of ours", retry_after_s=2.0).as_error()
    assert not (outcome.value.accepted and error.retry)
    assert (error.retry_after_s is None) == outcome.value.accepted
    assert "detail" not in error.message


def test_a_long_wish_of_the_upstream_forbids_the_retry() -> None:
    """The SDKs would not honour it."""
    assert not Failure(Outcome.RATE_LIMITED, retry_after_s=61.0).as_error().retry


def test_a_retired_model_is_named_as_the_field_to_change() -> None:
    """`param` is `model` there, and nowhere else."""
    assert {outcome: Failure(outcome).as_error().param for outcome in Outcome if outcome is not Outcome.RETIRED} == (
        dict.fromkeys(outcome for outcome in Outcome if outcome is not Outcome.RETIRED)
    )
    assert Failure(Outcome.RETIRED).as_error().param == "model"


def test_the_worst_of_several_forbids_a_retry_if_any_of_them_does() -> None:
    """In any order; a refusal of the prompt is told before everything else."""
    for pair in itertools.product(Outcome, repeat=2):
        told = worst([Failure(outcome) for outcome in pair])
        assert told.outcome in pair
        assert told.outcome.value.accepted == any(outcome.value.accepted for outcome in pair)
        if Outcome.CONTENT_POLICY in pair:
            assert told.as_error().kind is Kind.CONTENT_POLICY


def test_the_log_sees_reason_and_detail() -> None:
    """The customer sees neither."""
    assert str(Failure(Outcome.OVERLOADED, "status 503")) == "overloaded status 503"
    assert str(Failure(Outcome.DEADLINE)) == "deadline"

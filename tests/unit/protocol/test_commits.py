from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayflow.protocol.commits import (
    CommitLedger,
    CommitPermit,
    CommitTransaction,
    PermitGranted,
    TransactionCommitted,
    TransactionPrepared,
    TransactionsRestored,
)


def permit(checkpoint_id, pending=None, attempt=1):
    return CommitPermit("job", attempt, checkpoint_id, pending)


def commits(*items):
    return tuple(CommitTransaction(permit(under, pending)) for under, pending in items)


def test_transaction_commits_when_its_checkpoint_completes():
    ledger = CommitLedger()
    assert ledger.handle(TransactionPrepared(1, "a")) == ()
    assert ledger.open == ((1, "a"),)
    assert ledger.handle(PermitGranted(permit(1))) == commits((1, "a"))
    ledger.handle(TransactionCommitted())
    assert ledger.open == ()


def test_what_is_handed_out_stays_open_until_it_is_committed(refused):
    # 1 prepared · 1 complete, its commit is slow · 2 prepared: its snapshot has both · 2 complete · 1 and 2 committed
    ledger = CommitLedger()
    ledger.handle(TransactionPrepared(1, "a"))
    ledger.handle(PermitGranted(permit(1)))
    ledger.handle(TransactionPrepared(2, "b"))
    assert (ledger.open, ledger.committing) == (((1, "a"), (2, "b")), 1)
    assert ledger.handle(PermitGranted(permit(2))) == commits((2, "b"))
    ledger.handle(TransactionCommitted())
    assert (ledger.open, ledger.committing) == (((2, "b"),), 1)
    ledger.handle(TransactionCommitted())
    assert (ledger.open, ledger.committing) == ((), 0)
    refused(ledger, TransactionCommitted(), "none was handed out")


def test_transaction_of_an_aborted_checkpoint_commits_with_the_next_complete_one_in_order():
    # 1 prepared · 1 aborted · 2 prepared · 3 prepared · 2 complete
    ledger = CommitLedger()
    for checkpoint_id, pending in ((1, "a"), (2, "b"), (3, "c")):
        ledger.handle(TransactionPrepared(checkpoint_id, pending))
    assert ledger.handle(PermitGranted(permit(2))) == commits((2, "a"), (2, "b"))
    assert ledger.open == ((1, "a"), (2, "b"), (3, "c"))
    ledger.handle(TransactionCommitted())
    ledger.handle(TransactionCommitted())
    assert ledger.open == ((3, "c"),)


def test_permit_told_twice_or_late_commits_nothing_again():
    ledger = CommitLedger()
    ledger.handle(TransactionPrepared(2, "a"))
    ledger.handle(PermitGranted(permit(2)))
    assert ledger.handle(PermitGranted(permit(2))) == ()
    assert ledger.handle(PermitGranted(permit(1))) == ()


def test_barrier_with_nothing_staged_leaves_nothing_open():
    ledger = CommitLedger()
    ledger.handle(TransactionPrepared(1, None))
    assert ledger.open == ()
    assert ledger.handle(PermitGranted(permit(1))) == ()


def test_restored_transactions_of_several_writers_commit_at_once_oldest_first():
    ledger = CommitLedger()
    items = ((3, "c"), (2, "a"), (3, "d"))
    assert ledger.handle(TransactionsRestored(items, permit(3, attempt=2))) == tuple(
        CommitTransaction(permit(3, pending, attempt=2)) for pending in ("a", "c", "d")
    )
    assert ledger.open == ((2, "a"), (3, "c"), (3, "d"))


def test_restore_comes_first_and_once(refused):
    ledger = CommitLedger()
    ledger.handle(TransactionsRestored((), permit(1)))
    refused(ledger, TransactionsRestored((), permit(1)), "invariant 6")


def test_restored_transaction_newer_than_the_restored_checkpoint_is_refused(refused):
    refused(CommitLedger(), TransactionsRestored(((2, "a"),), permit(1)), "invariant 6")


def test_checkpoint_numbers_must_grow(refused):
    ledger = CommitLedger()
    ledger.handle(TransactionPrepared(2, "a"))
    refused(ledger, TransactionPrepared(2, "b"), "invariant 4")
    ledger.handle(PermitGranted(permit(4)))
    refused(ledger, TransactionPrepared(4, "b"), "invariant 4")


def test_permit_of_another_attempt_is_refused(refused):
    ledger = CommitLedger()
    ledger.handle(PermitGranted(permit(1)))
    refused(ledger, PermitGranted(permit(2, attempt=2)), "invariant 5")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_every_transaction_commits_once_in_order_and_only_when_covered(steps):
    ledger, prepared, committed, next_id, covered = CommitLedger(), [], [], 1, 0
    for prepare, back in steps:
        if prepare:
            ledger.handle(TransactionPrepared(next_id, f"t{next_id}"))
            prepared.append(next_id)
            next_id += 1
        else:
            granted = max(0, next_id - 1 - back)
            covered = max(covered, granted)
            for command in ledger.handle(PermitGranted(permit(granted))):
                committed.append(int(command.permit.pending[1:]))
                assert committed[-1] <= command.permit.checkpoint_id
                ledger.handle(TransactionCommitted())
        assert committed == [c for c in prepared if c <= covered]
        assert [c for c, _ in ledger.open] == [c for c in prepared if c > covered]

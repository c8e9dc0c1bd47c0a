"""The ledger, shared by web, worker and command line. Code outside imports a package, never a file in it.

tables    event: one row an event, its state, claim, lease and due time; this row is also the outbox
          duplicate, conflict, attempt, action: what came again, what was tried, what people did
          call, send, call_value: the outbound journal: key and exact request, each time it went out, values
          replay, replay_step: bulk operations; idempotency_key: the keys of our own API
          counter, rejection_sample, alert, worker: what was counted, refused, sent to people, and who lives

intake    record: one INSERT decides which deliveries are first-seen; Recorder: group commit
queue     claim, renew, settle, expire: a lease with a fencing token; sweep: nudge, reopen, prune
calls     plan: commit a call before its first byte; begin_send, record_response: each time that it goes out
control   retry, rerun, discard, promote, resolve, and bulk operations of them
reports   lists, timelines, next steps, statistics and alerts, ready for JSON

flow      delivery -> intake.record: event `received` -> 200 -> nudge
          worker: queue.claim -> handler -> calls.plan, begin_send, record_response -> queue.settle
          sweeper: expired leases and events that are due but not fetched are nudged or claimed again
          a crash at any point leaves a row that one of these finds

Shared by these five: lease, filter, counters, idempotency_keys; tables, store, pool; states, text, errors.
"""

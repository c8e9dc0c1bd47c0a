"""The ledger, shared by web, worker and command line.

Five rooms on one ground floor. Code outside imports a room, never a file in it.

intake    deliveries in: one INSERT decides which are first-seen
queue     events out: claim, renew, release, settle, expire, sweep
calls     the outbound journal: plan a call, begin a send, record its response
control   what people do: retry, rerun, discard, promote, resolve, bulk operations
reports   what people see: lists, timelines, next steps, statistics, alerts
"""

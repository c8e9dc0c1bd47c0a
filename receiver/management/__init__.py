"""The management API, `/v1`: reads and acts only through the ledger."""

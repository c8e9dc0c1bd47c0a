"""The dashboard, `/`: looks and acts only through the ledger, as `/v1` and the command line do."""

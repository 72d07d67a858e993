"""A job run: prepared, planned, and one record's whole way from prompt to ledger."""

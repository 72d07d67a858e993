"""The format: columns, shards, ledger and manifest of a dataset on disk, and how its rows are read back."""

"""Whether a finished dataset is what it says: checksums and counts, repair, and a plain forward beside its signals."""

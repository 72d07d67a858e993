"""A job file: what it may say, where its paths lead, and what its text becomes."""

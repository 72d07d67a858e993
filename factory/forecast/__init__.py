"""What a job will take: rows, tokens, bytes and disk, before anything is spent."""

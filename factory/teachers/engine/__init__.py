"""What runs inside the process that holds the engine: the engine itself, and capture in its worker."""

"""What people see of a dataset: its card, and its rows on a terminal."""

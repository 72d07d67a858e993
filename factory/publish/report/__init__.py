"""The report of a dataset: counts, measures and rows of it as one HTML file that asks nobody for anything."""

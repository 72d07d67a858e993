"""What can be said of a text by itself: its words, its style, refusals, personal data."""

"""From one dataset to stages a student is trained on: ranking, mixtures, splits, hand-off labels."""

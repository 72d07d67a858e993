"""A synthetic-data factory for distillation curricula: tasks in, validated rows with logprobs and hidden states out."""

__version__ = "0.1.0"

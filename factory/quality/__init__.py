"""What decides whether a right answer is also a good row: filters, samples and their choice, judges, difficulty."""

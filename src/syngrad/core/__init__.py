"""What stands on a cut and what crosses it: interfaces, stages, messages."""

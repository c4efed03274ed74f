"""What runs the stages of one process, and what belongs to a run: order, precision, quality, checkpoints."""

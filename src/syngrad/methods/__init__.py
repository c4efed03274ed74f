"""What a stage does with a message and with the feedback to it: one file a method."""

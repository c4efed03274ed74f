"""What a person reads of a measurement: the table, the sentence, the progress of the run."""

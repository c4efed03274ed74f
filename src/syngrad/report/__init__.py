"""What a person reads of a measurement: the table, the sentence, the page, the progress of the run.

All of it is made from a results document, by way of :func:`syngrad.report.measured.measured`.
"""

"""What a :class:`syngrad.recurrent.Graph` is made of: its messages, its modules at work, their updates, its state."""

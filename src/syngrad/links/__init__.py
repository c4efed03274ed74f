"""What carries messages between the processes of neighbouring stages, and the form in which they travel."""

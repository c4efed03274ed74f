"""Does it pay for me? A model and a machine are measured for some seconds, and every layout is computed from that."""

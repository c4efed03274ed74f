"""How the stages of a model are run: one after the other in one process (the reference)."""

"""One file a study, or a few that are about one thing; all of them by name in `registry.py`."""

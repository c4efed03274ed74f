"""Several pipelines of stages side by side that average their weights rarely."""

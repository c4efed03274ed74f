"""The only place where a weight changes: optimisers, groups, clipping, the guard."""

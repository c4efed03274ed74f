"""Starting processes, on one host or several, ending them, and links between hosts that are only made up."""

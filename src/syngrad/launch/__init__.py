"""Starting processes: torchrun's agent, several hosts, and what a launcher knows of its workers."""

"""Several processes that run one pipeline of stages."""

"""The command line and `make run`: the only package that may import both sides."""

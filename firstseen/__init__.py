"""The command line, `python -m firstseen`; the only package that may import both sides."""

"""The stages of the chain, one module each: ``python -m tasks.NAME [KEY]``."""

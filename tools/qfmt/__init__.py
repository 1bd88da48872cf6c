"""The qfmt command."""

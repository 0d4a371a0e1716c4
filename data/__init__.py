"""Marks data/ as this project's, whatever other package of that name is installed."""

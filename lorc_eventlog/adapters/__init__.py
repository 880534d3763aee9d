"""Adapters: a log call becomes a row."""

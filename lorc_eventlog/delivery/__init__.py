"""Delivery: from the log call to BigQuery."""

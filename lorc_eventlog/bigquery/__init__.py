"""How BigQuery is spoken to."""

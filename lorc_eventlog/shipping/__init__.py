"""One process that delivers what all others of a machine wrote to a spool directory."""

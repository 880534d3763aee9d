"""What an event is: envelope, row and payload, without I/O."""

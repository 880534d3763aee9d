"""What a log call costs and what a fault loses, side by side with other ways to deliver logs."""

"""What happens to a process: it forks, and it ends."""

"""What is learned from: reading it, checking it, and cutting it between peers."""

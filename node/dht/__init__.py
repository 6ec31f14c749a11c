"""The directory: hivemind's Kademlia in a process of its own, and the daemon's side of it."""

"""How fast peers of a gossip run learn, against federated averaging and plain gossip: fifty peers in virtual time."""

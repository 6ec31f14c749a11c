"""Decentralized mixture of experts, built on hosting (Learning@home, arXiv:2002.04013)."""

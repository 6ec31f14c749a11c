"""Averaging: the arithmetic of each scheme, apart from who meets whom."""

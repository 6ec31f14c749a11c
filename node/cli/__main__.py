"""`python -m node.cli` is `murmura`, for places where the script is not on the path."""

from node.cli import main

main()

"""`python -m` this package is its console script."""

from .cli import main

main()

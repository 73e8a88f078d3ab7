"""`python -m evometa` is the `evometa` command."""

from evometa.cli import main

main()

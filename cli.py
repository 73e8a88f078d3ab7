"""The evometa command from a checkout: `python cli.py run ladder`."""

from evometa.cli import main

main()

"""`python -m evometa` is the `evometa` command."""

import os
import sys

import evometa

# Python puts the current folder first, where a downloaded archive may hold a `pyarrow.py`. Code of the user's that lies
# there is still found: names.py adds the folder when somebody asks for it.
if sys.path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(evometa.__file__)):
    del sys.path[0]

from evometa.cli import main

main()

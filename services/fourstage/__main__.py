"""``python -m fourstage`` is the ``fourstage`` command."""

from fourstage.cli import main

main()

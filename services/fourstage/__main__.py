"""``python -m fourstage`` is the ``fourstage`` command; an engine starts its services by it as well."""

import sys

if "--lifeline" in sys.argv:
    from fourstage.engine.child import main
else:
    from fourstage.cli import main

main()

"""`python -m sublet` is `sublet`."""

from sublet.cli import main

main()

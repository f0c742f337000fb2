"""`python -m wanspec` is `wanspec`."""

from wanspec.cli import main

main()

"""`python -m factory.cli`, where no script is installed."""

from factory.cli import main

main()

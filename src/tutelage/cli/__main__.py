"""What `python -m tutelage.cli` runs, the same as `python -m tutelage`."""

from tutelage.cli import main

main()

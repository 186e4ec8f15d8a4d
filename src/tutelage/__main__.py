"""`python -m tutelage`, which `accelerate launch -m tutelage` needs."""

from tutelage.cli import main

main()

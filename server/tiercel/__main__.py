"""`python -m tiercel`, as torchrun starts it."""

from tiercel.cli import main

main()

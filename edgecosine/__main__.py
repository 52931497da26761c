"""`python -m edgecosine`."""

from edgecosine.cli import main

if __name__ == "__main__":
    main(prog_name="edgecosine")

"""`python -m ilu_cli`, and so `accelerate launch -m ilu_cli`."""

from ilu_cli.cli.app import main

if __name__ == "__main__":
    main()

"""The program `tilewright`, also as `python -m tilewright`: loads the command line and runs it.

Nothing else is imported before, so that Ctrl-C ends the program as quietly while it loads as it does later.
"""

import sys


def main() -> None:
    """Entry point."""
    try:
        from tilewright.cli.app import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()

"""`python -m drifting_policy.data`: `info PATH` looks at a data set of any format, `convert SRC DST.zarr` writes it as zarr."""

import argparse
import os
import sys
from typing import NoReturn

from drifting_policy.data.conversion import convert
from drifting_policy.data.inspection import describe, inspect
from drifting_policy.data.sheet import draw_sheet
from drifting_policy.types import ConfigError, UserError


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as every other door does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m drifting_policy.data --help.")


def main() -> int:
    """Do what the command line says; 0 when done, 2 on a user's mistake, 130 when interrupted."""
    parser = _Parser(prog="python -m drifting_policy.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print what a data set holds and what deserves a second look")
    info.add_argument("path")
    info.add_argument("--sheet", metavar="FILE.png", help="draw images and curves of some episodes")
    change = commands.add_parser("convert", help="write a data set as zarr")
    change.add_argument("source")
    change.add_argument("target", metavar="TARGET.zarr[.zip]")
    for command in (info, change):
        command.add_argument("--keys", nargs="+", metavar="KEY", help="these arrays only")
    try:
        chosen = parser.parse_args()
        if chosen.command == "info":
            found = inspect(chosen.path, chosen.keys)
            print(describe(found))
            if chosen.sheet:
                print(f"written: {draw_sheet(found.buffer, chosen.sheet)}")
        else:
            print(f"written: {convert(chosen.source, chosen.target, chosen.keys)}")
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os._exit(0)  # the reader of our output went away; nothing can be printed any more
    return 0


if __name__ == "__main__":
    sys.exit(main())

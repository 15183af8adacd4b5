"""Build the example model repository: every model, or the ones named with --only."""

import sys
from pathlib import Path

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import common
from examples.training import arithmetic, diabetes, digits, echo, iris

BUILDERS: dict[str, common.Builder] = {
    **iris.BUILDERS,
    **diabetes.BUILDERS,
    **digits.BUILDERS,
    **arithmetic.BUILDERS,
    **echo.BUILDERS,
}


def main() -> None:
    """Build what the command line asks for."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", action="append", choices=sorted(BUILDERS), metavar="NAME", help="may be repeated")
    arguments = parser.parse_args()
    names = arguments.only or list(BUILDERS)
    common.build({name: BUILDERS[name] for name in names}, arguments.out)


if __name__ == "__main__":
    main()

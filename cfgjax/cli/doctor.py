"""`cfgjax doctor`."""

from absl import flags

from cfgjax.base.exits import DONE, FAILED
from cfgjax.cli.common import no_arguments
from cfgjax.runs.config import parse_flags


def doctor(argv: list[str]) -> int:
    """Reports what is installed, which devices JAX finds, and which packages are missing for which command."""
    no_arguments(parse_flags(flags.FlagValues(), argv))

    from cfgjax.jobs.installation import installation_report

    found = installation_report()
    print("\n".join(f"{'! ' if line.problem else ''}{line.text}" for line in found))
    problems = [line for line in found if line.problem]
    if not problems:
        return DONE
    print(f"\n{len(problems)} problem{'s' * (len(problems) > 1)}: the lines that begin with !")
    return FAILED

"""`cfgjax download`."""

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log
from cfgjax.runs.config import parse_flags


def download(argv):
    """inception [--out=FILE]: fetches the weights of the FID Inception, 91 MB, and checks their hash."""
    given = flags.FlagValues()
    define_path("out", None, "File to write; by default the one that `evaluate` reads.", flag_values=given)
    words = parse_flags(given, argv)[1:]
    if words != ["inception"]:
        raise UsageError(f"cfgjax download inception [--out=FILE]; given {' '.join(words) or 'nothing'}")

    from cfgjax.base.download import inception

    log.info("looking for Inception's weights, and downloading them (91 MB) if they are missing …")
    print(f"Inception's weights are in {inception(given.out)}")
    return DONE

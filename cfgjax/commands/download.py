"""`cfgjax download`."""

from absl import flags

from cfgjax.config import parse_flags
from cfgjax.errors import UsageError
from cfgjax.exits import DONE


def download(argv):
    """inception [--out=FILE]: fetches the weights of the FID Inception, 91 MB, and checks their hash."""
    given = flags.FlagValues()
    flags.DEFINE_string("out", None, "File to write; by default where `evaluate` looks.", flag_values=given)
    words = parse_flags(given, argv)[1:]
    if words != ["inception"]:
        raise UsageError(f"cfgjax download inception [--out=FILE]; given {' '.join(words) or 'nothing'}")

    from cfgjax.download import inception

    print(f"Inception's weights are in {inception(given.out)}")
    return DONE

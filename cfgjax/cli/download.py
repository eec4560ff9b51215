"""`cfgjax download`."""

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log
from cfgjax.runs.config import parse_flags


def download(argv: list[str]) -> int:
    """inception [--out=FILE]: downloads the weights of FID's Inception network (91 MB) and checks their hash."""
    given = flags.FlagValues()
    define_path(
        "out",
        None,
        "File to write; by default the one that `evaluate` reads, in the user's cache folder.",
        flag_values=given,
    )
    words = parse_flags(given, argv)[1:]
    if words != ["inception"]:
        raise UsageError(f"need cfgjax download inception [--out=FILE]; given {' '.join(words) or 'nothing'}")

    from cfgjax.base.inception_weights import download_inception

    log.info("downloading Inception's weights (91 MB) unless they exist …")
    print(f"Inception's weights are in {download_inception(given.out)}")
    return DONE

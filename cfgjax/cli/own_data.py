"""`cfgjax train --data=…`: prepares images of the user's own, and chooses a config for them."""

from absl import flags

from cfgjax.base.errors import UsageError, one_line, printable
from cfgjax.base.paths import define_path
from cfgjax.runs.config import underscored

OWN_FLAGS = ("data", "size", "labels_from", "network")


def define_own_data(given: flags.FlagValues) -> None:
    """Adds the flags of images of the user's own."""
    what = "Your own images, instead of --config: a folder, an .npz file, or a folder that cfgjax prepare wrote."
    define_path("data", None, what, flag_values=given)
    what = "With --data: height and width, 8, 16, 32, … or 256; by default at most 64 and the median shorter side."
    flags.DEFINE_integer("size", None, what, flag_values=given)
    what = (
        "With --data: where labels are: folders, csv (labels.csv), edm (dataset.json), prefixes (of names), or none; "
    )
    what += "by default the first that is found."
    flags.DEFINE_string("labels_from", None, what, flag_values=given)
    what = "With --data: a small network for CPUs, or a large one for an accelerator."
    flags.DEFINE_enum("network", "small", ["small", "large"], what, flag_values=given)


def with_own_data(argv: list[str]) -> list[str]:
    """Returns argv with the --config of the images in --data, which are prepared first; argv itself without --data."""
    given = flags.FlagValues()
    define_own_data(given)
    define_path("workdir", None, "", flag_values=given)
    try:
        given([underscored(word) for word in argv], known_only=True)
    except flags.Error as e:
        raise UsageError(printable(one_line(e))) from e
    if given.data is None:
        if unused := [name for name in OWN_FLAGS[1:] if given[name].present]:
            raise UsageError(f"--{unused[0]} has no effect without --data; with --config, use --config.KEY=VALUE")
        return argv
    if any(word == "--config" or word.startswith("--config=") for word in argv):
        raise UsageError(
            "--data and --config are both given; --data chooses a config, to be changed by --config.KEY=VALUE"
        )
    if given.workdir is None:
        raise UsageError("--workdir must be given")

    from cfgjax.data.prepare_own import own_experiment

    options = {"size": given.size, "labels_from": given.labels_from, "network": given.network}
    return [argv[0], f"--config={own_experiment(given.data, given.workdir, **options)}", *argv[1:]]

"""Words of a command line that override values of a config: of those for one key the last counts."""

from ml_collections.config_flags import config_path

PREFIXES = ("--config.", "-config.", "--noconfig.", "-noconfig.")


def split_overrides(argv, config):
    """(argv with at most one --config and one override of each key, {key: None} for keys whose last value is None).

    An override is --config.KEY=VALUE, --config.KEY VALUE, or --config.KEY and --noconfig.KEY for a truth value. Left to
    absl, values of a tuple are joined, and None fits no type. config: the ConfigDict, None without a config file.
    """
    words, last = spans(argv, config), {}
    for i, (key, _) in enumerate(words):
        if key is not None:
            last[key] = i
    kept = [span for i, (key, span) in enumerate(words) if key is None or (key != "config" and last[key] == i)]
    nones = {key: None for key, i in last.items() if key != "config" and value_of(words[i][1]) == "None"}
    kept = [span for span in kept if key_of(span[0]) not in nones]
    if "config" in last:  # ahead of its overrides, as absl wants it
        kept.insert(1, words[last["config"]][1])
    return [word for span in kept for word in span], nones


def spans(argv, config):
    """[(key, words)] of argv: the words of one override and its key, "config" for the file; key None of other words."""
    found: list = []
    rest = list(argv)
    while rest:
        if rest[0] == "--":
            return [*found, (None, rest)]
        key = key_of(rest[0])
        takes_next = key is not None and "=" not in rest[0] and len(rest) > 1 and not is_switch(rest[0], key, config)
        found.append((key, rest[: 1 + takes_next]))
        rest = rest[1 + takes_next :]
    return found


def key_of(word):
    """The key that a word overrides, "config" for --config itself, None for any other word."""
    name = word.partition("=")[0]
    if name in ("--config", "-config"):
        return "config"
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)


def value_of(span):
    """The value in the words of an override, or None for a truth value without one."""
    return span[0].partition("=")[2] if "=" in span[0] else span[1] if len(span) > 1 else None


def is_switch(word, key, config):
    """Whether a word without a value is one by itself: --config.KEY of a truth value, --noconfig.KEY."""
    if key == "config":
        return False
    if word.startswith(("--no", "-no")) or config is None:
        return True
    try:
        return config_path.get_type(key, config) in (bool, object)
    except (AttributeError, KeyError, TypeError):
        return False

"""Overrides of config values on the command line. The last override of a key takes effect."""

from ml_collections.config_flags import config_path

PREFIXES = ("--config.", "-config.", "--noconfig.", "-noconfig.")


def split_overrides(argv, config):
    """Returns (argv with at most one --config and one override per key, {key: None} for keys whose last value is None).

    An override is --config.KEY=VALUE, --config.KEY VALUE, or --config.KEY and --noconfig.KEY for a boolean. absl itself
    would join repeated tuples and reject None. config: the ConfigDict, None without a config file.
    """
    words, last = spans(argv, config), {}
    for i, (key, _) in enumerate(words):
        if key is not None:
            last[key] = i
    kept = [span for i, (key, span) in enumerate(words) if key is None or (key != "config" and last[key] == i)]
    nones = {key: None for key, i in last.items() if key != "config" and value_of(words[i][1]) == "None"}
    kept = [span for span in kept if key_of(span[0]) not in nones]
    if "config" in last:  # absl needs it before its overrides
        kept.insert(1, words[last["config"]][1])
    return [word for span in kept for word in span], nones


def spans(argv, config):
    """Splits argv into [(key, words)]: a key with the words of its override, "config" for the file, None for others."""
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
    """Returns the key that a word overrides, "config" for --config itself, or None."""
    name = word.partition("=")[0]
    if name in ("--config", "-config"):
        return "config"
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)


def value_of(span):
    """Returns the value in the words of an override, or None for a boolean without a value."""
    return span[0].partition("=")[2] if "=" in span[0] else span[1] if len(span) > 1 else None


def is_switch(word, key, config):
    """Whether a word without "=" takes no value: --config.KEY of a boolean, or --noconfig.KEY."""
    if key == "config":
        return False
    if word.startswith(("--no", "-no")) or config is None:
        return True
    try:
        return config_path.get_type(key, config) in (bool, object)
    except (AttributeError, KeyError, TypeError):
        return False

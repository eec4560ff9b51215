"""The run-time type checker of conftest.py's import hook: beartype, which accepts an int as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

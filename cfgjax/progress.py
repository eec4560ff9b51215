"""A bar with an ETA, or plain lines where there is no terminal."""

import sys
import time

import tqdm


class Progress:
    """Counts `unit`s up to total, None where it is not known; as a context, closed at its end.

    write=False shows nothing: for processes other than the first.
    """

    def __init__(self, what, unit, total=None, write=True):
        self._write, self._total, self._seen, self._since = write, total, 0, time.monotonic()
        shown = {"disable": None if write else True, "dynamic_ncols": True, "leave": False, "file": sys.stderr}
        self._bar = tqdm.tqdm(desc=what, unit=unit, total=total, **shown)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def advance(self, count):
        """Counts `count` more."""
        self._seen += count
        self._bar.update(count)

    def say(self, text):
        """A line to the user, above the bar; without one, with the time that is left."""
        if not self._write:
            return
        if self._bar.disable and self._total and 0 < self._seen < self._total:
            left = (time.monotonic() - self._since) * (self._total - self._seen) / self._seen
            text = f"{text}  ETA {clock(left)}"
        tqdm.tqdm.write(text)
        sys.stdout.flush()


def clock(seconds):
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Image files byte by byte, with the pixels that they mean, for the tests of decoding."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(samples, colour, depth, *, interlaced=False, extra=b""):
    """The PNG of int samples [H, W, samples of a pixel]. extra: chunks before the pixels."""
    height, width = samples.shape[:2]
    passes = PASSES if interlaced else [(0, 0, 1, 1)]
    rows = [row for y, x, dy, dx in passes for row in samples[y::dy, x::dx] if row.size]
    body = b"".join(b"\0" + packed(row.ravel(), depth) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(samples, depth):
    """Samples of `depth` bits as bytes, big-endian; the last byte is filled with zeros."""
    bits = (samples[:, None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def tiff(samples, *, bits, photometric, order="<", **tags):
    """The uncompressed TIFF of an array [H, W, samples of a pixel]. tags: others, t339=[3] for tag 339."""
    height, width, count = samples.shape
    pixels = b"".join(packed(row.ravel(), bits) for row in samples) if bits < 16 else samples.tobytes()
    entries = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [photometric], 273: [8], 277: [count]}
    entries |= {278: [height], 279: [len(pixels)]} | {int(name[1:]): value for name, value in tags.items()}
    start = 8 + len(pixels) + len(pixels) % 2
    behind = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        content = struct.pack(f"{order}{len(value)}H", *value)
        if len(content) > 4:
            place, values = behind + len(values), values + content
            content = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, 3, len(value)) + content.ljust(4, b"\0")
    begin = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return begin + pixels.ljust(start - 8, b"\0") + directory + bytes(4) + values

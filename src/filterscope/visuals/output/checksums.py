"""The checksum of TensorBoard's event files, over many words at once: its own goes byte by byte in Python."""

from functools import lru_cache
from typing import Any

import numpy as np
from tensorboard.summary.writer import record_writer

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
_LANES = (4096, 128, 8, 1)  # words side by side, in turn
_SHORT = 1 << 14  # bytes below which Python is fast enough
_WORD = np.dtype("<u4")

Words = np.ndarray[Any, np.dtype[np.uint32]]

_masked_in_python = record_writer.masked_crc32c


def hasten() -> None:
    """Let TensorBoard's writer use the checksum of this module."""
    record_writer.masked_crc32c = masked_crc32c


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 3720) of data as event files hold it: rotated, and a constant added."""
    if len(data) < _SHORT:
        return int(_masked_in_python(data))
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of at least four bytes.

    A checksum without its constants is linear: a word that stands n words before another can be replaced by what n
    steps make of it, added to that other one. So lines of many words are folded into one line, that one into shorter
    ones, and these into one word.
    """
    missing = -len(data) % (_WORD.itemsize * _LANES[0])
    padded = np.zeros(missing + len(data), dtype=np.uint8)  # zeros in front change nothing
    padded[missing:] = np.frombuffer(data, dtype=np.uint8)
    padded[missing : missing + 4] ^= 0xFF
    words: Words = padded.view(_WORD)
    for lanes in _LANES:
        low, high = _steps(lanes)
        first, *others = words.reshape(-1, lanes)
        for line in others:
            first = low[first & 0xFFFF] ^ high[first >> 16] ^ line
        words = first
    low, high = _steps(1)
    return int(low[words[0] & 0xFFFF] ^ high[words[0] >> 16]) ^ 0xFFFFFFFF


@lru_cache
def _steps(count: int) -> tuple[Words, Words]:
    """Return what so many words of zeros make of the lower and of the upper half of a word, as tables."""
    single: Words = np.uint32(1) << np.arange(32, dtype=np.uint32)
    bits: Words = single.copy()
    for _ in range(32):
        bits = np.asarray((bits >> 1) ^ (bits & 1) * _POLYNOMIAL, dtype=np.uint32)
    made, power = single, bits
    while count:
        if count & 1:
            made = _through(power, made)
        power, count = _through(power, power), count >> 1
    return _table(made[:16]), _table(made[16:])


def _through(bits: Words, words: Words) -> Words:
    """Apply the linear map that makes `bits` of the single bits of a word."""
    low, high = _table(bits[:16]), _table(bits[16:])
    made: Words = low[words & 0xFFFF] ^ high[words >> 16]
    return made


def _table(bits: Words) -> Words:
    table = np.zeros(1, dtype=np.uint32)
    for bit in bits:
        table = np.concatenate([table, table ^ bit])
    return table

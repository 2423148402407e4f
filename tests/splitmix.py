"""The hash of which draws are made, in whole numbers of Python."""

from hashlib import sha256

ALL, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15


def finaliser(word):
    word &= ALL
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & ALL
    word = (word ^ word >> 27) * 0x94D049BB133111EB & ALL
    return word ^ word >> 31


def word(text):
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def signed(number):
    return number - 2**64 if number >= 2**63 else number

"""Seeds made of seeds."""


def derived_seed(*parts: int) -> int:
    """One seed from several numbers: a 64-bit mix, so that neighbouring numbers give unrelated streams.

    Args:
        parts: whole numbers, of which the low 64 bits count; their order matters.

    Returns:
        A number in 0 .. 2^63 - 1.
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = (mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1

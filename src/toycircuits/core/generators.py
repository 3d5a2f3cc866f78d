"""Torch's CPU generator: seeded, and moved far ahead in its stream without drawing.

The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998). Its words x_0, x_1 and
so on follow a linear recurrence: for some numbers e below 19937, x_(n+19937) is the XOR of all
x_(n+e). Let P be the polynomial over GF(2) that is the sum of t^19937 and all t^e. If t^m mod P is
the sum of t^j over j in J, then x_(n+m) is the XOR of x_(n+j) over j in J. So it takes less than a
tenth of a second to skip billions of draws (Haramoto et al. 2008, "Efficient jump ahead for
F2-linear random number generators").

Here a polynomial is a Python integer: bit j is the coefficient of t^j.
"""

import functools

import torch
from torch import Tensor

WORDS = 624  # in the state; the generator replaces all of them together
DEGREE = 19937  # of P
AT = 24  # where the words start in the bytes of a state; each takes 8 bytes


def seeded(seed: int, skip: int = 0) -> torch.Generator:
    """A generator on the CPU after `manual_seed(seed)` and `skip` draws.

    A draw has 32 bits: it gives one uniform number in float32, or one normal number in float32 if
    normal numbers are drawn in multiples of 16.

    >>> torch.equal(torch.rand(7, generator=seeded(3))[5:], torch.rand(2, generator=seeded(3, 5)))
    True
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    blocks, rest = divmod(skip, WORDS)
    if blocks > 0:
        _skip_blocks(generator, blocks)
    _draw(generator, rest)
    return generator


def _draw(generator: torch.Generator, n: int) -> None:
    """Draw and discard `n` numbers."""
    torch.empty(n, dtype=torch.uint8, device="cpu").random_(generator=generator)


def _words(state: Tensor) -> Tensor:
    """The words in a generator's state, as a view."""
    return state[AT : AT + 8 * WORDS].view(torch.int64)


def _skip_blocks(generator: torch.Generator, n: int) -> None:
    """Move a generator that has just been seeded ahead by `n` blocks of words."""
    _draw(generator, WORDS)
    state = generator.get_state()
    blocks = [_words(state)]
    while len(blocks) * WORDS < DEGREE + WORDS:
        _draw(generator, WORDS)
        blocks.append(_words(generator.get_state()))
    stream = torch.cat(blocks).numpy()
    power = _power_of_t(WORDS * (n - 1))
    ahead = stream[:WORDS] * 0
    for j in range(DEGREE):
        if power >> j & 1:
            ahead ^= stream[j : j + WORDS]
    _words(state).copy_(torch.from_numpy(ahead))
    generator.set_state(state)


def _power_of_t(exponent: int) -> int:
    """t^exponent mod P."""
    power = 1
    for bit in f"{exponent:b}":
        power = _mod(int(f"{power:b}", 4))  # its square: a square's terms are t^2j
        power = _mod(power << int(bit))
    return power


def _mod(polynomial: int) -> int:
    """`polynomial` mod P."""
    while above := polynomial >> DEGREE:
        polynomial &= (1 << DEGREE) - 1
        for exponent in _lower_terms():
            polynomial ^= above << exponent
    return polynomial


@functools.cache
def _lower_terms() -> tuple[int, ...]:
    """The exponents of P below its degree, found by the algorithm of Berlekamp and Massey (1969).

    The algorithm finds the shortest recurrence c of a sequence of bits s: for each n, the XOR of
    s_(n-i) over all i for which bit i of c is set is 0. It needs twice as many bits of the sequence
    as the recurrence has.
    """
    recurrence, before, length, shift, recent = 1, 1, 0, 1, 0
    for n, bit in enumerate(_bits(2 * DEGREE)):
        recent = recent << 1 | bit
        if (recurrence & recent).bit_count() % 2 == 0:
            shift += 1
            continue
        longer = recurrence ^ before << shift
        if 2 * length <= n:
            before, length, shift = recurrence, n + 1 - length, 1
        else:
            shift += 1
        recurrence = longer
    return tuple(DEGREE - i for i in range(1, DEGREE + 1) if recurrence >> i & 1)


def _bits(n: int) -> list[int]:
    """The lowest bits of `n` successive words of some stream."""
    generator, bits = torch.Generator("cpu").manual_seed(0), list[int]()
    while len(bits) < n:
        _draw(generator, WORDS)
        bits += (_words(generator.get_state()) & 1).tolist()
    return bits[:n]

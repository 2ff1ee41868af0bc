"""What fits into memory."""

import numpy as np
import pytest

from nstjax import memory
from nstjax.errors import InputError

PARAMS = {"kernel": np.zeros(1000, np.float32)}


def test_available_memory_is_that_of_a_computer():
    assert 1e8 < memory.available() < 1e14


def test_small_pictures_have_room_for_everything():
    history, left = memory.fit((512, 512), PARAMS, limit=8e9)
    assert history == memory.HISTORY
    assert 5e9 < left < 8e9


@pytest.mark.parametrize("size", [2048, 4096, 8192])
@pytest.mark.parametrize("limit", [30e9, 60e9])
def test_everything_together_stays_under_the_limit(size, limit):
    history, left = memory.fit((size, size), PARAMS, limit=limit)
    assert 3 <= history <= memory.HISTORY
    assert left > 0
    assert left + 2 * history * 12 * size * size + memory.RUNTIME < limit


def test_more_memory_remembers_more():
    histories = [memory.fit((4096, 4096), PARAMS, limit=limit)[0] for limit in (7e9, 9e9, 16e9, 64e9)]
    assert histories == sorted(histories)
    assert histories[0] < histories[-1]


def test_too_little_memory_is_refused_with_the_amount_needed():
    with pytest.raises(InputError, match=r"8192x4096 px needs \d+\.\d GB") as refused:
        memory.fit((4096, 8192), PARAMS, limit=2e9)
    needed = float(str(refused.value).split("needs ")[1].split()[0])
    memory.fit((4096, 8192), PARAMS, limit=1.05e9 * needed)

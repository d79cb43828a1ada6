"""The seal at the end of a text."""

import hashlib

import pytest

from depth_prior_ros.untrusted import seal, unseal

BODY = "name: street\nvalues: [1, 2]\n"


def test_the_last_line_is_the_sha256_of_what_stands_above_it():
    digest = hashlib.sha256(BODY.encode()).hexdigest()
    assert seal(BODY) == f"{BODY}sha256: {digest}\n"
    assert unseal(seal(BODY)) == (BODY, None)


@pytest.mark.parametrize("length", range(len(seal(BODY))))
def test_every_cut_is_found(length):
    assert unseal(seal(BODY)[:length])[1] is not None


def test_every_changed_character_is_found():
    whole = seal(BODY)
    for place, old in enumerate(whole):
        assert unseal(whole[:place] + chr(ord(old) + 1) + whole[place + 1 :])[1] is not None, place

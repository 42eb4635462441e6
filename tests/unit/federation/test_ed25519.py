"""Signatures: as RFC 8032 has them, and nothing else passes for one."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from federation.ed25519 import PrivateKey, is_signed_by

# RFC 8032, 7.1: seed, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]
KEY = PrivateKey(b"a key".ljust(32, b"."))
MESSAGE = b"a message"
SIGNATURE = KEY.sign(MESSAGE)


@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_the_standard_s_examples_hold(seed: str, public: str, message: str, signature: str) -> None:
    key = PrivateKey(bytes.fromhex(seed))
    assert (key.seed.hex(), key.public.hex()) == (seed, public)
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert is_signed_by(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_another_implementation_signs_the_same(seed: bytes, message: bytes) -> None:
    other = Ed25519PrivateKey.from_private_bytes(seed)
    assert PrivateKey(seed).sign(message) == other.sign(message)
    assert PrivateKey(seed).public == other.public_key().public_bytes_raw()


@pytest.mark.parametrize("seed", [b"", b"short", bytes(33)])
def test_a_seed_of_another_size_is_none(seed: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        PrivateKey(seed)


@given(st.integers(0, 511))
def test_no_bit_of_a_signature_can_be_changed(bit: int) -> None:
    changed = bytearray(SIGNATURE)
    changed[bit // 8] ^= 1 << bit % 8
    assert not is_signed_by(KEY.public, bytes(changed), MESSAGE)


@pytest.mark.parametrize(
    ("public", "signature", "message"),
    [
        (KEY.public, SIGNATURE, b"another message"),
        (PrivateKey(bytes(32)).public, SIGNATURE, MESSAGE),
        (KEY.public, b"", MESSAGE),
        (KEY.public, SIGNATURE[:-1], MESSAGE),
        (KEY.public, SIGNATURE + b".", MESSAGE),
        (b"", SIGNATURE, MESSAGE),
        (KEY.public[:-1], SIGNATURE, MESSAGE),
        (b"\xff" * 32, SIGNATURE, MESSAGE),
    ],
)
def test_what_is_no_key_or_no_signature_of_it_proves_nothing(public: bytes, signature: bytes, message: bytes) -> None:
    assert not is_signed_by(public, signature, message)


@pytest.mark.parametrize("public", [b"\x01" + bytes(31), bytes(32), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_key_under_which_one_signature_is_good_for_everything_is_none(public: bytes) -> None:
    """Points of small order: with R = 1 and S = 0 the equation holds for every message, or for one in a few."""
    forged = b"\x01" + bytes(63)
    assert not any(is_signed_by(public, forged, b"%d" % number) for number in range(16))

"""Passwords, and the one-time codes after them."""

import threading
from datetime import datetime
from typing import Final

import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's first choice for argon2id with little memory: 19 MiB, two passes.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Of nobody's password: whoever has no account is looked at for as long.
_NOBODY: Final = (
    "$argon2id$v=19$m=19456,t=2,p=1$c3VibGV0Y29uc29sZTAx"
    "$fP8nQe0n7b3oWgJg0mE4d5v1s0kq8G0y9dG2mS9b1hE"
)
# Each takes memory and a processor: a burst of sign-ins must not take all of both.
_TURNS: Final = threading.BoundedSemaphore(2)
_STEP_SECONDS: Final = 30


def hash_password(password: str) -> str:
    with _TURNS:
        return _HASHER.hash(password)


def fits(password: str, password_hash: str | None) -> bool:
    """Say whether a password is the one; None: there is none, which takes as long to find."""
    with _TURNS:
        try:
            _HASHER.verify(password_hash or _NOBODY, password)
        except (VerificationError, InvalidHashError):
            return False
    return password_hash is not None


def new_code_secret() -> str:
    return pyotp.random_base32()


def code_address(secret: str, *, email: str, issuer: str) -> str:
    """Return the otpauth:// address that an authenticator app learns the secret from."""
    return pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=issuer)


def step_of_code(secret: str, code: str, *, now: datetime) -> int | None:
    """Return at which step this is the code: now, or one to either side; None: at none.

    Source: RFC 6238.
    """
    code = code.replace(" ", "")
    totp = pyotp.TOTP(secret)
    step = int(now.timestamp()) // _STEP_SECONDS
    return next(
        (
            at
            for at in (step - 1, step, step + 1)
            if pyotp.utils.strings_equal(code, totp.at(at * _STEP_SECONDS))
        ),
        None,
    )

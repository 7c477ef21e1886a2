"""Signing in by OpenID Connect: the authorisation code flow with PKCE, by Authlib.

What must be known when the browser comes back is in a sealed cookie, so any control plane may
answer. A person is found by issuer and subject, and the first time by an address that the
provider has verified and that somebody was invited or registered with: nobody else gets in.
"""

import base64
import hmac
import json
import secrets
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from sublet.console.page import BASE
from sublet.console.signing_in import begin, safe
from sublet.console.visit import Visit
from sublet.core.db import Tx
from sublet.core.errors import Misconfigured, NotFound, Refused, Unavailable
from sublet.core.ids import new_id
from sublet.tenants import people
from sublet.tenants.person import Person

_COOKIE: Final = "sublet_oidc"
_SECONDS: Final = 600
_TIMEOUT: Final = 10.0
_LEEWAY: Final = 60  # of clocks that differ


async def go_there(visit: Visit) -> Response:
    """Send the browser to the provider."""
    kept = {
        "state": secrets.token_urlsafe(24),
        "nonce": secrets.token_urlsafe(24),
        "verifier": secrets.token_urlsafe(48),
        "next": safe(visit.asked("next")),
    }
    address = await run_in_threadpool(_address, visit, kept)
    answer = RedirectResponse(address, 303)
    sealed = visit.site.ground.vault.seal(json.dumps(kept), bound_to=_COOKIE)
    answer.set_cookie(
        _COOKIE, base64.urlsafe_b64encode(sealed).decode(), max_age=_SECONDS, path=f"{BASE}/oidc",
        httponly=True, samesite="lax", secure=visit.site.secure,
    )  # fmt: skip
    return answer


async def come_back(visit: Visit) -> Response:
    """Sign in whom the provider sent back."""
    kept = _kept(visit)
    if not hmac.compare_digest(visit.asked("state").encode(), kept["state"].encode()):
        raise Refused("this sign-in was begun in another browser; begin again")
    if error := visit.asked("error"):
        raise Refused(f"the provider refused: {visit.asked('error_description') or error}")
    claims = await run_in_threadpool(_claims, visit, kept)
    ground = visit.site.ground
    email = claims.get("email") if claims.get("email_verified") is True else None
    name = str(claims.get("name") or email or claims["sub"])[:100]

    def find(tx: Tx) -> Person | None:
        person = people.find_by_oidc(
            tx, f"{claims['iss']} {claims['sub']}", email=email, name=name, now=ground.clock.now()
        )
        if person is not None and person.created_at == ground.clock.now():
            people.note_change(
                tx, new_id(), "asked", person_id=person.id, tenant_id=person.tenant_id,
                action="person.accept", subject=person.email, before=None,
                after={"role": person.role, "by": claims["iss"]}, now=ground.clock.now(),
            )  # fmt: skip
        return person

    person = await visit.db(find)
    if person is None or person.disabled_at is not None:
        raise Refused(
            f"{email or 'your provider has verified no address of yours, so you'}"
            " may not sign in here: ask somebody who may to invite that address"
        )
    answer = RedirectResponse(safe(kept["next"]), 303)
    await begin(visit, person, answer)
    answer.delete_cookie(_COOKIE, path=f"{BASE}/oidc")
    return answer


def _kept(visit: Visit) -> dict[str, str]:
    """Raises Refused: this browser did not begin here, or too long ago."""
    try:
        sealed = base64.urlsafe_b64decode(visit.request.cookies.get(_COOKIE, ""))
        kept: dict[str, str] = json.loads(visit.site.ground.vault.open(sealed, bound_to=_COOKIE))
    except (ValueError, Misconfigured):
        raise Refused("this sign-in took too long; begin again") from None
    return kept


def _client(visit: Visit) -> Any:
    """Raises NotFound: no provider is set."""
    from authlib.integrations.httpx_client import OAuth2Client  # noqa: PLC0415 -- slow to load

    config = visit.site.ground.config
    if config.oidc_issuer is None:
        raise NotFound("no OpenID provider is set: SUBLET_OIDC_ISSUER")
    return OAuth2Client(
        client_id=config.oidc_client_id,
        client_secret=config.oidc_client_secret,
        scope="openid email profile",
        redirect_uri=f"{config.public_url}{BASE}/oidc/back",
        code_challenge_method="S256",
        timeout=_TIMEOUT,
    )


def _provider(client: Any, issuer: str) -> dict[str, Any]:
    """Return what a provider says of itself.

    Raises:
        Unavailable: it did not answer, or says that it is another one.
    """
    import httpx  # noqa: PLC0415 -- slow to load

    try:
        address = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        found: dict[str, Any] = (
            client.request("GET", address, withhold_token=True).raise_for_status().json()
        )
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the OpenID provider did not answer: {error}") from error
    if str(found.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise Unavailable(f"{issuer} says that it is {str(found.get('issuer'))[:200]}")
    return found


def _address(visit: Visit, kept: dict[str, str]) -> str:
    with _client(visit) as client:
        provider = _provider(client, str(visit.site.ground.config.oidc_issuer))
        address, _ = client.create_authorization_url(
            provider["authorization_endpoint"],
            state=kept["state"],
            nonce=kept["nonce"],
            code_verifier=kept["verifier"],
        )
    return str(address)


def _claims(visit: Visit, kept: dict[str, str]) -> dict[str, Any]:
    """Return what the provider says of whom it sent back, its signature and nonce checked.

    Raises:
        Refused: the code or the token is not good.
        Unavailable: the provider did not answer.
    """
    import httpx  # noqa: PLC0415 -- slow to load
    from authlib.integrations.base_client import OAuthError  # noqa: PLC0415 -- the same
    from joserfc import jwt  # noqa: PLC0415 -- the same
    from joserfc.errors import JoseError  # noqa: PLC0415 -- the same
    from joserfc.jwk import KeySet  # noqa: PLC0415 -- the same

    config = visit.site.ground.config
    with _client(visit) as client:
        provider = _provider(client, str(config.oidc_issuer))
        try:
            token = client.fetch_token(
                provider["token_endpoint"],
                code=visit.asked("code"),
                code_verifier=kept["verifier"],
                grant_type="authorization_code",
            )
            keys = KeySet.import_key_set(
                client.request("GET", provider["jwks_uri"], withhold_token=True)
                .raise_for_status()
                .json()
            )
            allowed = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
            claims = dict(jwt.decode(token["id_token"], keys, algorithms=allowed).claims)
            jwt.JWTClaimsRegistry(
                now=int(visit.site.ground.clock.now().timestamp()),
                leeway=_LEEWAY,
                iss={"essential": True, "value": provider["issuer"]},
                aud={"essential": True, "value": str(config.oidc_client_id)},
                exp={"essential": True},
                sub={"essential": True},
                nonce={"essential": True, "value": kept["nonce"]},
            ).validate(claims)
            if "email" not in claims and "userinfo_endpoint" in provider:
                more = client.get(provider["userinfo_endpoint"]).raise_for_status().json()
                if more.get("sub") == claims["sub"]:
                    claims = more | claims
        except httpx.HTTPError as error:
            raise Unavailable(f"the OpenID provider did not answer: {error}") from error
        except (OAuthError, JoseError, KeyError, ValueError) as error:
            raise Refused(f"the provider's answer is not good ({error}); begin again") from error
    return claims

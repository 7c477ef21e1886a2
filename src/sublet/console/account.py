"""One's own account: password, one-time codes, where one is signed in."""

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import Invalid, Refused
from sublet.tenants import passwords, people
from sublet.tenants.person import checked_password


async def show(visit: Visit) -> Response:
    now = visit.site.ground.clock.now()
    person = visit.who.person
    sessions = await visit.db(lambda tx: people.list_sessions(tx, person.id, now=now))
    return visit.page("account.html", title="Your account", person=person, sessions=sessions)


async def _check_password(visit: Visit) -> None:
    """Raises Refused: whoever sits at this browser does not know the password."""
    person = visit.who.person
    found = await visit.db(lambda tx: people.find(tx, person.email))
    known = None if found is None else found[1]
    given = str(visit.form.get("password", ""))
    if known is not None and not await run_in_threadpool(passwords.fits, given, known):
        raise Refused("that is not your password")


async def change_password(visit: Visit) -> Response:
    await _check_password(visit)
    wanted = checked_password(str(visit.form.get("new_password", "")))
    if wanted != visit.form.get("new_password_again"):
        raise Invalid("the two new passwords differ")
    hashed = await run_in_threadpool(passwords.hash_password, wanted)
    who = visit.who
    await visit.db(lambda tx: people.set_password(tx, who.person.id, hashed))
    await visit.db(lambda tx: people.end_other_sessions(tx, who.person.id, but=who.digest))
    return visit.go_to("/account", "Your password is changed; other browsers are signed out.")


async def begin_codes(visit: Visit) -> Response:
    """Show a new secret, for the app to learn and to answer with a code."""
    await _check_password(visit)
    import segno  # noqa: PLC0415 -- for this page alone

    secret = passwords.new_code_secret()
    address = passwords.code_address(secret, email=visit.who.person.email, issuer="Sublet")
    return visit.page(
        "codes.html", title="One-time codes", secret=secret,
        code=segno.make(address, error="m").svg_data_uri(scale=5, dark="#000", light="#fff"),
    )  # fmt: skip


async def confirm_codes(visit: Visit) -> Response:
    """Ask for codes from now on, once the app has shown that it knows the secret."""
    secret, now = visit.must("secret"), visit.site.ground.clock.now()
    step = passwords.step_of_code(secret, visit.must("code"), now=now)
    if step is None:
        raise Invalid("that is not the code that the app shows now; try the next one")
    person = visit.who.person
    sealed = visit.site.ground.vault.seal(secret, bound_to=f"person:{person.id}")
    await visit.db(lambda tx: people.set_code(tx, person.id, sealed, step=step))
    return visit.go_to("/account", "From now on a one-time code is asked for after the password.")


async def end_codes(visit: Visit) -> Response:
    await _check_password(visit)
    person = visit.who.person
    await visit.db(lambda tx: people.set_code(tx, person.id, None))
    return visit.go_to("/account", "One-time codes are no longer asked for.")


async def end_others(visit: Visit) -> Response:
    who = visit.who
    await visit.db(lambda tx: people.end_other_sessions(tx, who.person.id, but=who.digest))
    return visit.go_to("/account", "Other browsers are signed out.")

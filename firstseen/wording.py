"""What a provider's entry means, in words: the same for `firstseen providers show` and docs/providers.md."""

from collections.abc import Iterator, Mapping

from config.providers import (
    ABSENT,
    ANY,
    PUBLIC_KEY,
    VERIFY_TOKEN,
    HandshakeTable,
    KeyTable,
    Provider,
    SchemeTable,
    SignatureTable,
    TimestampTable,
)
from config.toml import in_words

ALGORITHMS = {"ed25519": "Ed25519", "ecdsa": "ECDSA", "rsa": "RSA (PKCS #1 v1.5)", "hash": "plain"}
KEYS = {
    "base64": "the secret is base64",
    "hex": "the secret is hex",
    "ed25519-hex": "the secret is the provider's public key, 32 bytes in hex",
    "ed25519-base64": "the secret is the provider's public key, 32 bytes in base64",
    "spki-base64": "the secret is the provider's public key, base64 of DER (SPKI)",
    "pem": "the secret is the provider's public key, in PEM",
}
UNITS = {"s": "seconds", "ms": "milliseconds", "iso8601": "ISO 8601"}
KINDS = {
    "header": "header {}",
    "json": "{} in the body",
    "item": "{} in each item",
    "query": "{} in the query",
    "form": "{} in the form",
    "sig": "{}= in the signature",
}


def proof(provider: Provider) -> str:
    """Say in a few words what proves the sender."""
    if provider.scheme is None:
        return _other_proof(provider)
    names = {"token": "token", "basic": "HTTP Basic", "any_of": "one of several"}
    scheme = provider.scheme
    return names.get(scheme.type) or _algorithm(scheme)


def _other_proof(provider: Provider) -> str:
    if provider.verification is not None:
        return "nothing"
    return "code" if provider.code else "as the source says"


def scheme(provider: Provider) -> list[str]:
    """Say how deliveries are verified, a sentence a line."""
    if provider.verification is not None:
        return ["nothing is signed: a source must say unverified = true, and its handler ask the provider"]
    if provider.code is not None:
        needs = f", with options.{', options.'.join(provider.options)}" if provider.options else ""
        return [f"verified by code, {provider.code}{needs}"]
    if provider.scheme is None:
        return ["described in the source's options"]
    return list(_scheme(provider.scheme))


def _scheme(table: SchemeTable) -> Iterator[str]:
    if table.schemes:
        for number, one in enumerate(table.schemes, 1):
            yield from (f"{number}. {line}" for line in _scheme(one))
        return
    if table.signature is not None:
        yield _signature(table, table.signature)
    if table.key is not None or table.type in PUBLIC_KEY:
        yield _key(table.key or KeyTable(encoding="pem"))
    if table.timestamp is not None:
        yield _timestamp(table.timestamp)
    for place, value in table.require.items():
        yield f"{places(place)} must be {value}"


def _signature(table: SchemeTable, signature: SignatureTable) -> str:
    where = places(signature.at)
    after = f" after {signature.prefix!r}" if signature.prefix else ""
    if table.type == "token":
        return f"the secret itself in {where}{after}: it proves the sender, not the bytes"
    if table.type == "basic":
        return f"HTTP Basic in {where}; the secret is user:password, and proves the sender, not the bytes"
    pairs = f", as {signature.field}{signature.pair_sep}..." if signature.field else ""
    several = ", any of several" if signature.list_sep or signature.places.several else ""
    content = (table.content or "").replace("\n", "\\n")
    return f"{_algorithm(table)} of {content}, in {signature.encoding}, in {where}{after}{pairs}{several}"


def _algorithm(table: SchemeTable) -> str:
    digest = (table.hash or "").upper()
    if table.type == "hmac":
        return f"HMAC-{digest}"
    return f"{ALGORITHMS[table.type]} {digest}".strip()


def _key(key: KeyTable) -> str:
    bare = f", without {key.strip_prefix!r}" if key.strip_prefix else ""
    return KEYS.get(key.encoding, "the secret is used as it is") + bare


def _timestamp(table: TimestampTable) -> str:
    limit = f"at most {table.tolerance} s from now" if table.tolerance else "with no limit of its own"
    return f"its time is in {places(table.at)}, in {UNITS[table.unit]}, {limit}"


def places(text: str) -> str:
    """Say where a locator reads."""
    joined, word = ("||", " and ") if "||" in text else ("|", " or ")
    return word.join(_place(part) for part in text.split(joined))


def _place(text: str) -> str:
    kind, _, name = text.removesuffix("?").partition(":")
    if (kind, name) == ("item", "#"):
        return "the item's place in the batch"
    if not name:
        return "the whole body"
    return KINDS[kind].format(name.replace("\\.", ".")) + (" (if there)" if text.endswith("?") else "")


def event_id(provider: Provider) -> str:
    """Say what makes two deliveries one event."""
    if provider.custom:
        return "as the source says"
    if not provider.event_id:
        return {"none": "none: each delivery is an event of its own"}.get(provider.policy, "the body's hash")
    told = " + ".join(places(part) for part in provider.event_id)
    other = {"body_hash": "; without it the body's hash", "none": "; without it each is an event of its own"}
    unsigned = "" if provider.id_is_signed or not provider.signs_body else "; not signed"
    return told + other.get(provider.without_id, "") + unsigned


def handshake(table: HandshakeTable) -> str:
    """Say which request is a handshake, and what it gets."""
    conditions = [_condition(place, value) for place, value in table.when.items()]
    if table.challenge:
        conditions.append(f"{places(table.challenge)} holds a challenge")
    when = f" where {' and '.join(conditions)}" if conditions else ""
    opt_in = "signed" if table.signed else "unsigned, so only with handshake = true in the source"
    return f"{table.method}{when}: {table.status}{_answered(table)} ({opt_in})"


def _condition(place: str, value: str) -> str:
    words = {ANY: "is there", ABSENT: "is not there", VERIFY_TOKEN: "is the source's verify token"}
    return f"{places(place)} {words.get(value, f'is {value}')}"


def _answered(table: HandshakeTable) -> str:
    told = [f"{name}: {value}" for name, value in table.headers.items()]
    if isinstance(table.answer, Mapping):
        told += ["JSON of " + ", ".join(f"{key} = {value}" for key, value in table.answer.items())]
    elif table.answer:
        told += [f"the text {table.answer}"]
    return f" with {' and '.join(told)}" if told else " with no body"


def answer(provider: Provider) -> str:
    """Say what an event is answered with, and by when; empty for what is usual."""
    usual = provider.success_status == 200 and provider.success_body is None  # noqa: PLR2004 - HTTP's OK
    body = {None: "", "": " with no body"}.get(provider.success_body, f" with {provider.success_body}")
    told = [] if usual else [f"{provider.success_status}{body}"]
    told += ["rejections with no body"] if provider.empty_rejection else []
    told += [f"within {in_words(provider.deadline)}"] if provider.deadline else []
    return ", ".join(told)


def verified(provider: Provider) -> str:
    """Say how far the entry can be trusted; empty for what a source describes itself."""
    if provider.custom:
        return ""
    told = "read in official sources" if provider.verified else "unverified: not read in official sources"
    return f"{told}; nobody read: {', '.join(provider.unread)}" if provider.unread else told


def trust(provider: Provider) -> str:
    """Say the same in a word or two, for a table."""
    if provider.custom:
        return ""
    if not provider.verified:
        return "no"
    return f"but for {', '.join(provider.unread)}" if provider.unread else "yes"

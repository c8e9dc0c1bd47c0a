"""From a table to a scheme, once at start-up."""

from collections.abc import Callable, Mapping

from config.providers import KeyTable, SchemeTable, SignatureTable
from receiver.signatures.finding import SignatureFinder
from receiver.signatures.keys import Hmac, PlainHash, PublicKey, Signer
from receiver.signatures.schemes import AnyOf, BasicScheme, Scheme, SignedScheme, TokenScheme

Options = Mapping[str, str]


def compile_scheme(table: SchemeTable, options: Options | None = None) -> Scheme:
    """Compile a validated table; `options` hold the values of `{config:...}` (KeyError when one is missing).

    Raise ConfigError when a public-key scheme finds no `cryptography`.
    """
    return _COMPILERS[table.type](table, options or {})


def _signed(table: SchemeTable, options: Options) -> Scheme:
    return SignedScheme(table, _signer(table), SignatureFinder(_signature(table)), options)


def _signer(table: SchemeTable) -> Signer:
    hash_name = table.hash or "sha256"
    if table.type == "hmac":
        return Hmac(hash_name, table.key or KeyTable())
    if table.type == "hash":
        return PlainHash(hash_name)
    return PublicKey(table.type, table.hash, table.key or KeyTable(encoding="pem"))


def _token(table: SchemeTable, _: Options) -> Scheme:
    signature = _signature(table)
    return TokenScheme(signature.places, signature.prefix, table.require)


def _basic(table: SchemeTable, _: Options) -> Scheme:
    return BasicScheme(_signature(table).places, "", table.require)


def _any_of(table: SchemeTable, options: Options) -> Scheme:
    return AnyOf([compile_scheme(scheme, options) for scheme in table.schemes])


def _signature(table: SchemeTable) -> SignatureTable:
    if table.signature is None:  # the table's own rules refuse this
        raise ValueError("a scheme without a signature")
    return table.signature


_COMPILERS: Mapping[str, Callable[[SchemeTable, Options], Scheme]] = {
    "hmac": _signed,
    "hash": _signed,
    "ed25519": _signed,
    "ecdsa": _signed,
    "rsa": _signed,
    "token": _token,
    "basic": _basic,
    "any_of": _any_of,
}

"""Addresses of endpoints, as recipes name them."""

from urllib.parse import urlsplit


def check_address(url: str, example: str, key_name: str) -> str:
    """The address. Raises ValueError for what is none, and for one with a password; `key_name` is the key of the recipe
    that names a variable for it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected an address such as `{example}`")
    if parts.username or parts.password:
        raise ValueError(f"a URL with a password would be seen in logs; name a variable in `{key_name}` instead")
    return url

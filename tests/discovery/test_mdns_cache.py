"""What a flood of announcements leaves in memory: the library bounds its cache."""

from __future__ import annotations

import zeroconf

from edgecosine.discovery.mdns import SERVICE_TYPE

_PTR, _IN, _TTL_S = 12, 1, 4500
_BOUND = 10_000
_FLOOD = 12_000


def _records(cache: zeroconf.DNSCache) -> int:
    return sum(len(cache.async_entries_with_name(name)) for name in cache.names())


def test_flood_of_announcements_is_bounded_in_the_cache() -> None:
    """Neither of one type under many names, nor of many names of their own."""
    cache = zeroconf.DNSCache()
    for number in range(_FLOOD):
        alias = f"n{number}.{SERVICE_TYPE}"
        pointer = zeroconf.DNSPointer(SERVICE_TYPE, _PTR, _IN, _TTL_S, alias)
        placed = zeroconf.DNSText(alias, 16, _IN, _TTL_S, b"x")
        cache.async_add_records([pointer, placed])
    assert _BOUND // 2 <= _records(cache) <= _BOUND


def test_repeated_announcements_take_no_more_memory_than_one() -> None:
    cache = zeroconf.DNSCache()
    for number in range(_FLOOD):
        alias = f"n{number % 10}.{SERVICE_TYPE}"
        cache.async_add_records([zeroconf.DNSPointer(SERVICE_TYPE, _PTR, _IN, number + 1, alias)])
    assert _records(cache) == 10
    assert len(cache._expire_heap) < 1000

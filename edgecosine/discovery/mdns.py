"""Announces this node on the local network and finds others, by multicast DNS.

The only file that imports zeroconf. Received adverts are hints; invalid ones are ignored. Where
multicast fails, one warning is logged and only static peers are used. The machine's interfaces are
polled, since networks appear later and addresses change.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from edgecosine.discovery.events import PeerGone, PeerSeen
from edgecosine.discovery.interfaces import Interface, addresses_to_announce, by_reach, interfaces
from edgecosine.discovery.peer import MAX_ADDRESSES, Advert, HostileAdvert, from_txt, to_txt

SERVICE_TYPE: Final = "_edgecosine._tcp.local."
SELF_TEST_S: Final = 5.0
LOOK_S: Final = 2.0
"""Period of polling the machine's interfaces."""
MAX_NAMES: Final = 1024
_PROBE_TYPE: Final = "_ecs-doctor._tcp.local."
_NUM_RESOLVERS: Final = 4
_RESOLVE_MS: Final = 3000
_GOODBYE_S: Final = 2.0
_LABEL_CHARACTERS: Final = 40

OnEvent = Callable[[PeerSeen | PeerGone], None]

logger = logging.getLogger(__name__)


class Mdns:
    """This node's mDNS responder and browser.

    `interfaces` are numeric addresses of the interfaces to use, None for all of them, loopback
    included, so that nodes of one machine find each other without any network.
    `received_own` is set when our own announcement comes back, which proves that multicast works;
    a warning is logged if it does not within `self_test_s` seconds. `look_s` is the period of
    polling the machine's interfaces.
    """

    def __init__(
        self,
        *,
        interfaces: Sequence[str] | None = None,
        service_type: str = SERVICE_TYPE,
        self_test_s: float = SELF_TEST_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.received_own = asyncio.Event()
        self._self_test_s, self._look_s = self_test_s, look_s
        self._interfaces, self._service_type = interfaces, service_type
        self._names: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._node_ids: dict[str, str] = {}
        self._ignored: set[str] = set()
        self._own: list[Interface] = []
        """This machine's interfaces at the last poll."""

    def __repr__(self) -> str:
        return f"<Mdns {len(self._node_ids)} nodes, {len(self._ignored)} ignored>"

    async def run(self, advert: Advert, on_event: OnEvent) -> None:
        """Announce `advert` and report the others until cancelled; then say good-bye.

        Returns, after a warning, when multicast does not work.
        """
        self._own = interfaces()
        if not self._own:
            logger.warning("no network yet, no interface has an address; waiting for one")
            await self._until_network_changes()
        try:
            responder = self._open()
        except (OSError, RuntimeError) as error:
            _warn(str(error))
            return
        try:
            await self._announce_and_listen(responder, advert, on_event)
        except zeroconf.Error as error:
            _warn(f"{type(error).__name__} {error}")
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await responder.async_unregister_all_services()
                    await responder.async_close()

    async def _until_network_changes(self) -> None:
        """Wait for a change of this machine's interfaces or addresses."""
        while True:
            await asyncio.sleep(self._look_s)
            own = interfaces()
            if own and own != self._own:
                self._own = own
                return

    def _info(self, advert: Advert) -> AsyncServiceInfo:
        """The records of the advert, with this machine's current addresses."""
        announced = advert.addresses or addresses_to_announce([""], self._own)[:MAX_ADDRESSES]
        return service_info(replace(advert, addresses=tuple(announced)), self._service_type)

    def _open(self) -> AsyncZeroconf:
        own = {address for interface in self._own for address in interface.addresses}
        missing = sorted(set(self._interfaces or ()) - own)
        if missing:
            # zeroconf would raise too late to close the sockets that it has opened
            raise OSError(f"no interface has the address {missing[0]}")
        everywhere = zeroconf.InterfaceChoice.All
        chosen = everywhere if self._interfaces is None else list(self._interfaces)
        try:
            return AsyncZeroconf(interfaces=chosen, ip_version=zeroconf.IPVersion.All)
        except OSError:
            # a kernel without IPv6 refuses a dual-stack socket
            return AsyncZeroconf(interfaces=chosen, ip_version=zeroconf.IPVersion.V4Only)

    async def _announce_and_listen(
        self, responder: AsyncZeroconf, advert: Advert, on_event: OnEvent
    ) -> None:
        def changed(*, name: str, state_change: zeroconf.ServiceStateChange, **_: object) -> None:
            if name == info.name:
                self.received_own.set()
            else:
                self._name_changed(responder, name, state_change, on_event)

        def browse() -> AsyncServiceBrowser:
            return AsyncServiceBrowser(responder.zeroconf, [self._service_type], handlers=[changed])

        info = self._info(advert)
        browser = browse()
        try:
            await (await responder.async_register_service(info, cooperating_responders=True))
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    self._warn_if_multicast_fails(), name=f"{advert.node_id}.self-test"
                )
                for number in range(_NUM_RESOLVERS):
                    group.create_task(
                        self._resolve_names(responder, on_event),
                        name=f"{advert.node_id}.resolver-{number}",
                    )
                while True:
                    await self._until_network_changes()
                    info = self._info(advert)
                    announced = ",".join(info.parsed_addresses())
                    logger.info("network changed: addresses=%s", announced)
                    await responder.zeroconf.async_update_interfaces()
                    await (await responder.async_update_service(info))
                    await browser.async_cancel()
                    browser = browse()
        finally:
            await browser.async_cancel()

    async def _warn_if_multicast_fails(self) -> None:
        try:
            async with asyncio.timeout(self._self_test_s):
                await self.received_own.wait()
        except TimeoutError:
            _warn(f"our own announcement did not come back within {self._self_test_s:g} s")

    def _name_changed(
        self,
        responder: AsyncZeroconf,
        name: str,
        change: zeroconf.ServiceStateChange,
        on_event: OnEvent,
    ) -> None:
        if change is zeroconf.ServiceStateChange.Removed:
            node_id = self._node_ids.pop(name, None)
            if node_id is not None:
                on_event(PeerGone(node_id))
            return
        # Most announcements are complete; the others are resolved later, with a timeout.
        info = AsyncServiceInfo(self._service_type, name)
        if info.load_from_cache(responder.zeroconf):
            self._take(name, info, on_event)
        elif name not in self._queued and len(self._queued) < MAX_NAMES:
            self._queued.add(name)
            self._names.put_nowait(name)

    async def _resolve_names(self, responder: AsyncZeroconf, on_event: OnEvent) -> None:
        while True:
            name = await self._names.get()
            self._queued.discard(name)
            info = AsyncServiceInfo(self._service_type, name)
            try:
                is_resolved = await info.async_request(responder.zeroconf, _RESOLVE_MS)
            except (zeroconf.Error, UnicodeError) as error:
                self._ignore(name, error)
                continue
            if is_resolved:
                self._take(name, info, on_event)

    def _take(self, name: str, info: AsyncServiceInfo, on_event: OnEvent) -> None:
        try:
            advert = _advert_of(info)
        except (HostileAdvert, UnicodeError) as error:
            self._ignore(name, error)
            return
        if name not in self._node_ids and len(self._node_ids) >= MAX_NAMES:
            del self._node_ids[next(iter(self._node_ids))]  # its good-bye will be ignored
        self._node_ids[name] = advert.node_id
        on_event(PeerSeen(advert))

    def _ignore(self, name: str, error: Exception) -> None:
        if name in self._ignored or len(self._ignored) >= MAX_NAMES:
            return
        self._ignored.add(name)
        logger.warning("announcement ignored: name=%a reason=%s", name[:80], error)


async def multicast_works(
    interfaces: Sequence[str] | None = None, self_test_s: float = SELF_TEST_S
) -> bool:
    """Whether multicast works: whether a test announcement comes back."""
    node_id = f"doctor-{secrets.token_hex(8)}"
    probe = Advert(node_id, 0, "doctor", 0, "drafter", "", "", ("127.0.0.1",), 1)
    mdns = Mdns(interfaces=interfaces, service_type=_PROBE_TYPE)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(mdns.run(probe, lambda _: None), name="doctor.mdns")
        received = group.create_task(mdns.received_own.wait(), name="doctor.self-test")
        await asyncio.wait(
            {running, received}, timeout=self_test_s, return_when=asyncio.FIRST_COMPLETED
        )
        running.cancel()
        received.cancel()
    return mdns.received_own.is_set()


def service_info(advert: Advert, service_type: str = SERVICE_TYPE) -> AsyncServiceInfo:
    """The records that announce a node.

    The instance name is readable and unique; the node id is in the TXT record.
    """
    readable = re.sub(r"[^A-Za-z0-9-]", "-", advert.node_id)[:_LABEL_CHARACTERS]
    whole = f"{advert.cluster}/{advert.node_id}".encode()
    label = f"{readable}-{hashlib.blake2b(whole, digest_size=4).hexdigest()}"
    return AsyncServiceInfo(
        service_type,
        f"{label}.{service_type}",
        parsed_addresses=[address.partition("%")[0] for address in advert.addresses],
        port=advert.port,
        properties=to_txt(advert),
        server=f"{label}.local.",
    )


def _advert_of(info: AsyncServiceInfo) -> Advert:
    addresses = [text for text in info.parsed_scoped_addresses() if _is_reachable(text)]
    return from_txt(info.properties, by_reach(addresses), info.port)


def _is_reachable(address: str) -> bool:
    """Whether an address can be dialled: link-local IPv6 needs its interface."""
    ip = ipaddress.ip_address(address)
    return ip.version == 4 or not ip.is_link_local or "%" in address


def _warn(reason: str) -> None:
    logger.warning(
        "mDNS does not work here, name the peers with --peer HOST:PORT: reason=%s", reason
    )

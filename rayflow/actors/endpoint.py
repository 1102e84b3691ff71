"""Where a transport can be reached: a socket of the node for peers on the same node, else TCP."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rayflow.model.errors import ProtocolViolation


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`node` names the node the transport runs on, `unix` its socket there, `tcp` its address elsewhere.

    Both are Flight locations, such as `grpc+unix:///tmp/x.sock` and `grpc://10.0.0.5:40123`.
    """

    node: str
    unix: str
    tcp: str

    def location(self, from_node: str) -> str:
        """The Flight location for a peer that runs on `from_node`."""
        return self.unix if from_node == self.node else self.tcp

    def encode(self) -> str:
        """As the address string that travels in `Deploy.peers`."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, address: str) -> Endpoint:
        """Inverse of `encode`; ProtocolViolation when `address` is no endpoint."""
        try:
            fields = json.loads(address)
            return cls(node=fields["node"], unix=fields["unix"], tcp=fields["tcp"])
        except (ValueError, TypeError, KeyError) as e:
            raise ProtocolViolation(f"{address!r} is not the address of a rayflow transport") from e

"""Where everything is: which batcher owns which rows, and which outside belongs to which resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcc.batch import Batcher
from tcc.resource import External, Resource


class Stores:
    """The databases of one deployment. `home` is the coordinator's, and any resource's that has none of its own."""

    def __init__(
        self,
        home: Batcher,
        batchers: Mapping[str, Batcher],
        externals: Mapping[str, External],
        resources: Sequence[Resource],
    ) -> None:
        self.home = home
        self.resources: Mapping[str, Resource] = {resource.name: resource for resource in resources}
        self._batchers = batchers
        self._externals = externals

    def of(self, resource: str) -> Batcher:
        """The batcher of the database that owns a resource's rows."""
        return self._batchers[resource]

    def external(self, resource: str) -> External:
        """The other side of an external resource."""
        return self._externals[resource]

    def distinct(self) -> list[tuple[Batcher, list[Resource]]]:
        """Every database once, with the resources that live in it; the coordinator's first."""
        found: dict[int, tuple[Batcher, list[Resource]]] = {id(self.home): (self.home, [])}
        for resource in self.resources.values():
            batcher = self.of(resource.name)
            found.setdefault(id(batcher), (batcher, []))[1].append(resource)
        return list(found.values())

    async def close(self) -> None:
        """Finish what was accepted, and let go of everything."""
        for batcher, _ in self.distinct():
            await batcher.close()
            await batcher.database.close()
        for external in self._externals.values():
            await external.aclose()

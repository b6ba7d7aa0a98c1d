"""GET /models/{name}/map: the plane of the latent space that a bundle's map.npz holds."""

import math
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from service.core.problems import NotFound
from service.http import caching
from service.http.codecs import Answer
from service.http.endpoint import chosen, service_of, wanted, write
from service.http.negotiation import JSON, NPZ, PNG
from service.operations.latent_fields import MapOptions, Thumbnails
from vaeserve.bundle.latent_map import NO_LABEL, LatentMap
from vaeserve.bundle.manifest import Manifest

MAP_WRITERS = (JSON, NPZ, PNG)


async def show_map(request: Request, query: Annotated[MapOptions, Query()]) -> Response:
    """Held-out images on a plane of the latent space, each place of which is a latent: the two principal
    components of the posterior means. As PNG, their thumbnails.
    """
    media_type = wanted(request, MAP_WRITERS)
    model = chosen(service_of(request).models, request, query)
    if model.map is None:
        raise NotFound(
            f"{model.manifest.reference} has no map; `vae-train complete` publishes a version with one."
        )
    pinned = caching.names_version(request, query.model)
    tag = caching.etag(model, media_type, query.return_)
    if answer := caching.not_modified(request, tag, model, pinned=pinned):
        return answer
    response = await write(request, media_type, _answer(model.manifest, model.map, query, media_type))
    response.headers.update(caching.headers(tag, pinned=pinned))
    return response


def _answer(manifest: Manifest, found: LatentMap, options: MapOptions, media_type: str) -> Answer:
    arrays: dict[str, NDArray[Any]] = found._asdict()
    columns = math.ceil(math.sqrt(len(found.thumbnails)))
    if media_type != JSON:
        return Answer(manifest.reference, arrays, picture="thumbnails", columns=columns, gap=0)
    _, height, width, _ = found.thumbnails.shape
    del arrays["thumbnails"]
    fields: dict[str, Any] = {
        "label_names": manifest.labels,
        "thumbnails": Thumbnails(height=height, width=width, columns=columns).model_dump(),
    }
    if "latents" not in options.return_:
        del arrays["latents"]
    if (found.labels == NO_LABEL).all():
        del arrays["labels"]
        fields |= {"labels": None, "label_names": None}
    return Answer(manifest.reference, arrays, fields=fields)

"""The examples in /docs and docs/openapi.json: one for every body, every answer and every problem.

They are for a model `mnist@1` with 32 latents. Tests send the requests, and provoke the problems.
"""

from typing import Any

from service.core import problems

# A white square on black, 28 × 28, as a PNG file in base64.
SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAHElEQVR42mNgGBmAEcb4j0WQCZ/OUUlCkiMFAABjZgEYgVH3vQAAAABJ"
    "RU5ErkJggg=="
)
LATENTS = [0.5, -1.25, 0.0, 2.0] * 8

# Bodies and answers in JSON by their model's name: (name, what it shows, value).
VALUES: dict[str, list[tuple[str, str, Any]]] = {
    "EncodeBody": [
        ("file", "An image file in base64", {"images": [SQUARE]}),
        (
            "posterior",
            "All that is known of the posterior, and a sample that can be drawn again",
            {"images": [SQUARE], "return": ["mean", "logvar", "sample"], "seed": 7},
        ),
        ("version", "Only by this version of this model", {"images": [SQUARE], "model": "mnist@1"}),
    ],
    "DecodeBody": [("latents", "One row of latents", {"latents": [LATENTS], "model": "mnist@1"})],
    "ReconstructBody": [("file", "An image file in base64", {"images": [SQUARE]})],
    "SampleBody": [
        ("seeded", "Four images, the same ones every time", {"n": 4, "seed": 7}),
        ("nearer", "Nearer to the mean image", {"n": 4, "temperature": 0.5, "return": ["latents"]}),
    ],
    "ScoreBody": [
        ("file", "An image file in base64", {"images": [SQUARE]}),
        (
            "all",
            "With the importance-weighted bound, the reconstruction and the error of each pixel",
            {"images": [SQUARE], "k": 8, "seed": 7, "return": ["images", "error_map"]},
        ),
    ],
    "ScoreAnswer": [
        (
            "anomaly",
            "A white square is no digit",
            {
                "model": "mnist@1",
                "elbo": [-5310.2],
                "distortion": [5187.9],
                "rate": [122.3],
                "log_prior": [-61.4],
                "error": [0.021],
                "p_value": [0.0005],
                "p_elbo": [0.0002],
                "p_distortion": [0.0002],
                "p_rate": [0.14],
                "p_prior": [0.002],
                "p_error": [0.0002],
                "is_anomaly": [True],
                "false_positive_rate": 0.05,
                "seed": 7,
            },
        )
    ],
    "InterpolateBody": [
        ("images", "Nine frames between two images", {"images": [SQUARE, SQUARE]}),
        (
            "latents",
            "In a straight line between an image and a latent, with the latents of the frames",
            {"images": [SQUARE], "latents": [LATENTS], "n": 5, "method": "lerp", "return": ["latents"]},
        ),
    ],
    "InterpolateAnswer": [("two", "Two frames", {"model": "mnist@1", "images": [SQUARE, SQUARE]})],
    "TraverseBody": [
        ("file", "The dimensions that the model uses most, around an image", {"images": [SQUARE]}),
        (
            "dimensions",
            "Two dimensions around a latent",
            {"latents": [LATENTS], "dimensions": [3, 17], "n": 5, "extent": 2},
        ),
        ("origin", "Around the middle of the latent space", {}),
    ],
    "TraverseAnswer": [
        (
            "row",
            "One dimension in two steps",
            {"model": "mnist@1", "images": [SQUARE, SQUARE], "dimensions": [3], "values": [-3.0, 3.0]},
        )
    ],
    "ArithmeticBody": [
        ("difference", "a - b + c", {"images": [SQUARE] * 3, "weights": [1, -1, 1]}),
        ("average", "Half way between an image and a latent", {"images": [SQUARE], "latents": [LATENTS]}),
    ],
    "ArithmeticAnswer": [
        ("sum", "The sum and its image", {"model": "mnist@1", "images": [SQUARE], "latents": [LATENTS]})
    ],
    "SimilarityBody": [
        ("cosine", "Of two images", {"images": [SQUARE, SQUARE]}),
        (
            "nearest",
            "The nearest one of each of three, by their posteriors",
            {"images": [SQUARE] * 3, "metric": "symmetric_kl", "top": 1},
        ),
    ],
    "SimilarityAnswer": [
        (
            "two",
            "Two images, and which is nearest to which",
            {
                "model": "mnist@1",
                "metric": "cosine",
                "matrix": [[1.0, 0.25], [0.25, 1.0]],
                "nearest": [[1], [0]],
                "nearest_values": [[0.25], [0.25]],
            },
        )
    ],
    "EncodeAnswer": [("mean", "One image's embedding", {"model": "mnist@1", "mean": [LATENTS]})],
    "ImagesAnswer": [("image", "One image", {"model": "mnist@1", "images": [SQUARE]})],
    "ReconstructAnswer": [
        ("image", "One image", {"model": "mnist@1", "images": [SQUARE], "error": [0.0031]}),
    ],
    "SampleAnswer": [("image", "One image", {"model": "mnist@1", "images": [SQUARE], "seed": 7})],
    "ModelsAnswer": [
        (
            "one",
            "One model",
            {
                "models": [
                    {
                        "name": "mnist",
                        "versions": [1],
                        "default": True,
                        "image": {"height": 28, "width": 28, "channels": 1, "levels": 256, "fit": "contain"},
                        "latent": [32],
                    }
                ],
                "refused": {},
            },
        )
    ],
    "ModelAnswer": [
        (
            "mnist",
            "A model; its manifest has more in it",
            {
                "model": "mnist@1",
                "state": "ready",
                "versions": [1],
                "default": True,
                "refused": {},
                "limits": {
                    "max_body": 33554432,
                    "max_images": 256,
                    "max_samples": 256,
                    "max_pixels": 16777216,
                },
                "manifest": {
                    "format": 1,
                    "name": "mnist",
                    "version": 1,
                    "created": "2026-11-22T12:00:00Z",
                    "image": {"height": 28, "width": 28, "channels": 1, "levels": 256, "fit": "contain"},
                    "latent": {"shape": [32]},
                },
            },
        )
    ],
    "MapAnswer": [
        (
            "mnist",
            "The map of a model of two classes, with two images on it",
            {
                "model": "mnist@1",
                "mean": [0.0] * 32,
                "components": [[0.25, 0.0] * 16, [0.0, 0.25] * 16],
                "variance": [0.11, 0.09],
                "points": [[-1.5, 0.25], [0.75, -2.0]],
                "labels": [0, 1],
                "label_names": ["0", "1"],
                "thumbnails": {"height": 28, "width": 28, "columns": 2},
            },
        )
    ],
    "Health": [("alive", "Alive", {"status": "ok"})],
    "Readiness": [("ready", "Ready", {"status": "ready", "models": ["mnist@1"]})],
}

# What fits into no JSON is shown as the end of a curl command.
COMMANDS = {
    "multipart/form-data": "curl -F images=@one.png -F images=@two.jpg",
    "application/x-npy": "curl --data-binary @array.npy -H 'Content-Type: application/x-npy'",
}

# Of each problem one `detail`, and the pointers of those that have any.
DETAILS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "invalid-request": (
        "query /n: Input should be greater than or equal to 1. /docs shows what is expected.",
        [("/n", "query", "Input should be greater than or equal to 1")],
    ),
    "bad-image": (
        "/images/0 the bytes are not a readable image (unknown format); send PNG, JPEG, WEBP, GIF, BMP.",
        [
            (
                "/images/0",
                "body",
                "the bytes are not a readable image (unknown format); send PNG, JPEG, WEBP, GIF, BMP",
            )
        ],
    ),
    "wrong-shape": (
        "/latents/0 is [3]; mnist@1 takes [32].",
        [("/latents/0", "body", "is [3]; mnist@1 takes [32]")],
    ),
    "not-found": ("There is nothing at /encoded; /docs shows what there is.", []),
    "unknown-model": ("There is no model 'unknown' here; there are mnist.", []),
    "method-not-allowed": ("/encode has no GET; it has POST.", []),
    "not-acceptable": (
        "None of what Accept asks for can be made here; possible are application/json, application/x-npy, "
        "application/x-npz.",
        [],
    ),
    "slow-request": (
        "The body did not come in time; send it faster than 16,384 bytes a second, and with the "
        "Content-Length that it has.",
        [],
    ),
    "wrong-model": ("mnist@9 is not loaded; there is mnist@1. No other version stands in for it.", []),
    "too-large": ("n = 257 is more than the 256 of one request; send several.", []),
    "unsupported-media-type": (
        "text/plain cannot be read here; possible are application/json, application/x-npy. "
        "With curl: -H 'Content-Type: application/json'.",
        [],
    ),
    "unauthorized": ("Send an API key: `Authorization: Bearer <key>`.", []),
    "overloaded": ("More work is waiting than can be done in time; try again after Retry-After seconds.", []),
    "not-ready": ("The models are being loaded; try again in a moment.", []),
    "draining": ("The service is stopping; try again, another replica will answer.", []),
    "timeout": ("The answer was not there in time; send less at once, or try again later.", []),
    "internal": (
        "The service failed on this request; its log has the reason under the id in `instance`.",
        [],
    ),
}


REFERENCE = "#/components/examples/{}"


def of_model(name: str) -> dict[str, Any]:
    """The named examples of a JSON body or answer, as references to what `components` has."""
    return {key: {"$ref": REFERENCE.format(f"{name}.{key}")} for key, _, _ in VALUES[name]}


def of_problem(slug: str) -> dict[str, Any]:
    return {slug: {"$ref": REFERENCE.format(slug)}}


def of_binary(media_type: str, *, sent: bool) -> dict[str, Any]:
    """A command in place of bytes."""
    body = f"curl --data-binary @file -H 'Content-Type: {media_type}'"
    command = COMMANDS.get(media_type, body) if sent else f"curl -H 'Accept: {media_type}' -o file"
    return {"curl": {"summary": command}}


def components() -> dict[str, Any]:
    """Every example in JSON: of each body and answer as `EncodeBody.file`, of each problem by its slug."""
    found: dict[str, Any] = {
        f"{name}.{key}": {"summary": summary, "value": value}
        for name, values in VALUES.items()
        for key, summary, value in values
    }
    for kind in problems.kinds():
        detail, pointers = DETAILS[kind.slug]
        value: dict[str, Any] = {
            "type": f"/problems/{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "instance": "0b6e7c1d92f4a853",
        }
        if pointers:
            names = ("pointer", "location", "detail")
            value["errors"] = [dict(zip(names, each, strict=True)) for each in pointers]
        found[kind.slug] = {"summary": kind.title, "value": value}
    return found

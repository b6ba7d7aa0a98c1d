"""How well the model explains each image, and how unusual that is."""

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.admission import admit
from service.core.models import Model
from service.core.problems import TooLarge, WrongModel
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE
from service.operations.fields import LIST, First, Seed, new_seed
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from vaeserve.bundle.arrays import ByteImages, Doubles
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.posterior import Posterior

# One logarithm of a pixel's probability takes as long as printing this many numbers.
LIKELIHOOD = 20
# Of the importance-weighted bound: so many decoded images for each that /sample may give, in runs of so many.
SAMPLES, RUN = 16, 64

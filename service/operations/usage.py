"""How much a model uses each latent dimension."""

from service.core.models import Model
from service.core.problems import WrongModel


def kl_of(model: Model) -> tuple[float, ...]:
    """The mean KL of each flattened dimension on held-out images, in nats; WrongModel where it is unknown."""
    if model.manifest.latent.kl is None:
        raise WrongModel(
            f"{model.manifest.reference} does not say how much each dimension is used (`latent.kl`); name "
            "the dimensions yourself, or use a model that vae-train published."
        )
    return model.manifest.latent.kl

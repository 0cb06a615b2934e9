"""Settings of the images and of their batches. Imports no JAX."""

from dataclasses import dataclass

from ..run_config import identity, setting


@dataclass(frozen=True)
class ImageConfig:
    """Which images, and what is made of them: all that `prepare` needs."""

    # digits, mnist, a folder, .npy, .npz or .parquet files, or hf:NAME of a Hugging Face data set.
    source: str = "digits"
    prepared_dir: str = "data/digits"  # shards of images or latents, and their manifest
    size: int = setting(0, least=0)  # height and width, pixels; 0 = that of all images
    colour: bool = False  # three channels; otherwise one
    image_field: str = "image"  # of parquet rows and Hugging Face data sets
    label_field: str = "label"  # "" = unconditional
    heldout_fraction: float = setting(0.2, below=1)
    # Of the files or rows; `prepare` refuses more.
    max_unusable_fraction: float = setting(0.01, least=0, most=1)
    # MODULE:NAME of an object with `encode` and `decode`; what is trained on is then its latents.
    autoencoder: str = ""


@dataclass(frozen=True)
class DataConfig(ImageConfig):
    """The images, and how they become batches."""

    conditional: bool = identity(True)  # on the class, where the images have classes
    batch_size: int = identity(128)  # images a step, over all devices
    flip: bool = identity(False)  # mirrors half of the images left to right
    augment: float = identity(0.0, least=0, most=1)  # probability of each non-leaky augmentation
    dequantize: bool = identity(False)  # uniform noise of one level: for bits per dimension

"""Settings of the images and of their batches. Imports no JAX."""

from dataclasses import dataclass

from ..run_config import identity, setting


@dataclass(frozen=True)
class ImageConfig:
    """Which images, and what is made of them: all that `prepare` needs."""

    # digits, mnist, hf:NAME or hf:NAME:SPLIT of Hugging Face, or a folder, file or glob of images,
    # .npy, .npz or .parquet. Folders in a folder are classes.
    source: str = "digits"
    prepared_dir: str = "data/digits"  # shards of images or latents, and their manifest
    size: int = setting(0, least=0, most=4096)  # height, width, pixels; 0 = that of all images
    colour: bool = False  # three channels; otherwise one
    image_field: str = "image"  # of parquet rows and Hugging Face data sets
    label_field: str = "label"  # "" = unconditional
    heldout_fraction: float = setting(0.2, below=1)  # by the hash of an image's pixels
    # Of the images, for faults of their own or of their labels; `prepare` refuses more.
    max_unusable_fraction: float = setting(0.01, least=0, most=1)
    # MODULE:NAME of an object with `encode` and `decode`; what is trained on is then its latents.
    autoencoder: str = ""


@dataclass(frozen=True)
class DataConfig(ImageConfig):
    """The images, and how they become batches."""

    # Height, width, channels and classes of what is trained on: `preflight` needs no images for it.
    expects: tuple[int, int, int, int] = (8, 8, 1, 10)
    conditional: bool = identity(True)  # on the class, where the images have classes
    batch_size: int = identity(128)  # images a step, over all devices
    flip: bool = identity(False)  # mirrors half of the images left to right
    augment: float = identity(0.0, least=0, most=1)  # probability of each non-leaky augmentation
    dequantize: bool = identity(False)  # uniform noise of one level: for bits per dimension

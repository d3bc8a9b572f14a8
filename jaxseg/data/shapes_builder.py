"""The TFDS builder of the shapes world, apart from its source because TFDS is slow to import."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data import shapes_tfds
from jaxseg.data.scenes import CLASS_NAMES, draw

__all__ = ["Shapes"]

_SIZE = (128, 128)

tfds.disable_progress_bar()


class Shapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder "shapes": image, label, instances (PNG), class_vector; 1,000 train and 200 validation."""

    VERSION = tfds.core.Version(shapes_tfds._VERSION)
    RELEASE_NOTES = {shapes_tfds._VERSION: "128x128, six shapes."}  # noqa: RUF012 (TFDS declares it so)
    progress: Callable[[int, int], None] | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Textured shapes on textured backgrounds, with occlusion; generated, no download.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(*_SIZE, 3), encoding_format="png"),
                    "label": tfds.features.Image(shape=(*_SIZE, 1), encoding_format="png"),
                    "instances": tfds.features.Image(shape=(*_SIZE, 1), encoding_format="png"),
                    "class_vector": tfds.features.Tensor(shape=(len(CLASS_NAMES),), dtype=np.float32),
                }
            ),
            disable_shuffling=True,  # example i of a split is draw(seed, i)
        )

    def _log_download_bytes(self) -> None:
        """Silence: TFDS would announce a download of unknown size."""

    def _log_download_done(self) -> None:
        """Silence."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in shapes_tfds._SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        seed, count = shapes_tfds._SPLITS[split]
        done = sum(n for s, n in shapes_tfds._SPLITS.values() if s < seed)
        total = sum(n for _, n in shapes_tfds._SPLITS.values())
        for index in range(count):
            scene = draw(seed, index, _SIZE)
            yield (
                index,
                {
                    "image": _png(scene.image),
                    "label": _png(scene.label.astype(np.uint8)),
                    "instances": _png(scene.instances.astype(np.uint8)),
                    "class_vector": scene.class_vector,
                },
            )
            if self.progress is not None:
                self.progress(done + index + 1, total)


def _png(pixels: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    stream.seek(0)
    return stream

"""Region providers with networks: Grounding DINO with SAM 2, and CLIPSeg.

`locate` finds or fetches the files of their models, `load` and `load_processor` read them, `GroundedSam` and `ClipSeg`
find words, `widen_mask` and `reduce_to_cells` bring masks to the form of the published scripts.

Masks of `grounded-sam` are made as the published scripts make them: every box above the threshold counts; SAM 2 gives
one mask for each; each mask is widened and reduced to cells; the cells of all are joined. (There, a box whose mask is
empty marks the first cell of the picture; here it marks none.)
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from riebench.errors import RiebenchError
from riebench.generation.regions.masks import View, enlarge
from riebench.generation.regions.options import MEGABYTES, ClipSegOptions, GroundedSamOptions, RegionSpec, as_folder
from riebench.tasks.masks import Mask
from riebench.utils.hub import fetch, split_revision

SMALL_FILES = ("*.json", "*.txt", "*.model")
"""Patterns of a model's files besides its weights."""

FOREGROUND = "foreground"
"""Words that are searched for where a region has none."""
TAPS = np.arange(8) - 3
"""Offsets of the pixels that a cell's value depends on."""


@dataclass(frozen=True)
class Network:
    """A model with its processor.

    Attributes:
        model: called with the processor's tensors.
        processor: makes them from a picture.
        device: where the model is.
    """

    model: Any
    processor: Any
    device: torch.device

    def inputs(self, **given: Any) -> Any:
        """Return the processor's tensors, on the model's device."""
        return self.processor(**given, return_tensors="pt").to(self.device)


class GroundedSam:
    """Words located by Grounding DINO, outlined by SAM 2.

    Args:
        options: thresholds, and what becomes of the masks.
        detector: Grounding DINO.
        segmenter: SAM 2.
    """

    def __init__(self, options: GroundedSamOptions, detector: Network, segmenter: Network) -> None:
        self.options = options
        self.detector = detector
        self.segmenter = segmenter

    @classmethod
    def load(cls, options: GroundedSamOptions, folders: Mapping[str, Path], device: torch.device) -> GroundedSam:
        """Load both models.

        Args:
            options: as above.
            folders: of "detector" and "segmenter".
            device: where they are to run.

        Raises:
            RiebenchError: if one of them cannot be loaded.
        """
        from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoProcessor, Sam2Model, Sam2Processor

        def network(kind: Any, processor: Any, folder: Path) -> Network:
            return Network(load(kind, folder, device), load_processor(processor, folder), device)

        return cls(
            options,
            network(AutoModelForZeroShotObjectDetection, GroundingDinoProcessor, folders["detector"]),
            # The stored class is the video model; these classes read its image part.
            network(Sam2Model, Sam2Processor, folders["segmenter"]),
        )

    def __call__(self, words: str | None, view: View) -> Mask:
        """Return a mask, bool [H, W]; all false if no box is good enough."""
        height, width = view.image.shape[:2]
        picture = Image.fromarray(view.image)
        boxes = self.boxes(picture, caption(words))
        mask = np.zeros((height, width), dtype=bool)
        # SAM 2's processor refuses an empty list.
        for one in self.outlines(picture, boxes) if boxes else ():
            wide = widen_mask(one, self.options.widen)
            mask |= wide if not self.options.cell else enlarge(reduce_to_cells(wide, self.options.cell), height, width)
        return mask

    @torch.inference_mode()
    def boxes(self, picture: Image.Image, text: str) -> list[list[float]]:
        """Return the boxes [x0, y0, x1, y1] whose score is above the thresholds.

        In pixels; overlapping boxes are included.

        Raises:
            RiebenchError: if the detector gives no numbers.
        """
        inputs = self.detector.inputs(images=picture, text=text)
        outputs = self.detector.model(**inputs)
        _refuse_nonfinite("the detector", outputs.pred_boxes)
        (found,) = self.detector.processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=self.options.box, text_threshold=self.options.text,
            target_sizes=[(picture.height, picture.width)],
        )  # fmt: skip
        # Without a box there still is a label, an empty one.
        boxes: list[list[float]] = found["boxes"].float().cpu().tolist()
        labels = found["text_labels"][: len(boxes)]
        return [box for box, label in zip(boxes, labels, strict=True) if label or not self.options.text]

    @torch.inference_mode()
    def outlines(self, picture: Image.Image, boxes: list[list[float]]) -> Mask:
        """Compute one mask per box, bool [N, H, W].

        Raises:
            RiebenchError: if the segmenter gives no numbers.
        """
        inputs = self.segmenter.inputs(images=picture, input_boxes=[boxes])
        sizes = inputs["original_sizes"].cpu()
        outputs = self.segmenter.model(**inputs, multimask_output=False)
        _refuse_nonfinite("the segmenter", outputs.pred_masks)
        (masks,) = self.segmenter.processor.post_process_masks(outputs.pred_masks.cpu(), sizes)
        outlines: Mask = masks[:, 0].numpy()
        return outlines


class ClipSeg:
    """Words located by CLIPSeg: one small model, soft outlines.

    Args:
        options: the threshold.
        network: the model.
    """

    def __init__(self, options: ClipSegOptions, network: Network) -> None:
        self.options = options
        self.network = network

    @classmethod
    def load(cls, options: ClipSegOptions, folders: Mapping[str, Path], device: torch.device) -> ClipSeg:
        """Load the model.

        Args:
            options: as above.
            folders: of "model".
            device: where it is to run.

        Raises:
            RiebenchError: if it cannot be loaded.
        """
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        model = load(CLIPSegForImageSegmentation, folders["model"], device)
        return cls(options, Network(model, load_processor(CLIPSegProcessor, folders["model"]), device))

    @torch.inference_mode()
    def __call__(self, words: str | None, view: View) -> Mask:
        """Return a mask, bool [H, W].

        Raises:
            RiebenchError: if the model gives no numbers.
        """
        picture = Image.fromarray(view.image)
        inputs = self.network.inputs(text=[words or FOREGROUND], images=[picture], padding=True)
        logits = self.network.model(**inputs).logits.float().cpu()
        _refuse_nonfinite("CLIPSeg", logits)
        square = logits.reshape(1, 1, *logits.shape[-2:])
        likely = torch.nn.functional.interpolate(square.sigmoid(), view.image.shape[:2], mode="bilinear")
        mask: Mask = (likely[0, 0] > self.options.threshold).numpy()
        return mask


def locate(spec: RegionSpec, *, offline: bool = False) -> dict[str, Path]:
    """Locate a provider's models on this machine.

    What is not here is fetched from the hub.

    Args:
        spec: the provider.
        offline: fetches nothing.

    Returns:
        Option -> folder, every one of them whole.

    Raises:
        RiebenchError: naming what is missing and how to get it.
    """
    return {option: locate_model(spec, option, offline=offline) for option in spec.models}


def locate_model(spec: RegionSpec, option: str, *, offline: bool = False) -> Path:
    """Locate the model of one option, as `locate` does."""
    place = spec.models[option]
    folder = as_folder(place) or _from_hub(spec.provider, option, place, offline)
    spec.check_folder(option, folder)
    return folder


def _from_hub(provider: str, option: str, place: str, offline: bool) -> Path:
    name, revision = split_revision(place)
    try:
        folder = fetch(name, revision, patterns=(*SMALL_FILES, "*.safetensors"), offline=offline)
        if not any(folder.glob("*.safetensors")):
            folder = fetch(name, revision, patterns=(*SMALL_FILES, "pytorch_model*.bin"), offline=offline)
        return folder
    except RiebenchError as error:
        size = f" ({MEGABYTES[name]} MB)" if name in MEGABYTES else ""
        raise RiebenchError(
            f"--regions {provider} needs {name}{size}: {error}; or give a folder that holds it: "
            f"--regions {provider}:{option}=FOLDER"
        ) from error


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def load(kind: Any, folder: Path, device: torch.device) -> Any:
    """Load a region model in float32, in evaluation mode.

    Args:
        kind: its class, or one of transformers' Auto classes.
        folder: with its files.
        device: where it is to run.

    Raises:
        RiebenchError: if the files are damaged, or belong to another model.
    """
    try:
        with _quiet_transformers():
            model, report = kind.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    # Damaged files come as errors of safetensors, json, pickle or torch.
    except Exception as error:
        raise RiebenchError(f"{folder} cannot be loaded as {kind.__name__}: {_summary(error)}") from error
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        first = missing[0] if missing else str(next(iter(report["mismatched_keys"])))
        raise RiebenchError(f"{folder} holds no whole {type(model).__name__}: {first} is missing or has other sizes")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise RiebenchError(f"{folder} holds weights that are no numbers (NaN or infinity); fetch them again")
    try:
        return model.requires_grad_(False).eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(f"{type(model).__name__} does not go to {device}: {_summary(error)}") from error


def load_processor(kind: Any, folder: Path) -> Any:
    """Load a region model's processor.

    Raises:
        RiebenchError: if a file of it is missing or damaged.
    """
    try:
        with _quiet_transformers():
            return kind.from_pretrained(str(folder), local_files_only=True)
    # A missing tokenizer or a damaged file comes as one of many errors.
    except Exception as error:
        raise RiebenchError(
            f"{folder} has no whole {kind.__name__} ({_summary(error)}); fetch the model's *.json and *.txt files too"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    # SAM 2 is stored as a video model, so transformers prints a remark each time its image part is loaded.
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def free_memory() -> None:
    """Release the memory of models that are no longer used, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def caption(words: str | None) -> str:
    """Return words in the form that Grounding DINO expects.

    In small letters, with a period at the end.
    """
    text = (words or FOREGROUND).lower().strip()
    return text if text.endswith(".") else f"{text}."


def widen_mask(mask: Mask, side: int) -> Mask:
    """Return a mask whose every pixel has grown to a square, bool [H, W].

    The square's side is `side` pixels, an odd number.

    The published scripts blur with a Gaussian kernel of that side and keep everything above 0, which is the same.
    """
    pixels = torch.from_numpy(mask).float()[None, None]
    grown: Mask = torch.nn.functional.max_pool2d(pixels, side, stride=1, padding=side // 2)[0, 0].bool().numpy()
    return grown


def reduce_to_cells(mask: Mask, cell: int) -> Mask:
    """Reduce a mask to cells, as the published scripts do.

    That is OpenCV's Lanczos interpolation at the middle of each cell.

    A cell is true if the weighted sum of the 8 x 8 pixels around its middle is above 0. The weights of the outer pixels
    have both signs, so that an edge between them may fall on either side.

    Args:
        mask: bool [H, W], both sides multiples of `cell`.
        cell: side of a cell in pixels.

    Returns:
        bool [H / cell, W / cell].
    """
    rows, columns = (_taps(side // cell, cell, side) for side in mask.shape)
    weights = _lanczos((cell - 1) / 2 % 1)
    patches = mask[rows[:, :, None, None], columns[None, None]].astype(np.float64)
    cells: Mask = np.einsum("i,hiwj,j->hw", weights, patches, weights) > 0
    return cells


def _taps(cells: int, cell: int, side: int) -> Any:
    middles = (np.arange(cells) * cell + (cell - 1) / 2).astype(int)
    return np.clip(middles[:, None] + TAPS, 0, side - 1)


def _lanczos(fraction: float) -> Any:
    distance = TAPS - fraction
    weights = np.sinc(distance) * np.sinc(distance / 4)
    return weights / weights.sum()


def _refuse_nonfinite(what: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise RiebenchError(f"{what} gave values that are no numbers; its weights may be damaged: fetch them again")

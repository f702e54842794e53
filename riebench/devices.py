"""Which device a word of `--device` stands for here."""

from __future__ import annotations

from riebench.errors import RiebenchError


def pick_device(device: str) -> str:
    """The device that "auto" means here; any other name is returned as it is.

    Raises:
        RiebenchError: if there is no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RiebenchError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return device

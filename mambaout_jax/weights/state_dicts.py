# SPDX-License-Identifier: Apache-2.0
"""Finds the state dict in what training scripts save, and takes off the names of its wrappers.

Scripts save their state dict inside a dict of other things, sometimes twice, and `DataParallel`,
`torch.compile`, Lightning and scripts of detection put a prefix before every name. Whether a prefix
is a wrapper's only the model's own names can tell: those of PlainMamba begin with "backbone.".
"""

from collections.abc import Mapping
from typing import Any

_RAW = ("state_dict", "model_state_dict", "model", "module", "network", "net", "checkpoint")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_COUNTER = "n_averaged"  # beside the averaged weights of torch.optim.swa_utils


def find_state_dict(checkpoint: Any, ema: bool) -> dict[str, Any]:
    """The state dict in a checkpoint, under the names that it has there.

    Args:
        checkpoint: what a file holds.
        ema: take the averaged weights where there are some beside the raw ones.

    Returns:
        Names to arrays or tensors.

    Raises:
        ValueError: there is no state dict, or some of it are not names or not tensors.
    """
    keys = (*_AVERAGED, *_RAW) if ema else (*_RAW, *_AVERAGED)
    found, opened = checkpoint, set()
    while isinstance(found, Mapping) and id(found) not in opened:
        opened.add(id(found))
        inner = (found[key] for key in keys if key in found)
        found = next((value for value in inner if isinstance(value, Mapping) and value), found)
    if not isinstance(found, Mapping) or not found:
        what = f"a {type(checkpoint).__name__}" if not isinstance(found, Mapping) else "nothing"
        raise ValueError(
            f"it holds {what}, not a state dict; save that of the model, "
            "torch.save(model.state_dict(), …)"
        )
    for key, value in found.items():
        if not isinstance(key, str):
            raise ValueError(f"it has the key {key!r}, and names are strings")
        if not hasattr(value, "shape") and not isinstance(value, int | float):
            raise ValueError(
                f"{key!r} in it is a {type(value).__name__}, not a tensor; the state dict may "
                f"stand under another name than {', '.join(_RAW)}: save it alone"
            )
    return dict(found)


def without_prefixes(state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The state dict with fewer and fewer prefixes of wrappers, the last as it is.

    A prefix that not all names have is not a wrapper's.
    """
    forms = [dict(state_dict)]
    while prefix := next((p for p in _PREFIXES if _is_common(p, forms[0])), None):
        names = {key.removeprefix(prefix): x for key, x in forms[0].items() if key != _COUNTER}
        forms.insert(0, names)
    return forms


def _is_common(prefix: str, names: Mapping[str, Any]) -> bool:
    others = [key for key in names if key != _COUNTER]
    return bool(others) and all(key.startswith(prefix) for key in others)
